"""What every source of images has in common: image sets, their labels, and the checks on both."""

from __future__ import annotations

import abc
import importlib
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from .. import _checks

FILE_SIZE = 64
_T = TypeVar("_T")


class DataError(ValueError):
    """Data that cannot be used; the message is one sentence that says what to change."""


def require(module: str) -> Any:
    """Import an optional dependency, or say how to get it: the package itself needs only torch and NumPy."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise DataError(f"{package} is missing: run `pip install dmlkernels[train]` to read images.") from error


class ImageSet(abc.ABC):
    """Labelled square images, decoded batch by batch.

    Attributes:
        labels: (n,) int64, indices into `RetrievalData.class_names`.
        channels: 1 or more.
        size: side of the images in pixels.
        paths: n files, or None where the images are not files.
    """

    labels: Tensor
    channels: int
    size: int
    paths: list[Path] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @abc.abstractmethod
    def batch(self, indices: Tensor | Sequence[int]) -> Tensor:
        """Return the images at `indices` (b,) as float32 (b, channels, size, size) in [0, 1]."""


class ArrayImages(ImageSet):
    """Images held in memory as bytes, resized on the way out so that memory does not grow with `size`.

    Args:
        images: (n, C, H, W) uint8; the longer side is cropped to the centre.
        labels: (n,) int64.
        size: side of the images given out; None: min(H, W).
    """

    def __init__(self, images: Tensor, labels: Tensor, size: int | None = None) -> None:
        height, width = images.shape[2:]
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        self._images = images[:, :, top : top + side, left : left + side]
        self.labels = labels
        self.channels = images.shape[1]
        self.size = size or side

    def batch(self, indices: Tensor | Sequence[int]) -> Tensor:
        images = self._images[torch.as_tensor(indices, dtype=torch.int64)].float() / 255
        if self.size != images.shape[-1]:
            images = interpolate(images, size=(self.size, self.size), mode="bilinear", antialias=True)
        return images


class FileImages(ImageSet):
    """Image files, decoded to RGB when asked for: scaled to the short side, cropped to the centre.

    Args:
        paths: n files. Every header is read at once, so that a missing or broken file shows before training starts.
        labels: (n,) int64.
        size: side of the images given out; None: 64.

    Raises:
        DataError: a file is missing or is no image; `batch` raises it too, for a file that is cut short.
    """

    channels = 3

    def __init__(self, paths: Sequence[Path], labels: Tensor, size: int | None = None) -> None:
        self._pil = require("PIL.Image")
        self._ops = require("PIL.ImageOps")
        self.paths: list[Path] = list(paths)
        self.labels = labels
        self.size = size or FILE_SIZE
        _in_threads(self._check_header, self.paths)

    def batch(self, indices: Tensor | Sequence[int]) -> Tensor:
        rows = torch.as_tensor(indices, dtype=torch.int64).tolist()
        images = _in_threads(self._decode, [self.paths[row] for row in rows])
        if not images:
            return torch.empty(0, self.channels, self.size, self.size)
        return torch.stack(images).permute(0, 3, 1, 2).float() / 255

    def _check_header(self, path: Path) -> None:
        if not path.is_file():
            raise DataError(f"image {path} does not exist: restore it or take it out of the list.")
        self._open(path, lambda image: None)

    def _decode(self, path: Path) -> Tensor:
        def to_bytes(image: Any) -> Tensor:
            # A JPEG decoder can stop at 1/2, 1/4 or 1/8 of the full side, which costs a fraction of the time.
            image.draft("RGB", (self.size, self.size))
            if image.mode == "F":
                raise ValueError("its pixels are floats; save it with 8 bits")
            if image.mode.startswith("I"):  # Pillow would clip 16 bits to 8 instead of scaling them
                image = image.convert("I").point(lambda value: value * (1 / 257)).convert("L")
            upright = self._ops.exif_transpose(image).convert("RGB")
            square = self._ops.fit(upright, (self.size, self.size), self._pil.Resampling.BILINEAR)
            return torch.frombuffer(bytearray(square.tobytes()), dtype=torch.uint8).view(self.size, self.size, 3)

        return self._open(path, to_bytes)

    def _open(self, path: Path, use: Callable[[Any], _T]) -> _T:
        try:
            with self._pil.open(path) as image:
                return use(image)
        except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error and more
            raise DataError(f"image {path} is broken ({error}): replace it or take it out.") from error


@dataclass
class RetrievalData:
    """A training set and a retrieval test on classes that are not in it.

    Attributes:
        name: what `load` was asked for.
        train: images to train on.
        test: queries.
        gallery: what the queries are searched in; None: the other test images (leave one out).
        class_names: C names, indexed by the labels of all sets.
    """

    name: str
    train: ImageSet
    test: ImageSet
    gallery: ImageSet | None
    class_names: list[str]


def merge_classes(labels: Tensor, group: int, seed: int) -> Tensor:
    """Merge classes at random, `group` at a time: coarse labels whose classes have several modes.

    Args:
        labels: (n,) integers, any values.
        group: classes per merged class; the last merged class takes what is left. 1 changes nothing.
        seed: equal seeds give equal merges.

    Returns:
        (n,) int64, in [0, ceil(C / group)), or `labels` unchanged for group 1.

    Raises:
        ValueError: `group` is below 1.

    Example:
        >>> merge_classes(torch.tensor([5, 5, 7, 9, 11]), 2, seed=0).unique()
        tensor([0, 1])
    """
    group = _checks.whole("merge_classes", "group", group, 1, "at least 1")
    seed = _checks.integer("merge_classes", "seed", seed)
    if group == 1:
        return labels
    classes, inverse = labels.unique(return_inverse=True)
    order = torch.randperm(len(classes), generator=torch.Generator().manual_seed(seed)).to(labels.device)
    return (order // group)[inverse]


def number_classes(
    name: str, train: Sequence[Any], test: Sequence[Any], gallery: Sequence[Any] | None = None
) -> tuple[list[str], Tensor, Tensor, Tensor | None]:
    """Turn class keys into labels, training classes first, and check that training and testing on them is possible.

    Args:
        name: the data set, for messages.
        train: n_train class keys, integers or strings.
        test: n_test class keys.
        gallery: n_gallery class keys, or None for leave-one-out.

    Returns:
        class names, train labels, test labels and gallery labels (None without a gallery).
    """
    trained, tested, stored = Counter(train), Counter(test), Counter(gallery or [])
    for part, counts in (("training", trained), ("test", tested)):
        if len(counts) < 2:
            raise DataError(f"{name}: {len(counts)} {part} classes are too few, at least 2 are needed; add more.")
        for key, count in counts.items():
            if count < 2 and (counts is trained or gallery is None):
                raise DataError(f"{name}: {part} class {key} has 1 image, at least 2 are needed; add one or drop it.")
    for key in trained:
        if key in tested or key in stored:
            raise DataError(f"{name}: class {key} is both a training and a test class; keep the two disjoint.")
    for key in tested:
        if gallery is not None and key not in stored:
            raise DataError(f"{name}: class {key} has query images but none in the gallery; add one or drop it.")
    ordered = [*sorted(trained), *sorted(tested | stored)]
    label = {key: index for index, key in enumerate(ordered)}
    train_labels, test_labels, gallery_labels = (
        torch.tensor([label[key] for key in keys], dtype=torch.int64) for keys in (train, test, gallery or [])
    )
    return [str(key) for key in ordered], train_labels, test_labels, None if gallery is None else gallery_labels


def first_half(name: str, keys: Sequence[Any]) -> set[Any]:
    """Return the first half of the sorted classes, which is the training half of CUB (100) and Cars (98)."""
    classes = sorted(set(keys))
    if len(classes) < 4:
        raise DataError(f"{name} has {len(classes)} classes: at least 4 are needed, half of them for testing.")
    return set(classes[: len(classes) // 2])


def _in_threads(work: Callable[[Path], _T], paths: Sequence[Path]) -> list[_T]:
    # Pillow releases the interpreter lock while it decodes.
    with ThreadPoolExecutor(max_workers=torch.get_num_threads()) as pool:
        return list(pool.map(work, paths))
