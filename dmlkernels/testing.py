"""Seeded data, and the rule that decides whether a backend is close enough to float64. For tests, yours included.

The rule: a result may be off by twice the error of plain PyTorch in the same dtype, plus a band that follows from eps
of the compute dtype and from how far float64 moves if every row moves by one eps. Gradients are judged row by row.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ._backend import use_backend
from .reference.pairwise import compute_dtype, pairwise

KINDS = ("random", "clustered", "collapsed", "duplicates", "orthogonal", "zero_rows", "large_norms")
LABEL_KINDS = ("shuffled", "sorted", "one_class", "distinct", "ragged", "negative", "wide")
INTEGER_DTYPES = (torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64, torch.bool)

RELATIVE = 1e-5  # MATH §0: what a float32 loss may be off by, relative to itself ...
PER_ROW = 2e-6  # ... plus this share of α in one row: 17 eps, for the roundings of a distance near α
IN_MEAN = 1e-7  # ... or this share in the batch mean, where the rows' errors average out
EAGER = 2.0  # plain PyTorch's own error, and as much again: two roundings of one formula are independent
SHAKE = 8.0  # a row is rounded about four times (norm, scale, product, sum); twice: a random direction is not the worst
FLOOR = 32.0  # eps per unit of incoming gradient: where a row's gradient cancels, the noise of its terms is left
BAND = 16.0  # eps around a boundary where a pair may fall on either side: at d ≈ 1 a distance is off by a few eps
LOUD = 4.0  # a gradient row shows a fault only where it is several times its tolerance ...
QUIET_SHARE = 0.1  # ... so that few rows may be quieter than that, or the comparison proves nothing
JUMP_SHARE = 0.2  # likewise of rows that sit on a boundary of a hinge


class Pairs(NamedTuple):
    embeddings: Tensor  # (M, D)
    labels: Tensor  # (M,)
    ref_emb: Tensor | None  # (N, D)
    ref_labels: Tensor | None  # (N,)


def make_labels(
    kind: str, rows: int, classes: int, dtype: torch.dtype = torch.int64, generator: torch.Generator | None = None
) -> Tensor:
    """(rows,) labels of one of LABEL_KINDS; "shuffled" is unsorted, "wide" differs in bits that int32 drops."""
    order, balanced = torch.randperm(rows, generator=generator), torch.arange(rows) % classes
    # Each class is half of what is left: one huge class, singletons at the end.
    halves = (-(torch.arange(1, rows + 1) / (rows + 1)).log2()).long().clamp_max(classes - 1)
    found = {
        "shuffled": balanced[order],
        "sorted": balanced.sort().values,
        "one_class": torch.ones(rows, dtype=torch.int64),
        "distinct": order,
        "ragged": halves[order],
        "negative": balanced[order] - classes // 2,
        "wide": balanced[order] * 2**32 + 7,
    }
    return found[kind].to(dtype)


def _rows(kind: str, labels: Tensor, width: int, generator: torch.Generator) -> Tensor:
    """(rows, D) float64."""
    count, place = len(labels), torch.arange(len(labels))[:, None]
    noise = torch.randn(count, width, dtype=torch.float64, generator=generator)
    centres = torch.randn(count + 1, width, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    size, copied = torch.rand(count, 1, generator=generator), torch.rand(count, generator=generator)
    found = {
        "random": noise,
        "clustered": centres[torch.unique(labels, return_inverse=True)[1]] + 0.02 * noise,
        "collapsed": torch.where(place % 16 == 3, noise, 1 + 1e-3 * noise),
        "duplicates": noise[(copied * (count * 2 // 3)).long()],
        "orthogonal": torch.eye(width, dtype=torch.float64)[place[:, 0] % width],
        "zero_rows": torch.where(place % 5 == 2, 0, noise),
        "large_norms": noise * 10 ** (4 * size - 1),
    }
    return found[kind]


def make_pairs(
    kind: str = "random",
    m: int = 64,
    n: int | None = None,
    d: int = 16,
    classes: int = 8,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    *,
    labels: str = "shuffled",
    label_dtype: torch.dtype = torch.int64,
    avoid: Sequence[float] = (),
    normalize: bool = True,
    device: torch.device | str = "cpu",
) -> Pairs:
    """Rows and labels, with a gallery of its own if n is given.

    Args:
        kind, labels: one of KINDS and of LABEL_KINDS.
        avoid: boundaries of a hinge, in distances of unit rows if `normalize`. The seed moves on until no pair is so
            near to one that rounding decides on its side: then every row can be judged.
    """
    for attempt in range(200):
        generator = torch.Generator().manual_seed(seed + 1000 * attempt)
        found: list[Tensor | None] = []
        for size in (m, n):
            y = None if size is None else make_labels(labels, size, classes, label_dtype, generator)
            found += [None if y is None else _rows(kind, y, d, generator).to(dtype), y]
        x, _, g, _ = pairs = Pairs(*(None if t is None else t.to(device) for t in found))  # type: ignore[arg-type]
        if not avoid or not bool(near_boundary(x, g, avoid, normalize).any()):
            return pairs
    raise ValueError(f"make_pairs: every {kind} draw has a pair within the band of {avoid}; use fewer rows")


def near_boundary(x: Tensor, g: Tensor | None, boundaries: Sequence[float], normalize: bool = True) -> Tensor:
    """(M, N) pairs so near a boundary that rounding decides on which side they fall."""
    eps = torch.finfo(compute_dtype(x.dtype)).eps
    d = pairwise(x.double(), None if g is None else g.double(), "euclidean", normalize)
    return torch.stack([(d - b).abs() <= BAND * eps * max(b, 1.0) for b in boundaries]).any(0)


@dataclasses.dataclass
class Outcome:
    value: Tensor
    grads: list[Tensor]


def noise_like(value: Tensor, seed: int) -> Tensor:
    """Normal numbers, one for each entry."""
    return torch.randn(value.shape, generator=torch.Generator().manual_seed(seed)).to(value)


def evaluate(function: Callable[..., Tensor], tensors: Sequence[Tensor], weights: Tensor | None = None) -> Outcome:
    """Value, and gradients of (value · weights).sum() with respect to every tensor (zeros where there is none)."""
    leaves = [t.detach().clone().requires_grad_() for t in tensors]
    value = function(*leaves)
    weights = noise_like(value, 2) if weights is None else weights
    seeds = [weights.to(value)] if value.requires_grad else None
    grads = torch.autograd.grad(value, leaves, seeds, allow_unused=True) if seeds else [None] * len(leaves)
    return Outcome(value.detach(), [torch.zeros_like(t) if g is None else g for t, g in zip(leaves, grads)])


def shaken(tensors: Sequence[Tensor], seed: int) -> list[Tensor]:
    """The tensors in float64, each row moved by eps of its length in a random direction; exact copies move together."""
    exact = [t.double() for t in tensors]
    if sum(t.numel() for t in exact) == 0:
        return exact
    distinct, place = torch.unique(torch.cat(exact), dim=0, return_inverse=True)
    direction = noise_like(distinct, seed)
    length = torch.finfo(compute_dtype(tensors[0].dtype)).eps * torch.linalg.vector_norm(distinct, dim=1, keepdim=True)
    moved = distinct + length * torch.nn.functional.normalize(direction, dim=1)
    return list(moved[place].split([len(t) for t in tensors]))


def assert_matches(
    function: Callable[..., Tensor],
    tensors: Sequence[Tensor],
    *,
    reference: Callable[..., Tensor] | None = None,
    scale: float = 1.0,
    normalize: bool = True,
    exponent: float = 1.0,
    pull: float = 1.0,
    max_quiet: float = QUIET_SHARE,
    shifted: Sequence[Callable[..., Tensor]] = (),
) -> Outcome:
    """Assert that value and gradients of function(*tensors) on this backend are near to float64, which is returned.

    Args:
        function: a public function of floating (rows, D) tensors, labels and options bound.
        reference: what the reference backend computes, if not `function` itself.
        scale: magnitude of the values: α of a hinge loss, ‖f‖‖g‖ of a product.
        normalize: whether `function` normalises rows, which divides their gradients by their length.
        exponent: largest |T·v| of softmax weights, if above 1. Rounding it makes a weight uncertain by eps times it, in
            the float64 truth too, which matters where float64 is what is judged.
        pull: largest slope of one pair in the loss, if above 1; where the pulls on a row cancel, its rounding is left.
        max_quiet: share of rows whose gradient may be too small beside its tolerance to show a fault.
        shifted: `function` with its boundaries moved down and up by the band. Where these two differ a pair sits on a
            boundary, and what one side or the other is worth is added to the tolerance of the row.
    """
    reference = reference or function
    dtype, exact = tensors[0].dtype, [t.double() for t in tensors]
    eps = torch.finfo(compute_dtype(dtype)).eps
    unit = eps / torch.finfo(torch.float32).eps
    with use_backend("reference"):
        weights = noise_like(reference(*exact), 2).to(dtype)
        truth = evaluate(reference, exact, weights)
        eager = evaluate(reference, tensors, weights)
        # With positive incoming gradients, so that terms that cancel do not hide their rounding.
        still, *moved = [evaluate(reference, t, weights.abs()) for t in (exact, shaken(tensors, 0), shaken(tensors, 1))]
        sides = [evaluate(side, exact, weights) for side in shifted]
    actual = evaluate(function, tensors, weights)

    runs, t = (truth, eager, still, *moved), truth.value
    allowed = _tolerance([o.value for o in runs], _entry_error) + unit * (RELATIVE * t.abs() + PER_ROW * scale)
    allowed = allowed + 2 * eps * (exponent - 1) * scale  # the argument and the denominator of each weight
    allowed = allowed + (_entry_error(*(o.value for o in sides)) if sides else 0)
    _assert_within("value", actual.value, t, _entry_error(actual.value, t), allowed)
    if t.ndim == 1 and len(t) >= 32 and not sides and bool(t.isfinite().all()):
        means = [o.value.double().mean()[None] for o in (*runs, actual)]
        allowed = _tolerance(means[:-1], _entry_error) + unit * (RELATIVE * means[0].abs() + IN_MEAN * scale)
        _assert_within("mean", means[-1], means[0], _entry_error(means[-1], means[0]), allowed)

    largest = float(weights.abs().max()) if weights.numel() else 0.0
    for k, x in enumerate(exact):
        name, got, true = f"gradient {k}", actual.grads[k], truth.grads[k]
        assert got.dtype == dtype, f"{name}: dtype {got.dtype}, expected {dtype}"
        size, length = (torch.linalg.vector_norm(r, dim=1) for r in (true, x))
        noise = FLOOR * eps * max(exponent, pull) * largest / torch.where((length > 0) & normalize, length, 1)
        noise += torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps  # half of it is lost to underflow
        jump = _row_error(*(o.grads[k] for o in sides)) if sides else torch.zeros_like(noise)
        tight = _tolerance([o.grads[k] for o in runs], _row_error) + noise
        _assert_within(name, got, true, _row_error(got, true), tight + jump)
        assert_no_row_missing(name, got, true, noise + jump)
        quiet = int(((size > noise) & (size < LOUD * tight)).sum())
        assert quiet <= max_quiet * len(x), f"{name}: {quiet} of {len(x)} rows are too quiet to be judged"
        jumping = int((jump > torch.maximum(noise, size / LOUD)).sum())
        assert jumping <= JUMP_SHARE * len(x), f"{name}: {jumping} of {len(x)} rows sit on a boundary"
    return truth


def assert_no_row_missing(name: str, actual: Tensor, truth: Tensor, noise: Tensor) -> None:
    """No row whose true gradient is above the noise (rows,) came out as zero: no tile, no side of a pair is lost."""
    lost = (torch.linalg.vector_norm(truth, dim=1) > noise) & (actual == 0).all(1)
    assert not bool(lost.any()), f"{name}: rows {lost.nonzero()[:8, 0].tolist()} are zero"


def _entry_error(a: Tensor, b: Tensor) -> Tensor:
    """|a − b|, 0 where both are the same infinity."""
    return torch.where(a.double() == b.double(), 0, (a.double() - b.double()).abs())


def _row_error(a: Tensor, b: Tensor) -> Tensor:
    return torch.linalg.vector_norm(a.double() - b.double(), dim=1)


def _tolerance(runs: Sequence[Tensor], error: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Error of plain PyTorch, conditioning, and the rounding of the result itself; runs as in `assert_matches`."""
    truth, eager, still, *moved = runs
    conditioning = torch.stack([error(m, still) for m in moved]).amax(0)
    stored = torch.finfo(eager.dtype).eps / 2 * error(truth, torch.zeros_like(truth))
    return EAGER * error(eager, truth) + SHAKE * conditioning + stored


def _assert_within(name: str, actual: Tensor, truth: Tensor, error: Tensor, allowed: Tensor) -> None:
    wrong = ~(error <= allowed)  # NaN is wrong too
    if bool(wrong.any()):
        worst = torch.where(error.isnan(), torch.inf, error / allowed).where(wrong, -1).flatten().argmax()
        place = tuple(int(i) for i in torch.unravel_index(worst, error.shape))
        raise AssertionError(
            f"{name}: {int(wrong.sum())} of {wrong.numel()} outside the tolerance, worst at {place}: "
            f"got {actual[place].tolist()}, expected {truth[place].tolist()}, "
            f"error {float(error[place]):.3e}, allowed {float(allowed[place]):.3e}"
        )
