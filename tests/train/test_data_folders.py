"""Image files on disk: each layout's own rules, and the sentence that each kind of bad data gives."""

from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
from PIL import Image
from support.data_cases import BUILD, cars_tree, draw, folder_tree, inshop_tree, refused, sop_tree

from dmlkernels.data import load


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


def test_order_of_the_file_system_does_not_matter(tmp_path, monkeypatch):
    folder_tree(tmp_path)
    first = load(f"folder:{tmp_path}", size=8)
    listed = Path.iterdir
    monkeypatch.setattr(Path, "iterdir", lambda path: sorted(listed(path), reverse=True))
    again = load(f"folder:{tmp_path}", size=8)
    assert again.train.paths == first.train.paths
    assert torch.equal(again.train.labels, first.train.labels)
