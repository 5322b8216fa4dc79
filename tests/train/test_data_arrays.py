"""Images in arrays: .npz archives, and the sentence that each kind of bad array gives."""

import numpy as np
import pytest
import torch
from support.data_cases import arrays, npz_file, refused

from dmlkernels.data import ArrayImages, load


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


def test_array_images_leave_their_input_alone():
    pixels = torch.arange(2 * 4 * 6, dtype=torch.uint8).view(2, 1, 4, 6)
    before = pixels.clone()
    images = ArrayImages(pixels, torch.tensor([0, 1]), size=8)
    assert images.batch([1]).shape == (1, 1, 8, 8)
    assert torch.equal(pixels, before)
    assert len(images) == 2
