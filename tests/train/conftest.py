"""Fixtures of the training job's tests: tiny images, and runs without what costs most of their time."""

from __future__ import annotations

import pytest
from support.jobs import COST, PICTURES, npz  # noqa: F401 (a fixture)

from dmlkernels.train import measure, pictures


@pytest.fixture
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the child process that measures the loss; one test runs it."""
    monkeypatch.setattr(
        measure, "compare_backends", lambda loss, embeddings, labels, backends, device: dict.fromkeys(backends, COST)
    )


@pytest.fixture
def no_pictures(cheap: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the pictures too, where a test is about numbers."""
    for name in PICTURES:
        monkeypatch.setattr(pictures, name.removesuffix(".png"), lambda *_: None)
