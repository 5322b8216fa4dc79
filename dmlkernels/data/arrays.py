"""Images in one NumPy archive: `images`, `labels`, and optionally `test_images`, `test_labels`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .images import ArrayImages, DataError, RetrievalData, first_half, number_classes


def load_npz(path: Path, *, size: int | None = None) -> RetrievalData:
    """Load an .npz archive of images (n, H, W) or (n, H, W, C), uint8 or floats in [0, 1], and labels (n,)."""
    name = f"npz:{path}"
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in archive.files}
    except Exception as error:  # NumPy and zipfile raise many kinds for a file that is no archive or is cut short
        raise DataError(f"{path} is not a readable .npz archive ({error}): write it with numpy.savez.") from error
    images, keys = _pair(name, arrays, "images", "labels")
    if "test_images" in arrays or "test_labels" in arrays:
        test_images, test_keys = _pair(name, arrays, "test_images", "test_labels")
        if test_images.shape[1:] != images.shape[1:]:
            raise DataError(
                f"{name}: test_images are {tuple(test_images.shape[1:])} but images {tuple(images.shape[1:])} "
                "(channels, height, width); make them alike."
            )
    else:
        half = first_half(name, keys)
        trained = torch.tensor([key in half for key in keys])
        test_images, test_keys = images[~trained], [key for key in keys if key not in half]
        images, keys = images[trained], [key for key in keys if key in half]
    class_names, train_labels, test_labels, _ = number_classes(name, keys, test_keys)
    return RetrievalData(
        name=name,
        train=ArrayImages(images, train_labels, size),
        test=ArrayImages(test_images, test_labels, size),
        gallery=None,
        class_names=class_names,
    )


def _pair(name: str, arrays: dict[str, np.ndarray], images_key: str, labels_key: str) -> tuple[Tensor, list]:
    """Return the images as (n, C, H, W) uint8, and their class keys."""
    for key in (images_key, labels_key):
        if key not in arrays:
            raise DataError(f"{name} has no array `{key}`: it holds {', '.join(sorted(arrays)) or 'nothing'}.")
    images, labels = arrays[images_key], arrays[labels_key]
    if images.ndim not in (3, 4) or 0 in images.shape:
        raise DataError(f"{name}: `{images_key}` must be (n, H, W) or (n, H, W, C) and not empty, got {images.shape}.")
    if labels.shape != images.shape[:1] or labels.dtype.kind not in "iuU":
        raise DataError(
            f"{name}: `{labels_key}` must be {len(images)} integers or strings, one per image, "
            f"got {labels.dtype} {labels.shape}."
        )
    if images.dtype.kind == "f":
        if not (images.min() >= 0 and images.max() <= 1):
            raise DataError(f"{name}: floats in `{images_key}` must lie in [0, 1]; scale them or store uint8.")
        images = np.rint(images * 255).astype(np.uint8)
    if images.dtype != np.uint8:
        raise DataError(f"{name}: `{images_key}` must be uint8 or floats in [0, 1], got {images.dtype}.")
    channels_last = torch.from_numpy(images if images.ndim == 4 else images[..., None])
    return channels_last.permute(0, 3, 1, 2).contiguous(), labels.tolist()
