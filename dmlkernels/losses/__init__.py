"""Losses as modules, called as `loss(embeddings, labels)`."""

from .anti_collapse import AntiCollapseLoss
from .coding_rate import MCR2Loss
from .proxy_anchor import ProxyAnchorLoss
from .ranked_list import RankedListLoss
from .spherical_expansion import SphericalExpansionLoss
from .triplet import TripletMarginLoss

__all__ = [
    "AntiCollapseLoss",
    "MCR2Loss",
    "ProxyAnchorLoss",
    "RankedListLoss",
    "SphericalExpansionLoss",
    "TripletMarginLoss",
]
