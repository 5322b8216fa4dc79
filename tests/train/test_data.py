"""Image sets: what every layout has in common, the names of the sets, and what loading them needs."""

import builtins
import importlib.util

import pytest
import scipy.io
import torch
from support.data_cases import BUILD, SPECS, arrays, folder_tree, npz_file, refused, shade

from dmlkernels.data import load
from dmlkernels.data.images import require


@pytest.mark.parametrize("kind", SPECS)
class TestLayouts:
    def test_split_labels_and_pixels(self, kind, tmp_path):
        data = load(f"{kind}:{BUILD[kind](tmp_path)}", size=8)
        parts = [data.train, data.test] if data.gallery is None else [data.train, data.test, data.gallery]
        assert len(data.class_names) == 6
        assert data.train.labels.unique().tolist() == [0, 1, 2]
        assert data.test.labels.unique().tolist() == [3, 4, 5]
        assert [len(part) for part in parts] == ([9, 3, 6] if kind == "inshop" else [9, 9])
        levels = []
        for part in parts:
            assert (part.channels, part.size, part.labels.dtype) == (3, 8, torch.int64)
            order = torch.randperm(len(part), generator=torch.Generator().manual_seed(1))
            images = part.batch(order)
            assert images.shape == (len(part), 3, 8, 8)
            assert images.dtype == torch.float32
            flat = (images * 255).flatten(1)
            assert torch.allclose(flat.amax(1), flat.amin(1), atol=1e-3)
            # The label of each row is that of the class whose gray level the row shows.
            assert torch.equal((flat[:, 0].round() / 20).floor().long(), part.labels[order])
            levels += flat[:, 0].round().int().tolist()
        assert sorted(levels) == sorted(shade(cls, index) for cls in range(6) for index in range(3))

    def test_default_size_and_paths(self, kind, tmp_path):
        data = load(f"{kind}:{BUILD[kind](tmp_path)}")
        assert data.train.size == (10 if kind == "npz" else 64)
        assert data.train.batch([0]).shape[2:] == (data.train.size,) * 2
        if kind == "npz":
            assert data.train.paths is None
        else:
            assert len(data.train.paths) == len(data.train)
            assert all(path.is_file() for path in data.train.paths)

    def test_empty_batch(self, kind, tmp_path):
        data = load(f"{kind}:{BUILD[kind](tmp_path)}", size=8)
        assert data.train.batch([]).shape == (0, 3, 8, 8)

    def test_name(self, kind, tmp_path):
        spec = f"{kind}:{BUILD[kind](tmp_path)}"
        assert load(spec).name == spec

    def test_too_few_classes(self, kind, tmp_path):
        if kind == "npz":
            path = npz_file(tmp_path, **arrays(classes=3))
        else:
            path = BUILD[kind](tmp_path, classes=3)
        with refused(r"at least [24] are needed"):
            load(f"{kind}:{path}")

    def test_class_with_one_image(self, kind, tmp_path):
        if kind == "npz":
            path = npz_file(tmp_path, **arrays(per_class=1))
        else:
            path = BUILD[kind](tmp_path, per_class=1)
        with refused(r"training class \S+ has 1 image, at least 2 are needed"):
            load(f"{kind}:{path}")

    def test_missing_path(self, kind, tmp_path):
        with refused(f"{tmp_path}/nowhere does not exist: give the path of the data in {kind}:"):
            load(f"{kind}:{tmp_path}/nowhere")

    def test_no_path(self, kind):
        with refused(f"'{kind}' needs a path, as in {kind}:PATH"):
            load(f"{kind}:")


@pytest.mark.parametrize("spec", ["", "mnist", "cub:/data", "glyphs:now", "folder", "Folder:/data"])
def test_unknown_spec_lists_the_choices(spec):
    choices = "glyphs, folder:PATH, sop:PATH, cars:PATH, inshop:PATH, npz:PATH"
    with refused(f"(unknown data set '{spec}': choose one of {choices}|'folder' needs a path)"):
        load(spec)


@pytest.mark.parametrize("size", [0, -3, 2.5, True])
def test_size_below_one(size):
    with refused(f"size must be an integer of at least 1 pixel, got {size}"):
        load("glyphs", size=size)


def test_missing_dependency_names_the_extra(tmp_path, monkeypatch):
    folder_tree(tmp_path)

    def without_pillow(name):
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", without_pillow)
    with refused(r"PIL is missing: run `pip install dmlkernels\[train\]` to read images"):
        load(f"folder:{tmp_path}")


def test_import_needs_no_extra(monkeypatch):
    """Only loading images may need Pillow, matplotlib or SciPy; arrays and the import itself may not."""
    real = builtins.__import__

    def guarded(name, *rest):
        if name.partition(".")[0] in ("PIL", "matplotlib", "scipy"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", guarded)
    for module in ("images", "glyphs", "folders", "arrays"):
        spec = importlib.util.find_spec(f"dmlkernels.data.{module}")
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


def test_require_returns_the_submodule():
    assert require("scipy.io") is scipy.io
