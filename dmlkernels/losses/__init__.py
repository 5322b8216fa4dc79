"""Losses as modules, called as `loss(embeddings, labels)`."""

from .anti_collapse import AntiCollapseLoss
from .coding_rate import MCR2Loss
from .contrastive import ContrastiveLoss
from .cross_batch_memory import CrossBatchMemory
from .margin import MarginLoss
from .multi_head import MultiHead
from .proxy_anchor import ProxyAnchorLoss
from .ranked_list import RankedListLoss
from .soft_triple import SoftTripleLoss
from .spherical_expansion import SphericalExpansionLoss
from .triplet import TripletMarginLoss

__all__ = [
    "AntiCollapseLoss",
    "ContrastiveLoss",
    "CrossBatchMemory",
    "MCR2Loss",
    "MarginLoss",
    "MultiHead",
    "ProxyAnchorLoss",
    "RankedListLoss",
    "SoftTripleLoss",
    "SphericalExpansionLoss",
    "TripletMarginLoss",
]
