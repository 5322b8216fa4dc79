r"""Pairwise similarity and distance in plain PyTorch, N×N memory.

With rows $f = x / \max(\lVert x\rVert, 10^{-12})$ (or $f = x$): $s_{ij} = f_i \cdot g_j$ and
$d_{ij}^2 = \lVert f_i\rVert^2 + \lVert g_j\rVert^2 - 2 s_{ij}$, clamped at 0. The norm of a normalised row is 1 by
definition, so a zero row lies at distance exactly 1 of it. Where the product form cancels
($d^2 \le 0.01\,(\lVert f_i\rVert^2 + \lVert g_j\rVert^2)/2$) it is recomputed as $\sum_k (f_{ik} - g_{jk})^2$.
Norms and that difference form are added up in one order on every backend, so their bits are the same everywhere.
$\partial d_{ij}/\partial f_i = (f_i - g_j)/d_{ij}$;
coincident points ($d^2 \le (4\varepsilon)^2$ times the mean squared
norm) keep their distance and get no gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from ._precision import without_autocast

NEAR = 0.01  # share of the mean squared norm under which a squared distance is recomputed in difference form
SHORTEST = 1e-12  # the norm that a row is divided by at least
LANES = 16


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 for float64, float32 otherwise."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def sum_of_squares(x: Tensor) -> Tensor:
    """(...) of (..., D): 16 partial sums, of the k that are equal mod 16, whose halves are added until one is left."""
    # `unflatten` cannot be traced where a default device is set.
    squares = pad(x.square(), (0, -x.shape[-1] % LANES))
    squares = squares.reshape(*x.shape[:-1], squares.shape[-1] // LANES, LANES)
    total = torch.zeros_like(squares[..., 0, :]) if squares.shape[-2] else x.new_zeros(*x.shape[:-1], LANES)
    for step in squares.unbind(-2):
        total = total + step
    while total.shape[-1] > 1:
        total = total[..., : total.shape[-1] // 2] + total[..., total.shape[-1] // 2 :]
    return total[..., 0]


def rows(x: Tensor, normalize: bool) -> Tensor:
    """(M, D) rows in the compute dtype, L2-normalised if asked; a row of norm up to 1e-12 gets no gradient."""
    x = x.to(compute_dtype(x.dtype))
    if not normalize:
        return x
    squares = sum_of_squares(x)[:, None]
    # The root of 0 has no derivative. A NaN stays one.
    short = squares.detach().sqrt() <= SHORTEST
    # On CPUs rsqrt is the rounded inverse of the rounded root, as in the kernels, where sqrt may be off by an ulp.
    return torch.where(short, x.detach() * (1 / SHORTEST), x * torch.where(short, 1, squares).rsqrt())


def squared_norms(x: Tensor, normalize: bool) -> Tensor:
    """(M,) of the rows that `rows` makes of x: 1 by definition of normalised ones, but of those shorter than 1e-12."""
    x = x.to(compute_dtype(x.dtype))
    if not normalize:
        return sum_of_squares(x)
    norm = sum_of_squares(x.detach()).sqrt()
    # The scaled row: the squares of such small numbers underflow. A norm that is not finite leaves NaN.
    return torch.where(norm >= SHORTEST, norm / norm, sum_of_squares(x.detach() * (1 / SHORTEST)))


@without_autocast
def similarity(f: Tensor, g: Tensor) -> Tensor:
    """(M, N) inner products."""
    return f @ g.T


@without_autocast
def squared_distance(
    f: Tensor, g: Tensor, wanted: Tensor | None = None, norms: tuple[Tensor, Tensor] | None = None
) -> Tensor:
    """(M, N) squared distances; near-duplicates among the `wanted` pairs in difference form.

    Args:
        norms: `squared_norms` of f and g; None: of rows that are not normalised.
    """
    both = _sum_of_norms(f, g, norms)
    product_form = (both - 2 * (f @ g.T)).clamp_min(0)
    near = product_form.detach() <= NEAR * both.detach() / 2
    if wanted is not None:
        near = near & wanted
    if in_a_vmap(near):
        # Of each problem other pairs are near: all are recomputed.
        return torch.where(near, sum_of_squares(f[:, None] - g[None]), product_form)
    i, j = near.nonzero(as_tuple=True)
    return product_form.index_put((i, j), sum_of_squares(f[i] - g[j]))


def in_a_vmap(x: Tensor) -> bool:
    """Whether x stands for several tensors, whose values no index can follow."""
    if torch.compiler.is_compiling():
        return False
    while torch._C._functorch.is_functorch_wrapped_tensor(x):
        if torch._C._functorch.is_batchedtensor(x):
            return True
        x = torch._C._functorch.get_unwrapped(x)
    return False


def apart(squared: Tensor, norms: Tensor) -> Tensor:
    """Of which pairs the distance has a direction, and so a gradient.

    Args:
        squared: distances of the pairs.
        norms: of each the sum of both rows' squared norms.
    """
    return squared.detach() > (4 * torch.finfo(squared.dtype).eps) ** 2 * norms.detach() / 2


def root(squared: Tensor, directed: Tensor) -> Tensor:
    """Distances of squared ones, without a gradient where they have no direction."""
    return torch.where(directed, torch.where(directed, squared, 1).sqrt(), squared.detach().sqrt())


def distance(f: Tensor, g: Tensor, wanted: Tensor | None = None, norms: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """(M, N) distances whose gradient is 0 at coincident points."""
    squared = squared_distance(f, g, wanted, norms)
    return root(squared, apart(squared, _sum_of_norms(f, g, norms)))


def _sum_of_norms(f: Tensor, g: Tensor, norms: tuple[Tensor, Tensor] | None) -> Tensor:
    """(M, N) ‖f‖² + ‖g‖²."""
    of_f, of_g = norms or (sum_of_squares(f), sum_of_squares(g))
    return of_f[:, None] + of_g[None, :]


@without_autocast
def pairwise(x: Tensor, y: Tensor | None, metric: str, normalize: bool) -> Tensor:
    """(M, N) "dot", "euclidean" or "squared" of the (normalised) rows, in the inputs' dtype."""
    f = rows(x, normalize)
    g = f if y is None else rows(y, normalize)
    norms = squared_norms(x, normalize), squared_norms(x if y is None else y, normalize)
    if metric == "dot":
        out = similarity(f, g)
    elif metric == "squared":
        out = squared_distance(f, g, norms=norms)
    else:
        out = distance(f, g, norms=norms)
    return out.to(x.dtype)
