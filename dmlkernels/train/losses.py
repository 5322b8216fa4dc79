"""The losses that ``--loss`` knows. A new loss is one entry in ``LOSSES``, and one in ``OPTIONS`` for each new option.

An option belongs to a loss if the loss's constructor has an argument of that name, so nothing is listed twice.
Losses with learnable proxies say so by their arguments ``num_classes`` and ``embedding_size``, which are filled in.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

from dmlkernels.train.config import JobError


@dataclasses.dataclass(frozen=True)
class LossEntry:
    """A loss of the command line.

    Args:
        module: class in ``dmlkernels.losses``.
        defaults: arguments where the job's default is not the class's.
        easy_positive: arguments that ``--easy-positive`` sets, unless the user names them.
    """

    module: str
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    easy_positive: Mapping[str, Any] = dataclasses.field(default_factory=lambda: {"positive": "easy"})


LOSSES: dict[str, LossEntry] = {
    # The wider margin brings the boundary of positives down to 0.6: at 0.8 most nearest positives are inside it.
    "ranked_list": LossEntry("RankedListLoss", easy_positive={"positive": "easy", "margin": 0.8}),
    "triplet": LossEntry("TripletMarginLoss", defaults={"positive": "hard", "negative": "semihard", "margin": 0.2}),
}

OPTIONS: dict[str, dict[str, Any]] = {
    "margin": {"type": float, "help": "margin of the loss"},
    "alpha": {"type": float, "help": "boundary of the negatives (ranked_list; default 1 + margin/2)"},
    "pos_temperature": {"type": float, "help": "weighting of the positives (ranked_list)"},
    "neg_temperature": {"type": float, "help": "weighting of the negatives (ranked_list)"},
    "neg_weight": {"type": float, "help": "weight of the negatives' term (ranked_list)"},
    "form": {"choices": ("tpami", "cvpr"), "help": "which paper's sum of the two terms (ranked_list)"},
    "negative": {"choices": ("hard", "semihard", "all"), "help": "which negatives count (triplet)"},
    "positive": {"choices": ("easy", "hard", "all"), "help": "which positives count"},
    "soft": {"action": "store_true", "help": "softplus in place of the hinge (triplet)"},
}


def flag(option: str) -> str:
    return "--" + option.replace("_", "-")


def build(
    name: str, options: Mapping[str, Any], *, easy_positive: bool, num_classes: int, embedding_size: int
) -> nn.Module:
    """The loss module of ``--loss name`` with the options given.

    Raises:
        JobError: an unknown loss, an option that this loss does not have, or a value that it refuses.
    """
    from dmlkernels import losses

    if name not in LOSSES:
        raise JobError(f"--loss {name}: there are {', '.join(sorted(LOSSES))}")
    entry = LOSSES[name]
    constructor = getattr(losses, entry.module)
    arguments = inspect.signature(constructor).parameters
    asked = [*options, *(["easy_positive"] if easy_positive and "positive" not in arguments else [])]
    for option in asked:
        if option not in arguments:
            raise JobError(f"--loss {name} has no option {flag(option)}")
    sizes = {"num_classes": num_classes, "embedding_size": embedding_size}
    chosen = {argument: size for argument, size in sizes.items() if argument in arguments} | dict(entry.defaults)
    if easy_positive:
        chosen |= entry.easy_positive
    try:
        return constructor(**(chosen | dict(options)))
    except ValueError as error:
        raise JobError(f"--loss {name}: {error}") from None
