r"""Spherical Embedding Expansion in plain PyTorch (Le & Woo, PAKDD 2024), on the centres of Pang et al. (ICML 2018).

The $L = n + 1$ Max-Mahalanobis centres are the vertices of a regular simplex in $R^n$ (0-based):
$\mu_j[j] = \sqrt{L (L-1-j) / ((L-1)(L-j))}$, $\mu_i[j] = -\mu_j[j] / (L-1-j)$ for $i > j$, 0 above;
$\lVert\mu_i\rVert = 1$, $\mu_i \cdot \mu_j = -1/n$.

With unit rows z and p: $M = (z \cdot p) p$, $r = z - M$, $v_1 = r / \lVert r\rVert$, $v_2 \dots v_n$ from noise by
Gram-Schmidt, orthogonal to p, $v_1$ and each other, and $z_k = M + \lVert r\rVert \sum_j \mu_k[j] v_j$. $z_0$ is z
itself; $z_1 \dots z_n$ are the synthetics: unit, with $z_k \cdot p = z \cdot p$, on the vertices of a simplex around M.

$v_2 \dots v_n$ are constants of the gradient, so with $q_k = \sum_{j \ge 2} \mu_k[j] v_j$,
$z_k = M - r/n + \lVert r\rVert q_k$ and
$\partial L/\partial z = \sum_k [p (p \cdot g_k) - \frac1n (g_k - p (p \cdot g_k)) + v_1 (q_k \cdot g_k)]$.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ._precision import without_autocast
from .pairwise import compute_dtype, rows

NO_RESIDUAL = 1e-6  # ‖r‖ under which z is its own proxy and has no direction


def max_mahalanobis_centers(n: int, device: torch.device | None = None) -> Tensor:
    """(n + 1, n) float64."""
    vertices = n + 1
    j = torch.arange(n, dtype=torch.float64, device=device)
    own = (vertices * (n - j) / (n * (vertices - j))).sqrt()
    i = torch.arange(vertices, device=device)[:, None]
    return torch.where(i == j, own, torch.where(i > j, -own / (n - j), 0))


def _unit(x: Tensor) -> Tensor:
    """Unit rows, NaN where the norm is not finite."""
    finite = torch.isfinite(torch.linalg.vector_norm(x.detach().to(compute_dtype(x.dtype)), dim=1, keepdim=True))
    return torch.where(finite, rows(x, True), torch.nan)


def _direction(v: Tensor) -> Tensor:
    return v / torch.linalg.vector_norm(v, dim=1, keepdim=True).clamp_min(1e-12)


def frame(noise: Tensor, p: Tensor, v1: Tensor) -> list[Tensor]:
    """v_2 … v_n, each (k, D), from noise (k, n-1, D)."""
    found = [p, v1]
    for v in noise.unbind(1):
        # One pass leaves 1e-5 of the others where the frame fills the space; two leave rounding.
        for _ in range(2):
            for u in found:
                v = v - (v * u).sum(1, keepdim=True) * u
            v = _direction(v)
        found.append(v)
    return found[2:]


@without_autocast
def spherical_expansion(z: Tensor, proxies: Tensor, noise: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """embeddings (k·n, D), sample by sample, and valid (k,); proxies (k, D) are those of the rows of z."""
    f, p = _unit(z), _unit(proxies.detach())
    along = (f * p).sum(1, keepdim=True) * p
    r = f - along
    squared = r.detach().square().sum(1, keepdim=True)
    # Not `>=`: a NaN must reach the loss, and losses leave invalid rows out.
    valid = ~(squared.sqrt() < NO_RESIDUAL)
    # Where nothing is left of r its norm has no gradient, and nothing uses it.
    radius = torch.where(valid, r, 1).square().sum(1, keepdim=True).sqrt()
    v = frame(noise.to(f.dtype), p, (r / radius).detach())
    centers = max_mahalanobis_centers(n, z.device).to(f.dtype)[1:]
    q = torch.einsum("kj,jid->ikd", centers[:, 1:], torch.stack(v)) if v else f.new_zeros(len(f), n, f.shape[1])
    synthetic = (along - r / n)[:, None] + radius[:, None] * q
    out = torch.where(valid[:, None], synthetic, f[:, None])
    return out.reshape(-1, f.shape[1]).to(z.dtype), valid[:, 0]
