"""What torch keeps for the whole process, and a test that changes it has to put back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch


class Setting(NamedTuple):
    read: Callable[[], Any]
    write: Callable[[Any], object]


SETTINGS = {
    "deterministic algorithms": Setting(torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode),
    "default dtype": Setting(torch.get_default_dtype, torch.set_default_dtype),
    "precision of products": Setting(torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    "number of threads": Setting(torch.get_num_threads, torch.set_num_threads),
    "recording of gradients": Setting(torch.is_grad_enabled, torch.set_grad_enabled),
    "anomaly detection": Setting(torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly),
}


@contextmanager
def kept() -> Iterator[None]:
    """Fail if a setting is another one at the end, and put it back for those who come after."""
    before = {name: setting.read() for name, setting in SETTINGS.items()}
    yield
    changed = [name for name, setting in SETTINGS.items() if setting.read() != before[name]]
    for name in changed:
        SETTINGS[name].write(before[name])
    assert not changed, f"left changed: {', '.join(changed)}"


@contextmanager
def changed(name: str, value: Any) -> Iterator[None]:
    """A setting for the time of a block."""
    read, write = SETTINGS[name]
    before = read()
    write(value)
    try:
        yield
    finally:
        write(before)


def deterministic(on: bool) -> Any:
    """Deterministic algorithms for the time of a block, or any."""
    return changed("deterministic algorithms", "error" if on else "default")
