"""The data of the benchmarks: rows, labels, and how many of their pairs are active."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize
from torch.utils._python_dispatch import TorchDispatchMode

import dmlkernels
from dmlkernels.losses import RankedListLoss

PER_CLASS = 8
# Share of the ordered pairs that the Ranked List Loss must find active for the data to deserve its name.
SHARE = {"dense": (0.6, 1.0), "sparse": (0.0, 0.05), "spread": (0.02, 0.05), "collapsed": (0.9, 1.0)}

_device = torch.device("cpu")


def use_device(name: str) -> None:
    """Where every later batch and contender lives."""
    global _device
    _device = torch.device(name)


def device() -> torch.device:
    return _device


class Batch(NamedTuple):
    embeddings: Tensor  # (M, D)
    labels: Tensor  # (M,)
    ref_emb: Tensor | None  # (N, D)
    ref_labels: Tensor | None  # (N,)
    alpha: float

    @property
    def pair(self) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        return self.embeddings, self.labels, self.ref_emb, self.ref_labels

    def training(self) -> Batch:
        """The same rows, as a leaf of their own; a gallery is a memory bank and gets no gradient."""
        return self._replace(embeddings=self.embeddings.detach().requires_grad_())


def class_count(rows: int) -> int:
    return rows // PER_CLASS


def make_batch(kind: str, rows: int, width: int, gallery: int = 0, seed: int = 0, classes: int = 0) -> Batch:
    """Rows of so many shuffled classes (0: of PER_CLASS each), and the alpha that goes with them.

    Args:
        kind: "dense", early in training: all rows point roughly the same way, and most negatives are nearer than RLL's
            default alpha. "sparse", late: classes are tight and far apart, but for one class in four that lies near
            another; most tiles have no active pair. "spread": rows without structure, and an alpha that one negative in
            30 falls short of, wherever one looks; few pairs are active, and no tile is empty. "collapsed": all rows are
            nearly the same one, so that every distance is computed as a difference.
    """
    generator = torch.Generator().manual_seed(seed)
    classes = classes or class_count(gallery or rows)
    centres = normalize(torch.randn(classes, width, generator=generator), dim=1)
    confused = classes // 8
    centres[:confused] = normalize(0.55 * centres[confused : 2 * confused] + 0.835 * centres[:confused], dim=1)

    def draw(count: int) -> tuple[Tensor, Tensor]:
        labels = (torch.arange(count) * classes // (gallery or rows))[torch.randperm(count, generator=generator)]
        noise = torch.randn(count, width, generator=generator) / width**0.5
        if kind == "spread":
            return noise, labels
        common, cosine = {
            "dense": (centres[:1], 0.34),
            "collapsed": (centres[:1], 0.998),
            "sparse": (centres[labels], 0.84),
        }[kind]
        return cosine**0.5 * common + (1 - cosine) ** 0.5 * noise, labels

    # A distance of random unit rows is about normal, of mean √2 and standard deviation 1/√(2D).
    alpha = {"dense": 1.2, "collapsed": 1.2, "sparse": 1.0, "spread": 2**0.5 - 1.95 / (2 * width) ** 0.5}[kind]
    ref_emb, ref_labels = draw(gallery) if gallery else (None, None)
    return Batch(*draw(rows), ref_emb, ref_labels, alpha)


class _TileBitmap(TorchDispatchMode):
    """Keeps the bitmap that the forward hands to the backward."""

    tiles: Tensor  # (ceil(M/TILE), ceil(N/TILE)) uint8

    def __torch_dispatch__(
        self, func: Callable, types: Sequence[type], args: tuple = (), kwargs: dict | None = None
    ) -> object:
        out = func(*args, **(kwargs or {}))
        for result in out if isinstance(out, tuple) else ():
            if result.dtype == torch.uint8:
                self.tiles = result
        return out


def active_shares(batch: Batch) -> tuple[float, float]:
    """Share of the pairs, and of the tiles, that the Ranked List Loss finds active."""
    loss = RankedListLoss(alpha=batch.alpha)
    with torch.no_grad(), dmlkernels.use_backend("native"), _TileBitmap() as bitmap:
        loss(batch.embeddings, batch.labels, ref_emb=batch.ref_emb, ref_labels=batch.ref_labels)
    active = loss.last_stats["active_positives"] + loss.last_stats["active_negatives"]
    m = len(batch.labels)
    if batch.ref_labels is not None:
        return float(active) / (m * len(batch.ref_labels)), float(bitmap.tiles.float().mean())
    # Of a symmetric matrix the kernels visit the upper triangle only.
    seen = torch.ones_like(bitmap.tiles, dtype=torch.bool).triu()
    return float(active) / (m * (m - 1)), float(bitmap.tiles[seen].float().mean())


def assert_share(kind: str, share: float) -> None:
    low, high = SHARE[kind]
    assert low <= share <= high, f"{kind} data: {share:.1%} of the pairs are active, expected {low:.0%} to {high:.0%}"
