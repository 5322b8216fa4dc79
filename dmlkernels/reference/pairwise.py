r"""Pairwise similarity and distance in plain PyTorch, N×N memory.

With rows $f = x / \max(\lVert x\rVert, 10^{-12})$ (or $f = x$): $s_{ij} = f_i \cdot g_j$ and
$d_{ij}^2 = \lVert f_i\rVert^2 + \lVert g_j\rVert^2 - 2 s_{ij}$, clamped at 0. Where that cancels
($d^2 \le 0.01\,(\lVert f_i\rVert^2 + \lVert g_j\rVert^2)/2$) it is recomputed as $\sum_k (f_{ik} - g_{jk})^2$.
$\partial d_{ij}/\partial f_i = (f_i - g_j)/d_{ij}$;
coincident points ($d^2 \le (4\varepsilon)^2$ times the mean squared
norm) keep their distance and get no gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ._precision import without_autocast

NEAR = 0.01  # share of the mean squared norm under which a squared distance is recomputed in difference form


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 for float64, float32 otherwise."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def rows(x: Tensor, normalize: bool) -> Tensor:
    """(M, D) rows in the compute dtype, L2-normalised if asked; a row of norm up to 1e-12 gets no gradient."""
    x = x.to(compute_dtype(x.dtype))
    if not normalize:
        return x
    norm = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    return torch.where(norm > 1e-12, x / norm.clamp_min(1e-12), x.detach() / 1e-12)


@without_autocast
def similarity(f: Tensor, g: Tensor) -> Tensor:
    """(M, N) inner products."""
    return f @ g.T


@without_autocast
def squared_distance(f: Tensor, g: Tensor, wanted: Tensor | None = None) -> Tensor:
    """(M, N) squared distances; near-duplicates among the `wanted` pairs in difference form."""
    norms = f.square().sum(1)[:, None] + g.square().sum(1)[None, :]
    product_form = (norms - 2 * (f @ g.T)).clamp_min(0)
    near = product_form.detach() <= NEAR * norms.detach() / 2
    if wanted is not None:
        near = near & wanted
    i, j = near.nonzero(as_tuple=True)
    return product_form.index_put((i, j), (f[i] - g[j]).square().sum(1))


def distance(f: Tensor, g: Tensor, wanted: Tensor | None = None) -> Tensor:
    """(M, N) distances whose gradient is 0 at coincident points."""
    squared = squared_distance(f, g, wanted)
    tiny = (4 * torch.finfo(f.dtype).eps) ** 2
    norms = f.detach().square().sum(1)[:, None] + g.detach().square().sum(1)[None, :]
    apart = squared.detach() > tiny * norms / 2
    return torch.where(apart, torch.where(apart, squared, 1).sqrt(), squared.detach().sqrt())


@without_autocast
def pairwise(x: Tensor, y: Tensor | None, metric: str, normalize: bool) -> Tensor:
    """(M, N) "dot", "euclidean" or "squared" of the (normalised) rows, in the inputs' dtype."""
    f = rows(x, normalize)
    g = f if y is None else rows(y, normalize)
    if metric == "dot":
        out = similarity(f, g)
    elif metric == "squared":
        out = squared_distance(f, g)
    else:
        out = distance(f, g)
    return out.to(x.dtype)
