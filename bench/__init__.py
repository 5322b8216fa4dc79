"""Measurements, run from the repository: of the kernels, of whole trainings, and the reports that are made of both."""
