"""The losses that ``--loss`` knows. A new loss is one entry in ``LOSSES``, and one in ``OPTIONS`` for each new option.

An option belongs to a loss if the loss's constructor has an argument of that name, so nothing is listed twice.
Losses with learnable proxies say so by their arguments ``num_classes`` and ``embedding_size``, which are filled in.
``WRAPPERS`` are what goes around any of them.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

from dmlkernels import losses
from dmlkernels.train.config import JobError


@dataclasses.dataclass(frozen=True)
class LossEntry:
    """A loss of the command line.

    Args:
        module: class in ``dmlkernels.losses``.
        defaults: arguments where the job's default is not the class's.
        easy_positive: arguments that ``--easy-positive`` sets, unless the user names them.
        pairs: whether it is a loss of pairs, which takes a gallery and ids.
    """

    module: str
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    easy_positive: Mapping[str, Any] = dataclasses.field(default_factory=lambda: {"positive": "easy"})
    pairs: bool = True


@dataclasses.dataclass(frozen=True)
class WrapperEntry:
    """A loss around another one, which ``--NAME`` switches on.

    Args:
        module: class in ``dmlkernels.losses``, whose first argument is the loss inside.
        help: what it does.
        options: its constructor arguments, each the option ``--NAME-ARGUMENT``.
    """

    module: str
    help: str
    options: Mapping[str, dict[str, Any]]


LOSSES: dict[str, LossEntry] = {
    # The wider margin brings the boundary of positives down to 0.6: at 0.8 most nearest positives are inside it.
    "ranked_list": LossEntry("RankedListLoss", easy_positive={"positive": "easy", "margin": 0.8}),
    "triplet": LossEntry("TripletMarginLoss", defaults={"positive": "hard", "negative": "semihard", "margin": 0.2}),
    # Half the class's alpha was better on held-out training classes (docs/methods.md).
    "proxy_anchor": LossEntry("ProxyAnchorLoss", defaults={"alpha": 16.0}, pairs=False),
    "mcr2": LossEntry("MCR2Loss", pairs=False),
}

# From the inside out: the expansion of a loss with proxies trains them, and a rate counts once.
WRAPPERS: dict[str, WrapperEntry] = {
    "expansion": WrapperEntry(
        "SphericalExpansionLoss",
        "spherical embedding expansion: train on synthetics around the class's proxy too",
        {
            "n": {"type": int, "help": "synthetics of a sample (default 8)"},
            "weight": {"type": float, "help": "of the synthetics' loss (default 0.2)"},
            "max_fraction": {"type": float, "help": "share of the batch that is expanded in the end (default 0.4)"},
        },
    ),
    "anti_collapse": WrapperEntry(
        "AntiCollapseLoss",
        "add a coding rate that keeps embeddings or proxies apart",
        {
            "on": {
                "choices": ("features", "batch_proxies", "all_proxies"),
                "help": "rate of what (default: the batch's proxies if the loss has any, features otherwise)",
            },
            "form": {"choices": ("neg_rate", "exp_neg_rate"), "help": "of the term (default neg_rate)"},
            "weight": {"type": float, "help": "of the term (default 1e-3 for neg_rate, 1 for exp_neg_rate)"},
        },
    ),
}

OPTIONS: dict[str, dict[str, Any]] = {
    "margin": {"type": float, "help": "margin of the loss"},
    "alpha": {"type": float, "help": "ranked_list: boundary of the negatives; proxy_anchor: scale (default 16)"},
    "pos_temperature": {"type": float, "help": "weighting of the positives (ranked_list)"},
    "neg_temperature": {"type": float, "help": "weighting of the negatives (ranked_list)"},
    "neg_weight": {"type": float, "help": "weight of the negatives' term (ranked_list)"},
    "form": {"choices": ("tpami", "cvpr"), "help": "which paper's sum of the two terms (ranked_list)"},
    "negative": {"choices": ("hard", "semihard", "all"), "help": "which negatives count (triplet)"},
    "positive": {"choices": ("easy", "hard", "all"), "help": "which positives count"},
    "soft": {"action": "store_true", "help": "softplus in place of the hinge (triplet)"},
    "gain": {"type": float, "help": "factor inside the logdet of the rate of all rows (mcr2)"},
    "rate_weight": {"type": float, "help": "weight of that rate (mcr2)"},
    "eps_squared": {"type": float, "help": "squared distortion (mcr2)"},
}


def flag(option: str) -> str:
    return "--" + option.replace("_", "-")


def build(
    name: str,
    options: Mapping[str, Any],
    *,
    easy_positive: bool,
    num_classes: int,
    embedding_size: int,
    expansion: Mapping[str, Any] | None = None,
    anti_collapse: Mapping[str, Any] | None = None,
) -> nn.Module:
    """The loss module of ``--loss name`` with the options given, and what goes around it.

    Raises:
        JobError: an unknown loss, an option that this loss does not have, or a value that it refuses.
    """
    if name not in LOSSES:
        raise JobError(f"--loss {name}: there are {', '.join(sorted(LOSSES))}")
    entry = LOSSES[name]
    arguments = inspect.signature(getattr(losses, entry.module)).parameters
    asked = [*options, *(["easy_positive"] if easy_positive and "positive" not in arguments else [])]
    for option in asked:
        if option not in arguments:
            raise JobError(f"--loss {name} has no option {flag(option)}")
    if expansion is not None and not entry.pairs and "num_classes" not in arguments:
        raise JobError(f"--expansion needs a loss of pairs or with proxies: leave it out, or --loss {name}")
    sizes = {"num_classes": num_classes, "embedding_size": embedding_size}
    chosen = {argument: size for argument, size in sizes.items() if argument in arguments} | dict(entry.defaults)
    if easy_positive:
        chosen |= entry.easy_positive
    loss = _construct(f"--loss {name}", entry.module, **(chosen | dict(options)))
    for wrapper, settings in (("expansion", expansion), ("anti_collapse", anti_collapse)):
        if settings is not None:
            loss = _construct(flag(wrapper), WRAPPERS[wrapper].module, loss, **settings)
    return loss


def _construct(asked: str, module: str, *inside: nn.Module, **arguments: Any) -> nn.Module:
    try:
        return getattr(losses, module)(*inside, **arguments)
    except ValueError as error:
        raise JobError(f"{asked}: {error}") from None
