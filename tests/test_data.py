"""Image sets: the glyphs, every layout on disk, and the sentence that each kind of bad data gives."""

import builtins
import importlib.util
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
from PIL import Image

from dmlkernels.data import ArrayImages, DataError, load, merge_classes
from dmlkernels.data.glyphs import MIN_IMAGES, clean_glyphs, render_glyphs
from dmlkernels.data.images import require
from dmlkernels.metrics import neighbors

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


@pytest.fixture(scope="module")
def rendered():
    return render_glyphs()


@pytest.fixture(scope="module")
def glyphs():
    return load("glyphs")


class TestGlyphs:
    def test_rendered(self, rendered):
        images, codes, fonts = rendered
        assert images.shape == (len(codes), 32, 32)
        assert images.dtype == np.uint8
        # Pillow's FreeType and Python's Unicode tables may move a few characters.
        assert len(codes) == pytest.approx(39_788, rel=0.01)
        counts = Counter(codes.tolist())
        assert len(counts) == pytest.approx(3_504, rel=0.01)
        assert min(counts.values()) >= 6
        assert len(set(zip(codes.tolist(), fonts.tolist(), strict=True))) == len(codes)

    def test_few_glyphs_are_cut_by_the_cell(self, rendered):
        images = rendered[0]
        edge = images[:, [0, -1], :].any(axis=(1, 2)) | images[:, :, [0, -1]].any(axis=(1, 2))
        assert 0 < edge.mean() < 0.01

    def test_size_of_the_set(self, glyphs):
        assert len(glyphs.class_names) == pytest.approx(2_088, rel=0.01)
        assert len(glyphs.train) + len(glyphs.test) == pytest.approx(25_366, rel=0.01)
        assert (glyphs.train.channels, glyphs.train.size) == (1, 32)
        assert glyphs.gallery is None
        assert glyphs.train.paths is None

    def test_halves_are_disjoint(self, glyphs):
        half = len(glyphs.class_names) // 2
        assert glyphs.train.labels.unique().tolist() == list(range(half))
        assert glyphs.test.labels.unique().tolist() == list(range(half, len(glyphs.class_names)))
        assert len(set(glyphs.class_names)) == len(glyphs.class_names)

    def test_clean(self, glyphs):
        seen = set()
        for part in (glyphs.train, glyphs.test):
            counts = part.labels.unique(return_counts=True)[1]
            assert counts.min() >= MIN_IMAGES
            images = part.batch(torch.arange(len(part)))
            assert images.flatten(1).amax(1).min() > 0
            seen |= {image.tobytes() for image in (images * 255).round().byte().numpy()}
        assert len(seen) == len(glyphs.train) + len(glyphs.test)

    def test_letters_alike_in_three_scripts_are_one_class(self, glyphs):
        assert "A" in glyphs.class_names
        assert "Α" not in glyphs.class_names
        assert "А" not in glyphs.class_names
        assert {"Ж", "Ω", "g"} <= set(glyphs.class_names)

    def test_class_name_belongs_to_its_images(self, glyphs, rendered):
        images, codes, _ = rendered
        part = glyphs.train
        own = {image.tobytes() for image in images[codes == ord(glyphs.class_names[0])]}
        mine = (part.batch(torch.nonzero(part.labels == 0).squeeze(1)) * 255).round().byte().numpy()
        assert any(image.tobytes() in own for image in mine)

    def test_batch(self, glyphs):
        images = glyphs.test.batch(torch.tensor([5, 0, 5]))
        assert images.shape == (3, 1, 32, 32)
        assert images.dtype == torch.float32
        assert images.min() >= 0
        assert 0.5 < images.max() <= 1
        assert torch.equal(images[0], images[2])
        assert torch.equal(images[1:2], glyphs.test.batch([0]))
        assert not torch.equal(images[0], images[1])

    def test_seed_decides_the_split_and_size_does_not(self, glyphs):
        again = load("glyphs", size=48)
        assert again.class_names == glyphs.class_names
        assert torch.equal(again.train.labels, glyphs.train.labels)
        small, large = glyphs.train.batch([7]), again.train.batch([7])
        assert large.shape == (1, 1, 48, 48)
        assert large.mean() == pytest.approx(small.mean().item(), abs=0.02)
        other = load("glyphs", seed=1)
        assert set(other.class_names) == set(glyphs.class_names)
        assert other.class_names != glyphs.class_names

    def test_raw_pixels_find_about_half(self, glyphs):
        pixels = glyphs.test.batch(torch.arange(len(glyphs.test))).flatten(1)
        rows = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(0))[:1500]
        first, second = neighbors(pixels[rows], 2, pixels).unbind(1)
        nearest = torch.where(first == rows, second, first)
        recall = (glyphs.test.labels[nearest] == glyphs.test.labels[rows]).float().mean()
        assert recall == pytest.approx(0.49, abs=0.04)


