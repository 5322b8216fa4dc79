"""What a run trains on and what it is judged by: label noise, and training classes held out for validation."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from dmlkernels.data import ImageSet, RetrievalData
from dmlkernels.train.config import JobError

HELD_OUT = 5  # one class in so many is held out


class _Subset(ImageSet):
    """Some rows of an image set, with labels of their own.

    Args:
        images: n images.
        rows: (k,) int64, indices into them.
        labels: (k,) int64.
    """

    def __init__(self, images: ImageSet, rows: Tensor, labels: Tensor) -> None:
        self._images, self._rows, self.labels = images, rows, labels
        self.channels, self.size = images.channels, images.size
        self.paths = None if images.paths is None else [images.paths[row] for row in rows.tolist()]

    def batch(self, indices: Tensor | Sequence[int]) -> Tensor:
        return self._images.batch(self._rows[torch.as_tensor(indices, dtype=torch.int64)])


def hold_out(data: RetrievalData, seed: int) -> RetrievalData:
    """Split the training classes at random: four fifths to train on, the rest in place of the test classes.

    Args:
        data: its test set and gallery are left alone, so that what is chosen with the result has never seen them.
        seed: equal seeds hold out the same classes.

    Returns:
        A data set without a gallery; training classes come first, as in every other.

    Raises:
        JobError: there are too few classes for two held-out ones.
    """
    classes = len(data.train.labels.unique())
    held = classes // HELD_OUT
    if held < 2:
        raise JobError(
            f"--validate holds out a fifth of the training classes, and {data.name} has only {classes}: "
            f"it needs at least {2 * HELD_OUT}"
        )
    order = torch.randperm(classes, generator=torch.Generator().manual_seed(seed))
    place = order.argsort()[data.train.labels]  # the class at place p of the order gets label p
    kept = (place < classes - held).nonzero()[:, 0]
    rest = (place >= classes - held).nonzero()[:, 0]
    return RetrievalData(
        name=f"{data.name}, training classes only",
        train=_Subset(data.train, kept, place[kept]),
        test=_Subset(data.train, rest, place[rest]),
        gallery=None,
        class_names=[data.class_names[index] for index in order.tolist()],
    )


def keep_test_classes(data: RetrievalData, count: int) -> RetrievalData:
    """The same training set, tested on the first `count` test classes only, or on all where there are fewer."""
    kept = data.test.labels.unique()[:count]

    def part(images: ImageSet) -> ImageSet:
        rows = torch.isin(images.labels, kept).nonzero()[:, 0]
        return _Subset(images, rows, images.labels[rows])

    gallery = None if data.gallery is None else part(data.gallery)
    return dataclasses.replace(data, test=part(data.test), gallery=gallery)


def add_noise(labels: Tensor, fraction: float, seed: int) -> Tensor:
    """Symmetric label noise: a share of the labels, drawn at random, moves to any other class with equal chances.

    Args:
        labels: (n,) int64 of at least two classes.
        fraction: share of the n labels that become wrong, in [0, 1).
        seed: equal seeds give equal noise.

    Returns:
        (n,) labels, exactly round(fraction · n) of them wrong.

    Example:
        >>> add_noise(torch.tensor([0, 0, 1, 1]), 0.5, seed=0)
    """
    generator = torch.Generator().manual_seed(seed)
    classes, place = labels.unique(return_inverse=True)
    wrong = torch.randperm(len(labels), generator=generator)[: round(fraction * len(labels))]
    steps = torch.randint(1, len(classes), (len(wrong),), generator=generator)
    noisy = labels.clone()
    noisy[wrong] = classes[(place[wrong] + steps) % len(classes)]
    return noisy
