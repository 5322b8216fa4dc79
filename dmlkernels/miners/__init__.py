"""Miners: index tuples for the losses of this package and of pytorch-metric-learning."""

from .pair_miner import PairMiner

__all__ = ["PairMiner"]
