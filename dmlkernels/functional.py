"""The public functions: `from dmlkernels import functional as F`."""

from .losses.anti_collapse import anti_collapse_loss
from .losses.circle import circle_loss
from .losses.contrastive import contrastive_loss
from .losses.lifted import lifted_loss
from .losses.margin import margin_loss
from .losses.multi_similarity import multi_similarity_loss
from .losses.nca import nca_loss
from .losses.ntxent import ntxent_loss
from .losses.proxy_anchor import proxy_anchor_loss
from .losses.proxy_nca import proxy_nca_loss
from .losses.ranked_list import ranked_list_loss
from .losses.supcon import supcon_loss
from .losses.triplet import triplet_loss
from .ops.coding_rate import cholesky_logdet, class_coding_rate, coding_rate, coding_rate_reduction
from .ops.nearest_positive import Mined, NearestPositive, mine, nearest_positive
from .ops.pairwise import pairwise_distance, pairwise_similarity
from .ops.soft_triple import soft_triple_loss
from .ops.spherical_expansion import Expansion, max_mahalanobis_centers, spherical_expansion

__all__ = [
    "Expansion",
    "Mined",
    "NearestPositive",
    "anti_collapse_loss",
    "cholesky_logdet",
    "circle_loss",
    "class_coding_rate",
    "coding_rate",
    "coding_rate_reduction",
    "contrastive_loss",
    "lifted_loss",
    "margin_loss",
    "max_mahalanobis_centers",
    "mine",
    "multi_similarity_loss",
    "nca_loss",
    "nearest_positive",
    "ntxent_loss",
    "pairwise_distance",
    "pairwise_similarity",
    "proxy_anchor_loss",
    "proxy_nca_loss",
    "ranked_list_loss",
    "soft_triple_loss",
    "spherical_expansion",
    "supcon_loss",
    "triplet_loss",
]
