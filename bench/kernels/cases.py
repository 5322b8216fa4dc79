"""What is measured: the operations, and the cases that are the rows of a table."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from bench.kernels import pair_losses
from bench.kernels.batches import Batch, class_count, device, make_batch
from dmlkernels import functional as F

# How much more the rounding of operands to 8 or 11 bits allows, in values, gradients and rows on either side.
COARSE = {"bfloat16": 500.0, "tf32": 100.0}

EXPANSION = 8  # synthetics of a row
MATRIX = 16  # rows and columns of the matrices that are factored
CENTERS = 3  # of a class


class Operation(NamedTuple):
    title: str
    call: Callable[[Batch], tuple[Tensor, ...]]  # differentiable outputs, then the rows (M,) int64 that were chosen
    outputs: str  # shapes of the differentiable ones: "1" (), "M" (M,), "N" (M, N), "E" those of an expansion
    pairs: bool = True  # of every row with every other


def _mine(negative: str, batch: Batch) -> tuple[Tensor, ...]:
    mined = F.mine(*batch.pair, negative=negative)
    return mined.pos_distance, mined.neg_distance, mined.pos_index, mined.neg_index


def _drawn(batch: Batch) -> tuple[Tensor, ...]:
    x = batch.embeddings
    uniforms = torch.rand(len(x), 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(x.device)
    return (F.margin_loss(*batch.pair, positive="easy", negative="distance_weighted", uniforms=uniforms),)


def _with_proxies(batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings, labels and proxies; the last rows are the proxies, so their gradient is compared with the others'."""
    count = class_count(len(batch.labels))
    return batch.embeddings[:-count], batch.labels[:-count], batch.embeddings[-count:]


def _with_centers(batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """As `_with_proxies`, with CENTERS centers for each class."""
    count = class_count(len(batch.labels)) * CENTERS
    return batch.embeddings[:-count], batch.labels[:-count], batch.embeddings[-count:]


@cache
def _noise(*shape: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device, dtype)


def _expand(batch: Batch) -> tuple[Tensor, ...]:
    # Drawing the noise would take as long as using it, in all contenders.
    rows, labels, proxies = _with_proxies(batch)
    noise = _noise(len(rows), EXPANSION - 1, rows.shape[1], dtype=rows.dtype, device=rows.device)
    return (F.spherical_expansion(rows, labels, proxies, n=EXPANSION, noise=noise, differentiable=True).embeddings,)


def _small_logdets(batch: Batch) -> tuple[Tensor, ...]:
    rows = batch.embeddings.unflatten(0, (-1, MATRIX))
    return (F.cholesky_logdet(rows @ rows.mT + torch.eye(MATRIX, device=rows.device)).sum(),)


OPERATIONS = {
    "ranked_list": Operation("Ranked List Loss", lambda b: (F.ranked_list_loss(*b.pair, alpha=b.alpha),), "1"),
    "ranked_list_pml": Operation(
        "Ranked List Loss as pytorch-metric-learning has it",
        lambda b: (F.ranked_list_loss(*b.pair, alpha=b.alpha, eps_mode="pml", weight_grad=True),),
        "1",
    ),
    "nearest_positive": Operation("nearest positive", lambda b: tuple(F.nearest_positive(*b.pair)), "M"),
    "mine_hard": Operation("mine, easy × hard", partial(_mine, "hard"), "MM"),
    "mine_semihard": Operation("mine, easy × semihard", partial(_mine, "semihard"), "MM"),
    "distance_weighted": Operation("margin loss, easy positives × drawn negatives", _drawn, "1"),
    "triplet": Operation("triplet loss, easy × hard", lambda b: (F.triplet_loss(*b.pair),), "1"),
    "pairwise": Operation("pairwise cosine", lambda b: (F.pairwise_similarity(b.embeddings, b.ref_emb),), "N"),
    "pairwise_distance": Operation(
        "pairwise distance", lambda b: (F.pairwise_distance(b.embeddings, b.ref_emb, normalize=True),), "N"
    ),
    "coding_rate": Operation("coding rate", lambda b: (F.coding_rate(b.embeddings),), "1", pairs=False),
    "class_coding_rate": Operation(
        "coding rate per class", lambda b: (F.class_coding_rate(b.embeddings, b.labels),), "1", pairs=False
    ),
    "cholesky": Operation(f"log-determinants of {MATRIX} × {MATRIX}", _small_logdets, "1", pairs=False),
    "spherical_expansion": Operation("spherical expansion", _expand, "E", pairs=False),
    "proxy_anchor": Operation("Proxy-Anchor", lambda b: (F.proxy_anchor_loss(*_with_proxies(b)),), "1", pairs=False),
    "soft_triple": Operation(
        "SoftTriple",
        lambda b: (F.soft_triple_loss(*_with_centers(b), centers_per_class=CENTERS),),
        "1",
        pairs=False,
    ),
    **{name: Operation(loss.title, pair_losses.call(name), "1") for name, loss in pair_losses.LOSSES.items()},
}


class Case(NamedTuple):
    """One row of the table: an operation on M rows of width D of one kind of data, against themselves or a gallery."""

    name: str
    operation: str
    kind: str
    rows: int
    width: int
    gallery: int = 0
    rivals: tuple[str, ...] = ("reference", "product")
    timed: bool = True
    memory: bool = True
    dtype: str = "float32"
    precision: Literal["ieee", "tf32"] = "ieee"  # of products of float32
    classes: int = 0  # 0: of a few rows each

    @property
    def columns(self) -> int:
        return self.gallery or self.rows

    def batch(self, seed: int = 0) -> Batch:
        batch = make_batch(self.kind, self.rows, self.width, self.gallery, seed, self.classes)
        dtype = getattr(torch, self.dtype)
        moved = Batch(batch.embeddings.to(device(), dtype), batch.labels.to(device()), None, None, batch.alpha)
        if batch.ref_emb is None or batch.ref_labels is None:
            return moved
        return moved._replace(ref_emb=batch.ref_emb.to(device(), dtype), ref_labels=batch.ref_labels.to(device()))

    @property
    def numbers(self) -> str | None:
        """What is multiplied, if not plain float32."""
        return self.dtype if self.dtype != "float32" else None if self.precision == "ieee" else self.precision

    @property
    def coarse(self) -> float:
        """How many times the tolerances of float32 hold here."""
        return COARSE.get(self.numbers or "", 1.0)

    def shrunk(self) -> Case:
        """The same at a size that takes milliseconds."""
        rows = 64 if self.gallery else 512 if self.rows >= self.width else 32
        return self._replace(rows=rows, width=64, gallery=1024 if self.gallery else 0)

    def incoming(self) -> tuple[Tensor, ...]:
        """Gradients of the outputs."""
        expanded = EXPANSION * (self.rows - class_count(self.rows)), self.width
        shapes = {"1": (), "M": (self.rows,), "N": (self.rows, self.columns), "E": expanded}
        generator = torch.Generator().manual_seed(0)
        drawn = (0.5 + torch.rand(shapes[o], generator=generator) for o in OPERATIONS[self.operation].outputs)
        return tuple(gradient.to(device()) for gradient in drawn)
