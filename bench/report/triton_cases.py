"""Calls of the Triton operators whose kernels are compiled without a GPU: tensors without storage, real arguments."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from dmlkernels.reference.pairwise import compute_dtype

Call = tuple[str, tuple[Any, ...]]  # an operator, and what it is called with

M, N, C, TILE = 8192, 4000, 1000, 128


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def whole(rows: int) -> Tensor:
    return empty(rows, dtype=torch.int64)


def pairs(x: Tensor, reference: bool, ids: bool = False) -> tuple[Any, ...]:
    """The arguments that pair operators start with."""
    gallery = (empty(N, x.shape[1], dtype=x.dtype), whole(N)) if reference else (None, None)
    return (x, whole(M), *gallery, whole(M) if ids else None, whole(N) if ids and reference else None, None, True)


def pairwise(x: Tensor, precision: str, metrics: Sequence[str]) -> Iterator[Call]:
    for y, metric in itertools.product((None, empty(N, x.shape[1], dtype=x.dtype)), metrics):
        grad = empty(M, M if y is None else N, dtype=x.dtype)
        yield "pairwise_fwd", (x, y, metric, True, precision)
        yield "pairwise_bwd", (grad, x, y, metric, True, precision)


NUMBERS = ("scale", "base", "ramp", "origin", "temperature")  # of a side


def pair_loss(x: Tensor, precision: str, variant: dict[str, Any]) -> Iterator[Call]:
    reference, dtype = variant.get("reference", False), compute_dtype(x.dtype)
    start, n = pairs(x, reference, variant.get("ids", False)), N if reference else M
    bounds, per_row = empty(2, M, dtype=dtype) if variant.get("bounds") else None, empty(2, M, dtype=dtype)
    sides = []
    for side in ("pos", "neg"):
        term, *numbers = variant.get(side, ("none",))
        sides += [term, *numbers, *(0.0 for _ in NUMBERS[len(numbers) :])]
    ends = (variant.get("weight_grad", False), variant.get("grad", "full"), variant.get("apart", False), False)
    options = (None, variant["value"], *sides, *ends, precision, variant["deterministic"])
    tiles = empty(-(-M // TILE), -(-n // TILE), dtype=torch.uint8)
    yield "pair_loss_fwd", (*start, bounds, *options, False)
    yield "pair_loss_bwd", (*[per_row] * 3, *start, per_row, per_row, tiles, bounds, *options, reference)


def pair_losses() -> Iterator[dict[str, Any]]:
    """Ranked List and others by tiles, by rows and with running maxima; then what else the losses ask for."""
    by_tiles, by_rows = {"deterministic": False}, {"deterministic": True}
    gallery = {"reference": True, "ids": True}
    ranked = {"value": "distance", "pos": ("moment", 1.0, 0.8), "neg": ("moment", -1.0, 1.2, 0.0, 0.0, 10.0)}
    mined = {"value": "similarity", "pos": ("exp", -2.0, 0.5), "neg": ("exp", 50.0, 0.5), "bounds": True}
    margin = {"value": "distance", "pos": ("hinge", 1.0, 1.0), "neg": ("hinge", -1.0, 1.4), "bounds": True}
    # Beyond float32: running maxima.
    circle = {"value": "similarity", "pos": ("exp", -90.0, 0.75, -1.0, 1.25), "neg": ("exp", 90.0, 0.25, 1.0, -0.25)}
    steep = {"neg": ("moment", -1.0, 1.2, 0.0, 0.0, 90.0), "weight_grad": True}
    yield from (ranked | by_tiles, ranked | by_rows, mined | by_tiles, margin | by_rows, circle | by_rows)

    positives = {"value": "similarity", "pos": ("softplus", -14.0, 0.2), "bounds": True}
    softmax = {"value": "similarity", "pos": ("exp", 10.0), "neg": ("exp", 10.0)}
    yield from (positives | by_tiles, softmax | by_rows, ranked | {"reference": True} | by_tiles)
    yield from (ranked | {"weight_grad": True} | by_tiles, ranked | {"grad": "query"} | by_tiles)
    yield ranked | {"weight_grad": True, "apart": True} | by_rows
    yield from (ranked | steep | {"ids": True} | by_tiles, ranked | steep | gallery | {"grad": "query"} | by_rows)
    terms = {"exp": ("exp", -5.0, 0.5), "hinge": ("hinge", -1.0, 1.2), "softplus": ("softplus", -2.0, 1.2)}
    for value, term in (("similarity", "hinge"), ("distance", "softplus"), ("squared", "exp")):
        yield {"value": value, "pos": terms[term], "neg": terms[term], "bounds": True, **gallery, **by_rows}
    softplus = {"value": "distance", "pos": terms["softplus"], "neg": terms["softplus"], "bounds": True}
    yield from (margin | gallery | by_tiles, softplus | {"ids": True} | by_tiles)
    yield {"value": "distance", "pos": terms["softplus"], "neg": ranked["neg"], "weight_grad": True} | by_tiles
    yield {"value": "distance", "pos": terms["hinge"], "neg": terms["exp"], "apart": True} | by_tiles


PAIR_LOSSES = tuple(pair_losses())


def triplet(x: Tensor, precision: str, negative: str, soft: bool, reference: bool) -> Iterator[Call]:
    start, n = pairs(x, reference), N if reference else M
    tiles = empty(*((0, 0) if negative == "semihard" else (-(-M // TILE), -(-n // TILE))), dtype=torch.uint8)
    options = (negative, 0.05, soft, precision, True)
    yield "triplet_fwd", (*start, *options, False)
    yield "triplet_bwd", (empty(M, dtype=compute_dtype(x.dtype)), *start, tiles, *options, reference)


def selections(x: Tensor, precision: str, reference: bool) -> Iterator[Call]:
    distance, row = empty(M, dtype=compute_dtype(x.dtype)), whole(M)
    start, gallery = pairs(x, reference), pairs(x, reference)[2]
    yield "nearest_positive_fwd", (*start, precision, False)
    yield "nearest_positive_bwd", (distance, x, gallery, row, True, reference)
    for positive, negative in itertools.product(("easy", "hard"), ("hard", "semihard")):
        yield "mine_fwd", (*start, positive, negative, precision, False)
    yield "mine_bwd", (distance, distance, x, gallery, row, row, True, reference)
    yield "distance_weighted_fwd", (*start, empty(M, 3, dtype=torch.float64), 0.5, 1.4, precision, False)


def soft_triple(x: Tensor, precision: str, per_class: int) -> Iterator[Call]:
    y, w, dtype = whole(M), empty(C * per_class, x.shape[1], dtype=x.dtype), compute_dtype(x.dtype)
    options = (per_class, 20.0, 0.1, 0.01, True, precision)
    yield "soft_triple_fwd", (x, y, w, *options)
    yield "soft_triple_bwd", (empty(M, dtype=dtype), x, y, w, empty(2, M, dtype=dtype), *options)


def spherical_expansion(z: Tensor, n: int) -> Iterator[Call]:
    noise = empty(M, n - 1, z.shape[1], dtype=z.dtype)
    yield "spherical_expansion_fwd", (z, z, noise, n)
    yield "spherical_expansion_bwd", (empty(M * n, z.shape[1], dtype=z.dtype), z, z, noise, n)


def coding_rates(z: Tensor, normalize: bool) -> Iterator[Call]:
    for y in (None, whole(M)):
        yield "coding_rate_fwd", (z, y, 0.5, 1.0, "mcr2", normalize, "ieee", True)


def cholesky(dtype: torch.dtype, n: int) -> Iterator[Call]:
    for need_inverse in (True, False):
        yield "cholesky_fwd", (empty(M, n, n, dtype=dtype), False, need_inverse)


def calls(dtypes: Sequence[torch.dtype], quick: bool) -> Iterator[Call]:
    """Every kernel with rows of these dtypes; without `quick` also their options, precisions and some other sizes."""
    for dtype in dtypes:
        more = dtype == torch.float32 and not quick
        for width, precision in (
            ((512, "ieee"), (512, "tf32"), (512, "bf16"), (64, "ieee")) if more else ((512, "ieee"),)
        ):
            x, every = empty(M, width, dtype=dtype), more and (width, precision) == (512, "ieee")
            yield from pairwise(x, precision, ("dot", "euclidean", "squared") if every else ("euclidean",))
            for per_class in (1, 3, 10, 128) if every else (10,):
                yield from soft_triple(x, precision, per_class)
            for variant in PAIR_LOSSES if every else PAIR_LOSSES[:5]:
                yield from pair_loss(x, precision, variant)
            for reference in (False, True) if every else (False,):
                yield from selections(x, precision, reference)
                for negative, soft in itertools.product(("all", "semihard"), (False, True) if every else (False,)):
                    yield from triplet(x, precision, negative, soft, reference)
            if precision == "ieee":
                for n in (8,) if quick else (1, 8, 16):
                    yield from spherical_expansion(x, n)
                yield from coding_rates(x, True)
        if more:
            yield from coding_rates(empty(M, 512), False)
        if dtype in (torch.float32, torch.float64):
            for n in (64,) if quick else (2, 8, 16, 32, 64):
                yield from cholesky(dtype, n)
