"""Triton kernels, installed as dmlkernels.triton_kernels: one file per operation."""
