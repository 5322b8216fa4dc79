"""Every exported loss, so that a new one is met by what goes around losses and by the training job."""

from __future__ import annotations

import inspect

import torch

from dmlkernels import losses
from dmlkernels.losses._base import PairLoss

AROUND = ("AntiCollapseLoss", "CrossBatchMemory", "MultiHead", "SphericalExpansionLoss")
PLAIN = [name for name in losses.__all__ if name not in AROUND]
PAIRS = [name for name in PLAIN if issubclass(getattr(losses, name), PairLoss)]


def needs(name: str) -> set[str]:
    """The arguments that have no default: the sizes of a loss with proxies."""
    arguments = inspect.signature(getattr(losses, name)).parameters.values()
    plain = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {a.name for a in arguments if a.default is inspect.Parameter.empty and a.kind in plain}


PROXIES = [name for name in PLAIN if needs(name)]


def make(name: str, classes: int = 6, width: int = 16, **options: object) -> torch.nn.Module:
    """The loss with its defaults; proxies are drawn with a fixed seed."""
    sizes = {"num_classes": classes, "embedding_size": width}
    torch.manual_seed(0)
    return getattr(losses, name)(**{argument: sizes[argument] for argument in needs(name)}, **options)
