"""Batch samplers: which rows of a data set make up a batch."""

from .class_balanced import ClassBalancedSampler

__all__ = ["ClassBalancedSampler"]
