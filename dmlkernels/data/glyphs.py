"""Glyphs: the characters of the fonts inside matplotlib's package, one class per letter shape, no download."""

from __future__ import annotations

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence
from functools import cache
from itertools import combinations
from pathlib import Path

import numpy as np
import torch

from .images import ArrayImages, DataError, RetrievalData, require

SIDE = 32
FONT_SIZE = 20  # the largest size at which almost no glyph of these fonts leaves the 32-pixel cell
MIN_FONTS = 6
MIN_IMAGES = 8
# Other fonts of the package carry private encodings (cm*, STIXSiz*, STIXNonUni*) or a stand-in for every code point.
FONTS = ("DejaVu*.ttf", "STIXGeneral*.ttf")
CATEGORIES = "LNS"  # letters, numbers and symbols: punctuation and combining marks are too alike to be classes


def load_glyphs(*, size: int | None = None, seed: int = 0) -> RetrievalData:
    """Render the glyphs and split their classes in two disjoint halves at random.

    Args:
        size: side of the images; other sides than 32 are resized from 32, so that the classes stay the same.
        seed: decides which classes are trained on.

    Returns:
        One grayscale channel; a class is named after its first character.
    """
    images, classes, names = _glyphs()
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(seed))
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order))
    labels = rank[torch.from_numpy(classes)]
    pixels = torch.from_numpy(images).unsqueeze(1)
    trained = labels < len(names) // 2
    return RetrievalData(
        name="glyphs",
        train=ArrayImages(pixels[trained], labels[trained], size),
        test=ArrayImages(pixels[~trained], labels[~trained], size),
        gallery=None,
        class_names=[names[index] for index in order.tolist()],
    )


@cache
def _glyphs() -> tuple[np.ndarray, np.ndarray, list[str]]:
    # Rendering takes seconds, and a comparison of several runs in one process asks for the same glyphs each time.
    return clean_glyphs(*render_glyphs())


def render_glyphs() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw every character that stands in at least six fonts, once per font.

    Returns:
        images (n, 32, 32) uint8, code points (n,) and font numbers (n,).
    """
    image_font, image, draw = require("PIL.ImageFont"), require("PIL.Image"), require("PIL.ImageDraw")
    matplotlib, ft2font = require("matplotlib"), require("matplotlib.ft2font")
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    files = sorted(file for pattern in FONTS for file in folder.glob(pattern))
    if not files:
        raise DataError(f"{folder} holds no DejaVu and STIX fonts: reinstall matplotlib with pip, which carries them.")
    charmaps = [sorted(ft2font.FT2Font(str(file)).get_charmap()) for file in files]
    characters = [[code for code in codes if unicodedata.category(chr(code))[0] in CATEGORIES] for codes in charmaps]
    fonts_of = Counter(code for codes in characters for code in codes)
    images, codes_drawn, fonts = [], [], []
    for number, (file, codes) in enumerate(zip(files, characters, strict=True)):
        # The basic layout engine draws the same pixels whether or not the optional Raqm library is installed.
        font = image_font.truetype(str(file), FONT_SIZE, layout_engine=image_font.Layout.BASIC)
        for code in codes:
            if fonts_of[code] < MIN_FONTS:
                continue
            cell = image.new("L", (SIDE, SIDE))
            draw.Draw(cell).text((SIDE // 2, SIDE // 2), chr(code), font=font, fill=255, anchor="mm")
            images.append(np.asarray(cell))
            codes_drawn.append(code)
            fonts.append(number)
    return np.stack(images), np.array(codes_drawn), np.array(fonts)


def clean_glyphs(images: np.ndarray, codes: np.ndarray, fonts: np.ndarray) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Merge characters that are drawn alike and drop the images that would make the test meaningless.

    Without this, 40 % of the queries have an exact copy in the gallery. In order: characters alike in half of the fonts
    they share become one class; blank images go; one of identical images of a class stays; images that occur in two
    classes go; classes with fewer than eight images go.

    Args:
        images: (n, H, W) uint8.
        codes: (n,) code points.
        fonts: (n,) font numbers.

    Returns:
        images (m, H, W), classes (m,) from 0 in the order of their first character, and the classes' names.
    """
    drawn = np.flatnonzero(images.any(axis=(1, 2)))
    images, codes, fonts = images[drawn], codes[drawn], fonts[drawn]
    picture_numbers: dict[bytes, int] = {}
    pictures = [picture_numbers.setdefault(image.tobytes(), len(picture_numbers)) for image in images]
    merged = _merge_alike(codes.tolist(), fonts.tolist(), pictures)
    classes_with = defaultdict(set)
    first_with: dict[int, int] = {}
    for row, (cls, picture) in enumerate(zip(merged, pictures, strict=True)):
        classes_with[picture].add(cls)
        first_with.setdefault(picture, row)
    kept = [row for picture, row in first_with.items() if len(classes_with[picture]) == 1]
    sizes = Counter(merged[row] for row in kept)
    kept = [row for row in kept if sizes[merged[row]] >= MIN_IMAGES]
    firsts, classes = np.unique([merged[row] for row in kept], return_inverse=True)
    return images[kept], classes.astype(np.int64), [chr(code) for code in firsts]


def _merge_alike(codes: Sequence[int], fonts: Sequence[int], pictures: Sequence[int]) -> list[int]:
    """Return for each image the lowest code point of the characters that its own is merged with."""
    fonts_of = defaultdict(set)
    same = defaultdict(list)
    for code, font, picture in zip(codes, fonts, pictures, strict=True):
        fonts_of[code].add(font)
        same[font, picture].append(code)
    alike = Counter(pair for group in same.values() for pair in combinations(sorted(group), 2))
    parent = {code: code for code in fonts_of}

    def root(code: int) -> int:
        while parent[code] != code:
            code = parent[code]
        return code

    for (low, high), count in alike.items():
        if 2 * count >= len(fonts_of[low] & fonts_of[high]):
            low, high = sorted((root(low), root(high)))
            parent[high] = low
    return [root(code) for code in codes]