class TestClean:
    """Each rule on pictures made of one number; fonts count from 0."""

    @staticmethod
    def clean(rows):
        """rows: (character, font, picture)."""
        characters, fonts, pictures = zip(*rows, strict=True)
        images = np.array(pictures, dtype=np.uint8)[:, None, None] * np.ones((1, 2, 2), dtype=np.uint8)
        images, classes, names = clean_glyphs(images, np.array([ord(c) for c in characters]), np.array(fonts))
        return sorted(zip((names[cls] for cls in classes), images[:, 0, 0].tolist(), strict=True)), names

    @staticmethod
    def own(character, first, count=10):
        return [(character, font, first + font) for font in range(count)]

    def test_distinct_characters_stay(self):
        kept, names = self.clean(self.own("B", 1) + self.own("A", 101))
        assert names == ["A", "B"]
        assert kept == [("A", 101 + k) for k in range(10)] + [("B", 1 + k) for k in range(10)]

    @pytest.mark.parametrize("alike, classes", [(4, 2), (5, 1), (10, 1)])
    def test_merged_when_alike_in_half_of_the_shared_fonts(self, alike, classes):
        b = [(c, font, 1 + font if font < alike else picture) for c, font, picture in self.own("B", 101, 20)[:10]]
        a = self.own("A", 1, 14)  # four more fonts, which the two do not share
        kept, names = self.clean(a + b + [("B", 20 + k, 200 + k) for k in range(5)])
        assert names == ["A", "B"][:classes]
        pictures = {picture for _, picture in kept}
        # What two classes have in common goes; what one class has twice stays once.
        assert len(kept) == len(pictures)
        assert (1 in pictures) == (classes == 1)

    def test_merging_is_transitive_and_named_after_the_first(self):
        a, b, c = self.own("A", 1), self.own("B", 51), self.own("C", 101)
        b[:5] = [("B", font, 1 + font) for font in range(5)]
        c[5:] = [("C", font, 51 + font) for font in range(5, 10)]
        kept, names = self.clean(c + b + a)
        assert names == ["A"]
        assert len(kept) == 10 + 5 + 5

    def test_blank_images_go(self):
        kept, _ = self.clean([*self.own("A", 1), ("A", 10, 0), ("A", 11, 0)])
        assert len(kept) == 10

    def test_one_of_identical_images_stays(self):
        kept, _ = self.clean([*self.own("A", 1), ("A", 10, 1), ("A", 11, 2)])
        assert kept == [("A", 1 + k) for k in range(10)]

    def test_images_of_two_classes_go_from_both(self):
        kept, names = self.clean([*self.own("A", 1), *self.own("B", 101), ("A", 10, 101), ("B", 11, 1)])
        assert names == ["A", "B"]
        assert {picture for _, picture in kept} == {*range(2, 11), *range(102, 111)}

    @pytest.mark.parametrize("count, classes", [(7, 1), (8, 2)])
    def test_small_classes_go(self, count, classes):
        _, names = self.clean(self.own("A", 1) + self.own("B", 101, count))
        assert names == ["A", "B"][:classes]


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


