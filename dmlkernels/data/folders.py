"""Image files on disk: one folder per class, and the official layouts of SOP, Cars-196 and In-Shop."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from .images import DataError, FileImages, RetrievalData, first_half, number_classes, require

SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}


def load_folder(root: Path, *, size: int | None = None) -> RetrievalData:
    """Load `root/CLASS/*.jpg`: the first half of the sorted class names is trained on (CUB-200: 100 / 100)."""
    if not root.is_dir():
        raise DataError(f"{root} is not a folder: folder:PATH takes a folder with one sub-folder per class.")
    classes = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not classes:
        raise DataError(f"{root} has no sub-folders: put the images of each class in a sub-folder of its own.")
    items = []
    for folder in classes:
        files = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.name[0] != ".")
        if not files:
            raise DataError(f"{folder} holds no images: add some or remove the sub-folder.")
        items += [(folder.name, file) for file in files]
    return _by_halves(f"folder:{root}", items, size)


def load_cars(root: Path, *, size: int | None = None) -> RetrievalData:
    """Load Cars-196 from `cars_annos.mat`: the first half of the class numbers is trained on (98 / 98)."""
    table = _listed(root, "cars_annos.mat")
    scipy_io = require("scipy.io")
    try:
        annotations = scipy_io.loadmat(str(table), squeeze_me=True)["annotations"]
        columns = (annotations[field].ravel().tolist() for field in ("class", "relative_im_path"))
        rows = [(int(cls), root / str(path)) for cls, path in zip(*columns, strict=True)]
    except Exception as error:  # scipy raises many kinds for a file that is cut short or is no .mat at all
        raise DataError(
            f"{table} has no readable `annotations` with relative_im_path and class: download cars_annos.mat again."
        ) from error
    return _by_halves(f"cars:{root}", rows, size)


def load_sop(root: Path, *, size: int | None = None) -> RetrievalData:
    """Load Stanford Online Products from `Ebay_train.txt` and `Ebay_test.txt` (11,318 / 11,316 classes)."""
    name = f"sop:{root}"
    parts: list[list[tuple[int, Path]]] = []
    for list_name in ("Ebay_train.txt", "Ebay_test.txt"):
        table = _listed(root, list_name)
        part = []
        for number, (_, cls, _, path) in _rows(table, skip=1, fields="image_id class_id super_class_id path"):
            if not cls.isdigit():
                raise DataError(f"{table} line {number}: class_id must be a number, got {cls!r}.")
            part.append((int(cls), root / path))
        parts.append(part)
    train, test = parts
    class_names, train_labels, test_labels, _ = number_classes(name, _keys(train), _keys(test))
    return RetrievalData(
        name=name,
        train=FileImages(_paths(train), train_labels, size),
        test=FileImages(_paths(test), test_labels, size),
        gallery=None,
        class_names=class_names,
    )


def load_inshop(root: Path, *, size: int | None = None) -> RetrievalData:
    """Load In-Shop Clothes from `list_eval_partition.txt`: separate training, query and gallery images."""
    name = f"inshop:{root}"
    table = _listed(root, "list_eval_partition.txt", "Eval/list_eval_partition.txt")
    # The list's paths begin with img/, and the archive unpacks either beside the list or into Img/.
    images = root / "Img" if (root / "Img" / "img").is_dir() else root
    parts: dict[str, list[tuple[str, Path]]] = {"train": [], "query": [], "gallery": []}
    for number, (path, item, status) in _rows(table, skip=2, fields="image_name item_id evaluation_status"):
        if status not in parts:
            raise DataError(f"{table} line {number}: evaluation_status is {status!r}, not train, query or gallery.")
        parts[status].append((item, images / path))
    train, query, gallery = parts.values()
    class_names, train_labels, query_labels, gallery_labels = number_classes(
        name, _keys(train), _keys(query), _keys(gallery)
    )
    assert gallery_labels is not None
    return RetrievalData(
        name=name,
        train=FileImages(_paths(train), train_labels, size),
        test=FileImages(_paths(query), query_labels, size),
        gallery=FileImages(_paths(gallery), gallery_labels, size),
        class_names=class_names,
    )


def _by_halves(name: str, items: list[tuple], size: int | None) -> RetrievalData:
    trained = first_half(name, _keys(items))
    train = [item for item in items if item[0] in trained]
    test = [item for item in items if item[0] not in trained]
    class_names, train_labels, test_labels, _ = number_classes(name, _keys(train), _keys(test))
    return RetrievalData(
        name=name,
        train=FileImages(_paths(train), train_labels, size),
        test=FileImages(_paths(test), test_labels, size),
        gallery=None,
        class_names=class_names,
    )


def _listed(root: Path, *names: str) -> Path:
    for name in names:
        if (root / name).is_file():
            return root / name
    raise DataError(f"{root} has no {' or '.join(names)}: give the folder that holds it.")


def _rows(table: Path, skip: int, fields: str) -> Iterator[tuple[int, list[str]]]:
    """Yield line number and fields of each line after the header."""
    width = len(fields.split())
    try:
        lines = table.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{table} is not a text file: download it again.") from error
    for number, line in enumerate(lines[skip:], start=skip + 1):
        values = line.split(maxsplit=width - 1)
        if not values:
            continue
        if len(values) != width:
            raise DataError(f"{table} line {number}: expected `{fields}`, got {line.strip()!r}.")
        yield number, values


def _keys(items: list[tuple]) -> list:
    return [key for key, _ in items]


def _paths(items: list[tuple]) -> list[Path]:
    return [path for _, path in items]
