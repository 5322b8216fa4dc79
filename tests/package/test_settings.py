"""A test that leaves a setting of torch changed is seen, and the next one has the old value."""

from __future__ import annotations

import pytest
import torch
from support import settings

OTHERS = {
    "deterministic algorithms": "default",
    "default dtype": torch.float64,
    "precision of products": "high",
    "number of threads": 3,
    "recording of gradients": False,
    "anomaly detection": True,
}


@pytest.mark.parametrize("name", settings.SETTINGS)
def test_a_leak_is_seen_and_mended(name):
    read, write = settings.SETTINGS[name]
    before = read()
    with pytest.raises(AssertionError, match=f"left changed: {name}"), settings.kept():
        write(OTHERS[name])
    assert read() == before


@pytest.mark.parametrize("name", settings.SETTINGS)
def test_a_change_for_a_block(name):
    read = settings.SETTINGS[name].read
    before = read()
    with settings.kept(), settings.changed(name, OTHERS[name]):
        assert read() != before
    assert read() == before