@pytest.mark.parametrize("kind", ["folder", "cars", "sop", "inshop"])
class TestFiles:
    def test_file_that_is_no_image(self, kind, tmp_path):
        data = load(f"{kind}:{BUILD[kind](tmp_path)}")
        data.train.paths[4].write_text("not an image")
        with refused(rf"image {data.train.paths[4]} is broken \(.*\): replace it or take it out"):
            load(f"{kind}:{tmp_path}")

    def test_file_cut_short_shows_when_decoded(self, kind, tmp_path):
        BUILD[kind](tmp_path)
        path = load(f"{kind}:{tmp_path}").test.paths[1]
        noise = np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(noise).save(path)
        path.write_bytes(path.read_bytes()[:500])
        data = load(f"{kind}:{tmp_path}")
        assert data.test.batch([0]).shape == (1, 3, 64, 64)
        with refused(rf"image {path} is broken"):
            data.test.batch([0, 1])


@pytest.mark.parametrize("kind", ["cars", "sop", "inshop"])
def test_listed_file_that_is_missing(kind, tmp_path):
    path = load(f"{kind}:{BUILD[kind](tmp_path)}").test.paths[0]
    path.unlink()
    with refused(f"image {path} does not exist: restore it or take it out of the list"):
        load(f"{kind}:{tmp_path}")


@pytest.mark.parametrize(
    "kind, name",
    [
        ("cars", "cars_annos.mat"),
        ("sop", "Ebay_train.txt"),
        ("sop", "Ebay_test.txt"),
        ("inshop", "Eval/list_eval_partition.txt"),
    ],
)
class TestLists:
    def test_missing(self, kind, name, tmp_path):
        (BUILD[kind](tmp_path) / name).unlink()
        with refused(f"{tmp_path} has no .*{Path(name).name}: give the folder that holds it"):
            load(f"{kind}:{tmp_path}")

    def test_no_text_and_no_mat(self, kind, name, tmp_path):
        (BUILD[kind](tmp_path) / name).write_bytes(bytes(range(256)) * 4)
        with refused(r"download (it|cars_annos.mat) again"):
            load(f"{kind}:{tmp_path}")


class TestFolder:
    def test_class_names_sorted(self, tmp_path):
        assert load(f"folder:{folder_tree(tmp_path)}").class_names == [f"{k:03d}.Bird" for k in range(1, 7)]

    def test_odd_count_leaves_the_larger_half_for_testing(self, tmp_path):
        data = load(f"folder:{folder_tree(tmp_path, classes=5)}")
        assert data.train.labels.unique().tolist() == [0, 1]
        assert data.test.labels.unique().tolist() == [2, 3, 4]

    def test_hidden_and_other_files_are_ignored(self, tmp_path):
        folder_tree(tmp_path)
        (tmp_path / ".cache").mkdir()
        (tmp_path / "README.txt").write_text("notes")
        for stray in ("._0.png", "notes.txt"):
            (tmp_path / "001.Bird" / stray).write_text("no image")
        data = load(f"folder:{tmp_path}")
        assert (len(data.train), len(data.test)) == (9, 9)

    def test_capital_suffix(self, tmp_path):
        folder_tree(tmp_path)
        draw(tmp_path / "001.Bird" / "EXTRA.JPG", 3)
        assert len(load(f"folder:{tmp_path}").train) == 10

    def test_home_is_expanded(self, tmp_path, monkeypatch):
        folder_tree(tmp_path / "birds")
        monkeypatch.setenv("HOME", str(tmp_path))
        assert len(load("folder:~/birds").train) == 9

    def test_test_class_with_one_image(self, tmp_path):
        folder_tree(tmp_path)
        for index in (1, 2):
            (tmp_path / "005.Bird" / f"{index}.png").unlink()
        with refused(r"test class 005.Bird has 1 image, at least 2 are needed; add one or drop it"):
            load(f"folder:{tmp_path}")

    def test_empty_folder(self, tmp_path):
        with refused(f"{tmp_path} has no sub-folders: put the images of each class"):
            load(f"folder:{tmp_path}")

    def test_empty_class(self, tmp_path):
        (folder_tree(tmp_path) / "007.Bird").mkdir()
        with refused(r"007.Bird holds no images: add some or remove the sub-folder"):
            load(f"folder:{tmp_path}")

    def test_file_instead_of_folder(self, tmp_path):
        path = draw(tmp_path / "one.png", 5)
        with refused(r"one.png is not a folder: folder:PATH takes a folder"):
            load(f"folder:{path}")


