"""Small trees of images in every layout on disk, and the check that bad data are refused."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from PIL import Image

from dmlkernels.data import DataError

SPECS = ("folder", "cars", "sop", "inshop", "npz")


@contextmanager
def refused(message: str) -> Iterator[None]:
    """The data are refused, in one sentence that holds this pattern."""
    with pytest.raises(DataError, match=message) as caught:
        yield
    assert re.fullmatch(r"[^\n]+\.", str(caught.value))


def shade(cls: int, index: int) -> int:
    """A gray level that tells which image this is."""
    return 20 * cls + 4 * index


def draw(path: Path, level: int, size: tuple[int, int] = (10, 10), mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, level).convert(mode).save(path)
    return path


def folder_tree(root: Path, classes: int = 6, per_class: int = 3) -> Path:
    for cls in range(classes):
        for index in range(per_class):
            draw(root / f"{cls + 1:03d}.Bird" / f"{index}.png", shade(cls, index))
    return root


def cars_tree(root: Path, classes: int = 6, per_class: int = 3) -> Path:
    rows = []
    for cls in reversed(range(classes)):
        for index in range(per_class):
            name = f"car_ims/{cls * per_class + index:06d}.png"
            draw(root / name, shade(cls, index))
            rows.append((name, 1, 1, 9, 9, cls + 1, index % 2))
    fields = ["relative_im_path", "bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "test"]
    annotations = np.zeros((1, len(rows)), dtype=[(field, object) for field in fields])
    for place, row in enumerate(rows):
        annotations[0, place] = row
    scipy.io.savemat(root / "cars_annos.mat", {"annotations": annotations})
    return root


def sop_tree(root: Path, classes: int = 6, per_class: int = 3) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    number = 0
    for list_name, part in (("Ebay_train.txt", range(classes // 2)), ("Ebay_test.txt", range(classes // 2, classes))):
        lines = ["image_id class_id super_class_id path"]
        for cls in part:
            for index in range(per_class):
                number += 1
                path = f"bicycle_final/{cls}_{index}.png"
                draw(root / path, shade(cls, index))
                lines.append(f"{number} {cls + 1} 1 {path}")
        (root / list_name).write_text("\n".join(lines) + "\n")
    return root


def inshop_tree(root: Path, classes: int = 6, per_class: int = 3, nested: bool = True) -> Path:
    lines = []
    for cls in range(classes):
        for index in range(per_class):
            path = f"img/WOMEN/Dresses/id_{cls + 1:08d}/{index:02d}_front.png"
            draw(root / ("Img" if nested else ".") / path, shade(cls, index))
            status = "train" if cls < classes // 2 else "query" if index == 0 else "gallery"
            lines.append(f"{path}    id_{cls + 1:08d}    {status}")
    table = root / ("Eval" if nested else ".") / "list_eval_partition.txt"
    table.parent.mkdir(exist_ok=True)
    table.write_text("\n".join([str(len(lines)), "image_name item_id evaluation_status", *lines]))
    return root


def arrays(classes: int = 6, per_class: int = 3) -> dict[str, np.ndarray]:
    levels = [shade(cls, index) for cls in range(classes) for index in range(per_class)]
    images = np.array(levels, dtype=np.uint8)[:, None, None, None] * np.ones((1, 10, 10, 3), dtype=np.uint8)
    return {"images": images, "labels": np.repeat(np.arange(classes) + 1, per_class)}


def npz_file(root: Path, **changed: np.ndarray | None) -> Path:
    root.mkdir(exist_ok=True)
    held = {name: array for name, array in {**arrays(), **changed}.items() if array is not None}
    np.savez(root / "data.npz", **held)
    return root / "data.npz"


BUILD = {"folder": folder_tree, "cars": cars_tree, "sop": sop_tree, "inshop": inshop_tree, "npz": npz_file}
