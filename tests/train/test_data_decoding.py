"""From an image file to pixels: modes, depths, scaling, cropping and orientation."""

import numpy as np
import pytest
import torch
from PIL import Image
from support.data_cases import folder_tree, refused

from dmlkernels.data import load


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