class TestDecoding:
    @staticmethod
    def load_with(tmp_path, image, name="000.png", **save):
        """Load a tree whose first image is this one."""
        folder_tree(tmp_path)
        image.save(tmp_path / "001.Bird" / name, **save)
        data = load(f"folder:{tmp_path}", size=8)
        place = [path.name for path in data.train.paths].index(name)
        return data.train.batch([place])[0] * 255

    @pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
    def test_modes(self, mode, tmp_path):
        level = 255 if mode == "1" else 100
        pixels = self.load_with(tmp_path, Image.new("L", (12, 12), level).convert(mode))
        assert torch.allclose(pixels, torch.full((3, 8, 8), float(level)), atol=1e-3)

    @pytest.mark.parametrize("dtype, name", [(np.uint16, "000.png"), (np.int32, "000.tif")])
    def test_sixteen_bits_are_scaled(self, dtype, name, tmp_path):
        pixels = self.load_with(tmp_path, Image.fromarray(np.full((8, 8), 100 * 257, dtype=dtype)), name)
        assert torch.allclose(pixels, torch.full((3, 8, 8), 100.0), atol=1.001)

    def test_floats_are_refused(self, tmp_path):
        with refused(r"000.tif is broken \(its pixels are floats; save it with 8 bits\)"):
            self.load_with(tmp_path, Image.fromarray(np.ones((8, 8), dtype=np.float32)), "000.tif")

    def test_colour_channels(self, tmp_path):
        pixels = self.load_with(tmp_path, Image.new("RGB", (12, 12), (10, 20, 30)))
        assert pixels.flatten(1).mean(1).round().tolist() == [10, 20, 30]

    @pytest.mark.parametrize("size", [(24, 8), (8, 24)])
    def test_long_side_is_cropped_to_the_centre(self, size, tmp_path):
        image = Image.new("L", size, 0)
        image.paste(200, ((size[0] - 8) // 2, (size[1] - 8) // 2, (size[0] + 8) // 2, (size[1] + 8) // 2))
        assert self.load_with(tmp_path, image).min().round() == 200

    def test_large_jpeg(self, tmp_path):
        gradient = np.tile(np.linspace(0, 255, 256).astype(np.uint8), (256, 1))
        pixels = self.load_with(tmp_path, Image.fromarray(gradient), "000.jpg", quality=95)
        expected = torch.from_numpy(gradient.reshape(256, 8, 32).mean((0, 2))).float()
        assert torch.allclose(pixels[0].mean(0), expected, atol=4)

    def test_orientation_of_a_photograph(self, tmp_path):
        image = Image.new("L", (16, 16), 0)
        image.paste(255, (0, 0, 16, 8))
        exif = Image.Exif()
        exif[0x0112] = 3  # upside down
        pixels = self.load_with(tmp_path, image, "000.jpg", exif=exif, quality=95)
        assert pixels[:, :3].max() < 30
        assert pixels[:, 5:].min() > 225


class TestSop:
    def test_path_with_a_space(self, tmp_path):
        sop_tree(tmp_path)
        draw(tmp_path / "my chairs" / "1.png", 0)
        with (tmp_path / "Ebay_train.txt").open("a") as file:
            file.write("99 1 1 my chairs/1.png\n\n")
        assert load(f"sop:{tmp_path}").train.paths[-1] == tmp_path / "my chairs" / "1.png"

    @pytest.mark.parametrize(
        "line, message",
        [
            ("19 1 bicycle_final/0_0.png", r"line 11: expected `image_id class_id super_class_id path`, got '19 1 bic"),
            ("19 one 1 bicycle_final/0_0.png", "line 11: class_id must be a number, got 'one'"),
        ],
    )
    def test_malformed_line(self, line, message, tmp_path):
        with (sop_tree(tmp_path) / "Ebay_test.txt").open("a") as file:
            file.write(line)
        with refused("Ebay_test.txt " + message):
            load(f"sop:{tmp_path}")

    def test_class_in_both_lists(self, tmp_path):
        with (sop_tree(tmp_path) / "Ebay_test.txt").open("a") as file:
            file.write("19 1 1 bicycle_final/0_0.png\n20 1 1 bicycle_final/0_1.png\n")
        with refused("class 1 is both a training and a test class; keep the two disjoint"):
            load(f"sop:{tmp_path}")

    def test_classes_sort_as_numbers(self, tmp_path):
        data = load(f"sop:{sop_tree(tmp_path, classes=24, per_class=2)}")
        assert data.class_names == [str(k) for k in range(1, 25)]


class TestInshop:
    def test_flat_layout(self, tmp_path):
        data = load(f"inshop:{inshop_tree(tmp_path, nested=False)}")
        assert (len(data.train), len(data.test), len(data.gallery)) == (9, 3, 6)
        assert data.class_names[3] == "id_00000004"

    @pytest.mark.parametrize(
        "line, message",
        [
            ("img/a.png id_00000001", "line 21: expected `image_name item_id evaluation_status`, got 'img/a.png id_"),
            ("img/a.png id_00000001 val", "line 21: evaluation_status is 'val', not train, query or gallery"),
        ],
    )
    def test_malformed_line(self, line, message, tmp_path):
        with (inshop_tree(tmp_path) / "Eval" / "list_eval_partition.txt").open("a") as file:
            file.write("\n" + line)
        with refused("list_eval_partition.txt " + message):
            load(f"inshop:{tmp_path}")

    def test_query_without_gallery(self, tmp_path):
        table = inshop_tree(tmp_path) / "Eval" / "list_eval_partition.txt"
        lines = [x for x in table.read_text().splitlines() if not ("id_00000005" in x and x.endswith("gallery"))]
        table.write_text("\n".join(lines))
        with refused("class id_00000005 has query images but none in the gallery"):
            load(f"inshop:{tmp_path}")

    def test_gallery_class_that_is_trained_on(self, tmp_path):
        table = inshop_tree(tmp_path) / "Eval" / "list_eval_partition.txt"
        first = table.read_text().splitlines()[2]
        table.write_text(table.read_text() + "\n" + first.replace("train", "gallery"))
        with refused("class id_00000001 is both a training and a test class"):
            load(f"inshop:{tmp_path}")

    def test_distractors_and_single_query_are_fine(self, tmp_path):
        table = inshop_tree(tmp_path) / "Eval" / "list_eval_partition.txt"
        draw(tmp_path / "Img" / "img" / "x.png", 3)
        table.write_text(table.read_text() + "\nimg/x.png id_00000099 gallery")
        data = load(f"inshop:{tmp_path}")
        assert data.class_names[-1] == "id_00000099"
        assert data.gallery.labels.tolist().count(6) == 1


class TestCars:
    def test_split_by_class_number(self, tmp_path):
        data = load(f"cars:{cars_tree(tmp_path, classes=12, per_class=2)}")
        assert data.class_names == [str(k) for k in range(1, 13)]
        assert data.train.labels.unique().tolist() == list(range(6))
        assert data.train.paths[0] == tmp_path / "car_ims" / "000010.png"
        assert data.train.labels[0] == 5

    def test_other_table(self, tmp_path):
        cars_tree(tmp_path)
        scipy.io.savemat(tmp_path / "cars_annos.mat", {"other": np.arange(3)})
        with refused("no readable `annotations` with relative_im_path and class"):
            load(f"cars:{tmp_path}")


class TestNpz:
    def test_gray_images(self, tmp_path):
        gray = arrays()["images"][..., 0]
        data = load(f"npz:{npz_file(tmp_path, images=gray)}")
        assert data.train.channels == 1
        assert torch.equal((data.train.batch([4]) * 255).round(), torch.full((1, 1, 10, 10), float(gray[4, 0, 0])))

    def test_channels_move_to_the_front(self, tmp_path):
        images = np.random.default_rng(0).integers(0, 255, (18, 10, 10, 3), dtype=np.uint8)
        data = load(f"npz:{npz_file(tmp_path, images=images)}")
        expected = torch.from_numpy(images[:2]).permute(0, 3, 1, 2) / 255
        assert torch.allclose(data.train.batch([0, 1]), expected)

    @pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
    def test_floats(self, dtype, tmp_path):
        images = arrays()["images"]
        data = load(f"npz:{npz_file(tmp_path, images=(images / 255).astype(dtype))}")
        assert torch.equal(data.train.batch([5]), load(f"npz:{npz_file(tmp_path)}").train.batch([5]))

    def test_floats_are_rounded_to_the_nearest_level(self, tmp_path):
        data = load(f"npz:{npz_file(tmp_path, images=np.full((18, 4, 4), 99.6 / 255))}")
        assert (data.train.batch([0]) * 255).round().unique().tolist() == [100]

    def test_explicit_test_half(self, tmp_path):
        test = {"test_images": arrays()["images"][:4] + 100, "test_labels": np.array([70, 71, 70, 71])}
        data = load(f"npz:{npz_file(tmp_path, **test)}")
        assert (len(data.train), len(data.test)) == (18, 4)
        assert data.class_names == ["1", "2", "3", "4", "5", "6", "70", "71"]
        assert data.test.labels.tolist() == [6, 7, 6, 7]
        assert (data.test.batch([0]) * 255).round().unique().tolist() == [100]

    def test_names_as_labels(self, tmp_path):
        names = np.array(["cat", "ant", "dog", "bee", "elk", "fox"]).repeat(3)
        data = load(f"npz:{npz_file(tmp_path, labels=names)}")
        assert data.class_names == ["ant", "bee", "cat", "dog", "elk", "fox"]
        assert data.train.labels.tolist() == [2] * 3 + [0] * 3 + [1] * 3

    def test_fine_detail_is_averaged_when_scaled_down(self, tmp_path):
        images = np.zeros((18, 30, 30), dtype=np.uint8)
        images[:, :, ::2] = 255
        pixels = load(f"npz:{npz_file(tmp_path, images=images)}", size=6).train.batch([0])
        assert pixels[..., 1:-1].sub(0.5).abs().max() < 0.05

    @pytest.mark.parametrize("tall", [False, True])
    def test_oblong_images_are_cropped(self, tall, tmp_path):
        images = np.zeros((18, 10, 20), dtype=np.uint8)
        images[:, :, 5:15] = 255
        images = images.transpose(0, 2, 1) if tall else images
        data = load(f"npz:{npz_file(tmp_path, images=images)}")
        assert data.train.size == 10
        assert data.train.batch([0]).min() == 1

    @pytest.mark.parametrize(
        "changed, message",
        [
            ({"images": None}, "no array `images`: it holds labels"),
            ({"labels": None}, "no array `labels`: it holds images"),
            (
                {"images": np.zeros((18, 10), np.uint8)},
                r"`images` must be \(n, H, W\) or \(n, H, W, C\) and not empty, got",
            ),
            ({"images": np.zeros((0, 8, 8), np.uint8)}, r"not empty, got \(0, 8, 8\)"),
            ({"images": np.zeros((18, 8, 8), np.int64)}, r"must be uint8 or floats in \[0, 1\], got int64"),
            (
                {"images": np.full((18, 8, 8), 2.0)},
                r"floats in `images` must lie in \[0, 1\]; scale them or store uint8",
            ),
            ({"images": np.full((18, 8, 8), -0.5)}, r"floats in `images` must lie in \[0, 1\]"),
            ({"images": np.full((18, 8, 8), np.nan)}, r"floats in `images` must lie in \[0, 1\]"),
            ({"labels": np.arange(5)}, r"`labels` must be 18 integers or strings, one per image, got int64 \(5,\)"),
            ({"labels": np.zeros(18)}, r"`labels` must be 18 integers or strings, one per image, got float64"),
            ({"test_labels": np.arange(5)}, "no array `test_images`: it holds images, labels, test_labels"),
            ({"test_images": np.zeros((4, 10, 10, 3), np.uint8)}, "no array `test_labels`"),
            (
                {"test_images": np.zeros((4, 10, 10, 1), np.uint8), "test_labels": np.array([7, 7, 8, 8])},
                r"test_images are \(1, 10, 10\) but images \(3, 10, 10\) \(channels, height, width\); make them alike",
            ),
            (
                {"test_images": np.zeros((4, 10, 10, 3), np.uint8), "test_labels": np.array([1, 1, 8, 8])},
                "class 1 is both a training and a test class",
            ),
            (
                {"test_images": np.zeros((3, 10, 10, 3), np.uint8), "test_labels": np.array([7, 7, 8])},
                "test class 8 has 1 image",
            ),
        ],
    )
    def test_bad_arrays(self, changed, message, tmp_path):
        with refused(message):
            load(f"npz:{npz_file(tmp_path, **changed)}")

    def test_no_archive(self, tmp_path):
        path = tmp_path / "data.npz"
        path.write_text("no archive")
        with refused(r"is not a readable .npz archive \(.*\): write it with numpy.savez"):
            load(f"npz:{path}")

    def test_folder_is_no_archive(self, tmp_path):
        with refused(r"is not a readable .npz archive"):
            load(f"npz:{tmp_path}")


@pytest.mark.parametrize("spec", ["", "mnist", "cub:/data", "glyphs:now", "folder", "Folder:/data"])
def test_unknown_spec_lists_the_choices(spec):
    choices = "glyphs, folder:PATH, sop:PATH, cars:PATH, inshop:PATH, npz:PATH"
    with refused(f"(unknown data set '{spec}': choose one of {choices}|'folder' needs a path)"):
        load(spec)


@pytest.mark.parametrize("size", [0, -3])
def test_size_below_one(size):
    with refused(f"size must be at least 1 pixel, got {size}"):
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


def test_array_images_leave_their_input_alone():
    pixels = torch.arange(2 * 4 * 6, dtype=torch.uint8).view(2, 1, 4, 6)
    before = pixels.clone()
    images = ArrayImages(pixels, torch.tensor([0, 1]), size=8)
    assert images.batch([1]).shape == (1, 1, 8, 8)
    assert torch.equal(pixels, before)
    assert len(images) == 2


class TestMergeClasses:
    labels = torch.tensor([7, 3, 3, 9, -1, 7, 20, 9, 20, 31, 31])

    @pytest.mark.parametrize("group, merged", [(2, 3), (3, 2), (4, 2), (6, 1), (50, 1)])
    def test_merges_whole_classes(self, group, merged):
        coarse = merge_classes(self.labels, group, seed=0)
        assert coarse.dtype == torch.int64
        assert coarse.unique().tolist() == list(range(merged))
        members = [self.labels[coarse == cls].unique().tolist() for cls in range(merged)]
        assert sorted(chain(*members)) == self.labels.unique().tolist()
        assert all(len(classes) == group for classes in members[:-1])
        assert len(members[-1]) <= group

    def test_group_of_one_changes_nothing(self):
        assert torch.equal(merge_classes(self.labels, 1, seed=0), self.labels)

    def test_seed(self):
        labels = torch.arange(100)
        assert torch.equal(merge_classes(labels, 4, 3), merge_classes(labels, 4, 3))
        assert not torch.equal(merge_classes(labels, 4, 3), merge_classes(labels, 4, 4))

    def test_at_random(self):
        assert not torch.equal(merge_classes(torch.arange(100), 4, 0), torch.arange(100) // 4)

    @pytest.mark.parametrize("group", [0, -2])
    def test_group_below_one(self, group):
        with pytest.raises(ValueError, match=f"merge_classes: group must be at least 1, got {group}"):
            merge_classes(self.labels, group, 0)


def test_order_of_the_file_system_does_not_matter(tmp_path, monkeypatch):
    folder_tree(tmp_path)
    first = load(f"folder:{tmp_path}", size=8)
    listed = Path.iterdir
    monkeypatch.setattr(Path, "iterdir", lambda path: sorted(listed(path), reverse=True))
    again = load(f"folder:{tmp_path}", size=8)
    assert again.train.paths == first.train.paths
    assert torch.equal(again.train.labels, first.train.labels)
