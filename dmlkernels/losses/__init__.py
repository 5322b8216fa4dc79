"""Losses as modules: `forward(embeddings, labels, indices_tuple=None, ref_emb=None, ref_labels=None, *, ids, ref_ids)`."""

from .ranked_list import RankedListLoss
from .triplet import TripletMarginLoss

__all__ = ["RankedListLoss", "TripletMarginLoss"]
