"""The losses that ``--loss`` knows, which are those of the package's table, and their options.

An option belongs to a loss if the loss's constructor has an argument of that name, so nothing is listed twice: a new
option is one entry in ``OPTIONS``. Losses with learnable proxies say so by requiring ``num_classes`` and
``embedding_size``, which are filled in. ``WRAPPERS`` are what goes around any of them, and ``--memory`` is next to a
loss of pairs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import nn

from dmlkernels import losses
from dmlkernels._losses import TABLE, Loss
from dmlkernels.train.config import JobError

LOSSES: dict[str, Loss] = {loss.name: loss for loss in TABLE}


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
    "alpha": {
        "type": float,
        "help": "ranked_list: boundary of the negatives; proxy_anchor (default 16) and multi_similarity: scale",
    },
    "beta": {"type": float, "help": "margin: boundary between both kinds; multi_similarity: scale of the negatives"},
    "learn_beta": {"action": "store_true", "help": "learn that boundary (margin)"},
    "nu": {"type": float, "help": "what keeps a learned boundary small (margin)"},
    "base": {"type": float, "help": "similarity that both kinds are compared with (multi_similarity)"},
    "epsilon": {"type": float, "help": "mine pairs within so much of the other kind (multi_similarity)"},
    "temperature": {"type": float, "help": "of the softmax (ntxent, supcon)"},
    "softmax_scale": {"type": float, "help": "factor of squared distances (nca: default 5, proxy_nca: default 9)"},
    "pos_margin": {"type": float, "help": "distance from which positives cost something (contrastive, lifted)"},
    "neg_margin": {"type": float, "help": "distance up to which negatives do (contrastive, lifted)"},
    "metric": {"choices": ("euclidean", "cosine"), "help": "what is compared (contrastive)"},
    "m": {"type": float, "help": "relaxation (circle)"},
    "gamma": {"type": float, "help": "circle: scale; soft_triple: temperature among a class's centers"},
    "la": {"type": float, "help": "scale of the softmax (soft_triple)"},
    "centers_per_class": {"type": int, "help": "centers of a class (soft_triple)"},
    "pos_temperature": {"type": float, "help": "weighting of the positives (ranked_list)"},
    "neg_temperature": {"type": float, "help": "weighting of the negatives (ranked_list)"},
    "neg_weight": {"type": float, "help": "weight of the negatives' term (ranked_list)"},
    "form": {"choices": ("tpami", "cvpr"), "help": "which paper's sum of the two terms (ranked_list)"},
    "negative": {
        "choices": ("hard", "semihard", "all", "distance_weighted"),
        "help": "which negatives count (triplet, nca: the first three; margin: the last two)",
    },
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
    memory: int = 0,
    memory_start: int = 0,
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
    asked = [*options, *(["easy_positive"] if easy_positive and "positive" not in entry.arguments else [])]
    for option in asked:
        if option not in entry.arguments:
            raise JobError(f"--loss {name} has no option {flag(option)}")
    if memory and not entry.pairs:
        raise JobError(f"--memory needs a loss of pairs, which {name} is not: leave it out, or --loss {name}")
    if expansion is not None and not entry.pairs and not entry.proxies:
        raise JobError(f"--expansion needs a loss of pairs or with proxies: leave it out, or --loss {name}")
    sizes = {"num_classes": num_classes, "embedding_size": embedding_size}
    chosen = {size: sizes[size] for size in entry.sizes} | dict(entry.job)
    if easy_positive:
        chosen |= entry.easy
    loss = _construct(f"--loss {name}", entry.module, **(chosen | dict(options)))
    if memory:
        arguments = {"embedding_size": embedding_size, "memory_size": memory, "start_step": memory_start}
        loss = _construct("--memory", "CrossBatchMemory", loss, **arguments)
    for wrapper, settings in (("expansion", expansion), ("anti_collapse", anti_collapse)):
        if settings is not None:
            loss = _construct(flag(wrapper), WRAPPERS[wrapper].module, loss, **settings)
    return loss


def _construct(asked: str, module: str, *inside: nn.Module, **arguments: Any) -> nn.Module:
    try:
        return getattr(losses, module)(*inside, **arguments)
    except ValueError as error:
        raise JobError(f"{asked}: {error}") from None
