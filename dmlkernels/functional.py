"""The public functions: `from dmlkernels import functional as F`."""

from .losses.triplet import triplet_loss
from .ops.nearest_positive import Mined, NearestPositive, mine, nearest_positive
from .ops.pairwise import pairwise_distance, pairwise_similarity
from .ops.ranked_list import ranked_list_loss

__all__ = [
    "Mined",
    "NearestPositive",
    "mine",
    "nearest_positive",
    "pairwise_distance",
    "pairwise_similarity",
    "ranked_list_loss",
    "triplet_loss",
]
