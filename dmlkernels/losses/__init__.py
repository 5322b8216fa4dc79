"""Losses as modules, called as `loss(embeddings, labels)`."""

from .anti_collapse import AntiCollapseLoss
from .circle import CircleLoss
from .coding_rate import MCR2Loss
from .contrastive import ContrastiveLoss
from .cross_batch_memory import CrossBatchMemory
from .lifted import GeneralizedLiftedStructureLoss
from .margin import MarginLoss
from .multi_head import MultiHead
from .multi_similarity import MultiSimilarityLoss
from .nca import NCALoss
from .ntxent import NTXentLoss
from .proxy_anchor import ProxyAnchorLoss
from .proxy_nca import ProxyNCALoss
from .ranked_list import RankedListLoss
from .soft_triple import SoftTripleLoss
from .spherical_expansion import SphericalExpansionLoss
from .supcon import SupConLoss
from .triplet import TripletMarginLoss

__all__ = [
    "AntiCollapseLoss",
    "CircleLoss",
    "ContrastiveLoss",
    "CrossBatchMemory",
    "GeneralizedLiftedStructureLoss",
    "MCR2Loss",
    "MarginLoss",
    "MultiHead",
    "MultiSimilarityLoss",
    "NCALoss",
    "NTXentLoss",
    "ProxyAnchorLoss",
    "ProxyNCALoss",
    "RankedListLoss",
    "SoftTripleLoss",
    "SphericalExpansionLoss",
    "SupConLoss",
    "TripletMarginLoss",
]
