"""Losses as modules, called as `loss(embeddings, labels)`."""

from .ranked_list import RankedListLoss
from .triplet import TripletMarginLoss

__all__ = ["RankedListLoss", "TripletMarginLoss"]
