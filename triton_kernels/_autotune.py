"""A search for block sizes, with DMLKERNELS_AUTOTUNE=1 only. Its winners are committed: a file for each device name.

The first call of an operator with rows of a new width or dtype is timed with every candidate, which takes minutes. No
other process ever searches: it takes what the files say, and what `_configs` pins otherwise.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import triton
from triton.runtime.errors import OutOfResources

from . import _configs
from ._configs import Config


def candidates(square: bool) -> Iterator[Config]:
    sides = [(64, 64), (128, 128)] if square else [(64, 32), (64, 64), (128, 64), (128, 128)]
    for (m, n), k, d, warps, stages in itertools.product(sides, (32, 64), (32, 64, 128), (4, 8), (2, 3)):
        yield Config(m, n, k, d, warps, stages)


def milliseconds(call: Callable[[], Any]) -> float:
    return float(triton.testing.do_bench(call, return_mode="median"))


def searched(function: Callable[..., Any], arguments: Sequence[Any], device: str) -> Any:
    """The operator's result, after a search for every configuration that it asks for and `device` has none of.

    Operators leave their arguments alone, so they can be run again.
    """
    with _configs.noted() as asked:
        result = function(*arguments)
    table = _configs.tuned(device)
    for key, square in asked.items():
        if key in table:
            continue
        times: dict[Config, float] = {}
        for config in candidates(square):
            with _configs.trial(key, config):
                try:
                    times[config] = milliseconds(lambda: function(*arguments))
                except OutOfResources:
                    continue  # more shared memory or registers than this device has
        table[key] = min(times, key=times.__getitem__)
        _write(device, table)
    return result


def _write(device: str, table: dict[str, Config]) -> None:
    path = _configs.tuned_file(device)
    path.parent.mkdir(exist_ok=True)
    content = {"device": device, "configs": {key: config._asdict() for key, config in sorted(table.items())}}
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
