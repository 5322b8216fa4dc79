"""What a training step is made of: the augmentation of its images and its learning rate."""

from __future__ import annotations

import pytest
import torch

from dmlkernels.train import optimizer
from dmlkernels.train.augment import Augment


def test_augmentation_moves_each_image_on_its_own_and_repeats_with_its_generator() -> None:
    images = torch.rand(1, 1, 16, 16, generator=torch.Generator().manual_seed(0)).expand(6, 2, 16, 16)
    moved = Augment(flip=True)(images, torch.Generator().manual_seed(3))
    assert torch.equal(moved, Augment(flip=True)(images, torch.Generator().manual_seed(3)))
    assert moved.shape == images.shape
    assert all(not torch.equal(moved[0], other) for other in moved[1:])


def test_augmentation_by_nothing_is_the_identity_and_mirrors_are_exact() -> None:
    images = torch.rand(32, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    still = {"degrees": 0.0, "scale": 0.0, "shear": 0.0, "shift": 0.0, "noise": 0.0}
    torch.testing.assert_close(Augment(**still)(images, torch.Generator()), images)
    mirrored = Augment(**still, flip=True)(images, torch.Generator().manual_seed(0))
    same = [bool(torch.isclose(one, other, atol=1e-5).all()) for one, other in zip(images, mirrored, strict=True)]
    turned = [
        bool(torch.isclose(one.flip(-1), other, atol=1e-5).all()) for one, other in zip(images, mirrored, strict=True)
    ]
    assert all(a != b for a, b in zip(same, turned, strict=True))
    assert 4 < sum(turned) < 28


def test_one_cycle_rises_falls_and_survives_one_step() -> None:
    factor = optimizer.one_cycle(100)
    assert factor(0) == pytest.approx(0.04)
    assert factor(30) == pytest.approx(1.0)
    assert factor(100) == pytest.approx(1e-3)
    assert max(factor(step) for step in range(100)) == pytest.approx(1.0)
    assert 0 < optimizer.one_cycle(1)(0) <= 1
