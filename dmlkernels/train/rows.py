"""The six methods that the demo and `bench/studies/methods.py` compare, so that both mean the same by a name."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

LR = 1e-2  # the peak, of all rows; chosen on held-out training classes (docs/methods.md)
MERGED = 4  # classes that share a label in the last two rows


@dataclasses.dataclass(frozen=True)
class Row:
    """One method on one kind of labels.

    Args:
        name: of its folder and in JSON.
        title: in tables and pictures.
        settings: arguments of `TrainConfig` beside those that all rows share.
    """

    name: str
    title: str
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def merged(self) -> bool:
        return "merge_classes" in self.settings


_ANTI_COLLAPSE = {"on": "features", "form": "neg_rate", "weight": 1e-3}
_PROXY_ANCHOR = {"loss": "proxy_anchor", "loss_options": {"alpha": 16.0}}
_EASY = {"easy_positive": True, "loss_options": {"margin": 0.8}}

ROWS = (
    Row("rll", "RLL"),
    Row("rll-anti-collapse", "RLL + Anti-Collapse", {"anti_collapse": _ANTI_COLLAPSE}),
    Row("proxy-anchor", "Proxy-Anchor", _PROXY_ANCHOR),
    Row("proxy-anchor-expansion", "Proxy-Anchor + expansion", {**_PROXY_ANCHOR, "expansion": {}}),
    Row("merged-rll", "RLL", {"merge_classes": MERGED}),
    Row("merged-rll-easy", "RLL, easy positives", {**_EASY, "merge_classes": MERGED}),
)
