"""Image sets for training and testing embeddings: glyphs rendered here, and a user's own images.

Every source ends in one `RetrievalData`: a training set, and a test set whose classes were never trained on. Labels
count from 0 and index `class_names`; training classes come first.
"""

from __future__ import annotations

from pathlib import Path

from .._checks import is_integer
from .arrays import load_npz
from .folders import load_cars, load_folder, load_inshop, load_sop
from .glyphs import load_glyphs
from .images import ArrayImages, DataError, FileImages, ImageSet, RetrievalData, merge_classes

__all__ = ["ArrayImages", "DataError", "FileImages", "ImageSet", "RetrievalData", "load", "merge_classes"]

_FROM_PATH = {"folder": load_folder, "sop": load_sop, "cars": load_cars, "inshop": load_inshop, "npz": load_npz}
_CHOICES = ", ".join(["glyphs", *(f"{kind}:PATH" for kind in _FROM_PATH)])


def load(spec: str, *, size: int | None = None, seed: int = 0) -> RetrievalData:
    """Load the data set that `spec` names.

    Args:
        spec: `glyphs` (rendered from matplotlib's fonts, no download); `folder:PATH` (one sub-folder per class, the
            first half of the sorted names for training); `sop:PATH` (Ebay_train.txt, Ebay_test.txt); `cars:PATH`
            (cars_annos.mat); `inshop:PATH` (list_eval_partition.txt); `npz:PATH` (arrays `images`, `labels`, optional
            `test_images`, `test_labels`).
        size: side of the square images in pixels. None: 32 for glyphs, the arrays' own for npz, 64 for image files.
        seed: decides which half of the glyph classes is trained on; the other sources have a fixed split.

    Returns:
        A `RetrievalData` with disjoint training and test classes.

    Raises:
        DataError: the spec is unknown, or the data cannot be used; the message says what to change.

    Example:
        >>> data = load("glyphs")
        >>> data.train.batch(torch.arange(4)).shape
        torch.Size([4, 1, 32, 32])
    """
    if size is not None and (not is_integer(size) or size < 1):
        raise DataError(f"size must be an integer of at least 1 pixel, got {size!r}.")
    if not is_integer(seed):
        raise DataError(f"seed must be an integer, got {seed!r}.")
    kind, colon, path = spec.partition(":")
    if kind == "glyphs" and not colon:
        return load_glyphs(size=size, seed=seed)
    if kind not in _FROM_PATH:
        raise DataError(f"unknown data set {spec!r}: choose one of {_CHOICES}.")
    if not path:
        raise DataError(f"{kind!r} needs a path, as in {kind}:PATH.")
    root = Path(path).expanduser()
    if not root.exists():
        raise DataError(f"{root} does not exist: give the path of the data in {kind}:PATH.")
    return _FROM_PATH[kind](root, size=size)
