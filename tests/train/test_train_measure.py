"""Time and peak memory of a loss, and what is reported where they cannot be measured."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dmlkernels.train import measure, report
from dmlkernels.train.config import JobError


def test_peak_memory_counts_what_was_freed_again() -> None:
    size = 96 << 20

    def take() -> None:
        kept = torch.ones(size // 8)  # half of it lives on, the other half only beside it
        _ = torch.ones(size // 8)
        del kept

    peak = measure.peak_extra_bytes(take, take)
    if not Path("/proc/self/clear_refs").exists():
        assert peak is None
        return
    assert peak is not None
    assert 0.98 * size < peak < 1.1 * size
    nothing = measure.peak_extra_bytes(lambda: None)
    assert nothing is not None
    assert nothing < 4 << 20


def test_peak_memory_is_none_where_the_system_has_no_mark(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(field: str) -> int:
        raise FileNotFoundError(field)

    monkeypatch.setattr(measure, "_status", missing)
    assert measure.peak_extra_bytes(lambda: None) is None
    result = {"config": {"validate": False}, "seed": 0, "wrong_labels": 0} | dict.fromkeys(
        ("train_images", "train_classes", "test_images"), 1
    )
    result |= {"test_classes": 1, "batch": 8, "seconds_training": 1.0, "fused_kernels": False}
    result |= {f"{name}_{when}": 0.5 for name in ("map_at_r", "effective_rank") for when in ("before", "after")}
    result |= {f"recall_at_{k}_{when}": 0.5 for k in (1, 2, 4) for when in ("before", "after")}
    for backend in ("fused", "reference"):
        result |= {f"step_time_{backend}": 0.1, f"peak_extra_bytes_{backend}": None}
    printed = report.summary(result, "here")
    assert "unknown" in printed
    assert "No compiled kernels ran" in printed


def test_a_failing_measurement_says_why() -> None:
    loss = {"name": "nothing", "options": {}, "easy_positive": False, "num_classes": 2, "embedding_size": 4}
    with pytest.raises(JobError, match=r"measurement .* failed: .*--loss nothing"):
        measure.compare_backends(loss, torch.eye(4), torch.tensor([0, 0, 1, 1]), ("reference",))
