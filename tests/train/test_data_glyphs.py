"""The glyphs: what is rendered, how it is cleaned, and how it is split."""

from collections import Counter

import numpy as np
import pytest
import torch

from dmlkernels.data import load
from dmlkernels.data.glyphs import MIN_IMAGES, clean_glyphs, render_glyphs
from dmlkernels.metrics import neighbors


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
