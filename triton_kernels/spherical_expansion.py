"""spherical_expansion: one program builds the frame of a sample in registers, for the synthetics and their gradient.

Gram-Schmidt goes over the frame twice for each new vector, both times against all earlier vectors at once: the first
pass leaves the rounding of one projection, the second removes it (Giraud et al., 2005), and both are two sums over a
tile instead of a chain of dot products.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dmlkernels._checks import fail
from dmlkernels.reference.spherical_expansion import NO_RESIDUAL

from . import _configs, _pair, _rows
from ._launch import launch

LARGEST_FRAME = 32768  # entries of the padded frame: 64 registers of each of 512 threads
NO_DIRECTION = tl.constexpr(NO_RESIDUAL)


@triton.jit
def _unit(v):
    """v / max(|v|, 1e-12), row by row, and |v|; NaN where the norm is not finite: overflow would make the row zero."""
    norm = tl.sqrt(tl.sum(v * v, 1))
    inverse = 1.0 / tl.maximum(norm, 1e-12)
    return v * tl.where(norm < float("inf"), inverse, float("nan"))[:, None], norm


@triton.jit
def _center(i, j, n, T: tl.constexpr):
    """Entry j < n of Max-Mahalanobis centre i of the n + 1 vertices of a regular simplex; 0 for other j."""
    rest, vertices = tl.maximum(n - j, 1).to(T), (n + 1).to(T)
    own = tl.sqrt(vertices * rest / (n.to(T) * (rest + 1.0)))
    return tl.where(j < n, tl.where(i == j, own, tl.where(i > j, -own / rest, 0.0)), 0.0)


@triton.jit
def _frame(z_ptr, proxy_ptr, noise_ptr, row, inside, n, D, FRAME: tl.constexpr, BLOCK_D: tl.constexpr, T: tl.constexpr):
    """f, its norm before, p, f . p, frame (samples, FRAME, BLOCK_D) with v_1 … v_n in its first rows, |r|."""
    k = tl.arange(0, BLOCK_D)[None, :]
    place = tl.arange(0, FRAME)[None, :, None]
    f, z_norm = _unit(tl.load(z_ptr + row * D + k, mask=inside, other=0.0).to(T))
    p, _norm = _unit(tl.load(proxy_ptr + row * D + k, mask=inside, other=0.0).to(T))
    along = tl.sum(f * p, 1)[:, None]
    v, radius = _unit(f - along * p)
    frame = tl.where(place == 0, v[:, None, :], 0.0)
    for j in range(1, n):
        v = tl.load(noise_ptr + (row * (n - 1) + j - 1) * D + k, mask=inside, other=0.0).to(T)
        for _pass in range(2):
            onto = tl.sum(frame * v[:, None, :], 2)
            v = v - tl.sum(p * v, 1)[:, None] * p - tl.sum(frame * onto[:, :, None], 1)
            norm = tl.sqrt(tl.sum(v * v, 1))
            inverse = 1.0 / tl.maximum(norm, 1e-12)
            v = v * tl.where(norm < float("inf"), inverse, float("nan"))[:, None]
        frame = tl.where(place == j, v[:, None, :], frame)
    return f, z_norm[:, None], p, along, frame, radius[:, None]


@triton.jit(do_not_specialize=["samples", "n"])
def _forward(
    z_ptr,  # (k, D)
    proxy_ptr,  # (k, D)
    noise_ptr,  # (k, n - 1, D)
    out_ptr,  # (k, n, D)
    valid_ptr,  # (k,)
    samples,
    n,
    D,
    SAMPLES: tl.constexpr,
    FRAME: tl.constexpr,
    BLOCK_D: tl.constexpr,
    T: tl.constexpr,
):
    row = (tl.program_id(0).to(tl.int64) * SAMPLES + tl.arange(0, SAMPLES))[:, None]
    k = tl.arange(0, BLOCK_D)[None, :]
    inside = (row < samples) & (k < D)
    f, _norm, p, along, frame, radius = _frame(z_ptr, proxy_ptr, noise_ptr, row, inside, n, D, FRAME, BLOCK_D, T)
    # Not radius >= NO_DIRECTION: a NaN must reach the loss, and losses leave invalid rows out.
    lost = radius < NO_DIRECTION
    tl.store(valid_ptr + row, (lost == 0).to(tl.int8), mask=row < samples)
    for i in range(1, n + 1):
        across = tl.sum(frame * _center(i, tl.arange(0, FRAME), n, T)[None, :, None], 1)
        synthetic = tl.where(lost, f, along * p + radius * across)
        _pair.store_as(out_ptr + (row * n + i - 1) * D + k, synthetic, inside)


@triton.jit(do_not_specialize=["samples", "n"])
def _backward(
    grad_ptr,  # (k, n, D)
    z_ptr,  # (k, D)
    proxy_ptr,  # (k, D)
    noise_ptr,  # (k, n - 1, D)
    out_ptr,  # (k, D)
    samples,
    n,
    D,
    SAMPLES: tl.constexpr,
    FRAME: tl.constexpr,
    BLOCK_D: tl.constexpr,
    T: tl.constexpr,
):
    row = (tl.program_id(0).to(tl.int64) * SAMPLES + tl.arange(0, SAMPLES))[:, None]
    k = tl.arange(0, BLOCK_D)[None, :]
    place = tl.arange(0, FRAME)
    inside = (row < samples) & (k < D)
    f, z_norm, p, _along, frame, radius = _frame(z_ptr, proxy_ptr, noise_ptr, row, inside, n, D, FRAME, BLOCK_D, T)
    total = tl.zeros((SAMPLES, BLOCK_D), T)  # sum of g_i
    across = tl.zeros((SAMPLES, FRAME), T)  # sum of (q_i . g_i), entry by entry of the frame
    for i in range(1, n + 1):
        g = tl.load(grad_ptr + (row * n + i - 1) * D + k, mask=inside, other=0.0).to(T)
        total += g
        turned = tl.where(place > 0, _center(i, place, n, T), 0.0)
        across += turned[None, :] * tl.sum(frame * g[:, None, :], 2)
    share = 1.0 / n.to(T)
    v1 = tl.sum(tl.where(place[None, :, None] == 0, frame, 0.0), 1)
    grad = (1.0 + share) * tl.sum(p * total, 1)[:, None] * p - share * total + tl.sum(across, 1)[:, None] * v1
    grad = tl.where(radius < NO_DIRECTION, total, grad)
    inverse = tl.where(z_norm > 1e-12, 1.0 / tl.maximum(z_norm, 1e-12), 0.0)
    grad = (grad - tl.sum(grad * f, 1)[:, None] * f) * inverse
    _pair.store_as(out_ptr + row * D + k, grad, inside)


def _tiles(op: str, z: Tensor, n: int) -> tuple[int, dict[str, object]]:
    """Samples of a program (more than one where frames are tiny), and the constants and warps of the kernels."""
    frame, width = triton.next_power_of_2(n), triton.next_power_of_2(z.shape[1])
    if frame * width > LARGEST_FRAME:
        expected = f"such that n times D, both rounded up to powers of two, is at most {LARGEST_FRAME}: a frame is held"
        expected += " in registers (the native and the reference backend take more)"
        fail(op, "n", expected, f"{frame} x {width}")
    samples = 16 if _configs.INTERPRETED else max(1, 256 // (frame * width))
    warps = max(1, min(16, samples * frame * width // 1024))
    return samples, {
        "SAMPLES": samples,
        "FRAME": frame,
        "BLOCK_D": width,
        "T": _rows.triton_dtype(z.dtype),
        "num_warps": warps,
    }


def spherical_expansion_fwd(z: Tensor, proxies: Tensor, noise: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """-> embeddings (k*n, D), valid (k,)."""
    z, proxies, noise = z.contiguous(), proxies.contiguous(), noise.contiguous()
    k, d = z.shape
    samples, constants = _tiles("spherical_expansion", z, n)
    out, valid = z.new_empty(k * n, d), z.new_empty(k, dtype=torch.bool)
    if k:
        grid = (triton.cdiv(k, samples),)
        launch(_forward, grid)(z, proxies, noise, out, valid.view(torch.int8), k, n, d, **constants)
    return out, valid


def spherical_expansion_bwd(grad: Tensor, z: Tensor, proxies: Tensor, noise: Tensor, n: int) -> Tensor:
    """-> grad_z (k, D)."""
    grad, z, proxies, noise = (t.contiguous() for t in (grad, z, proxies, noise))
    (k, d), out = z.shape, torch.empty_like(z)
    samples, constants = _tiles("spherical_expansion_bwd", z, n)
    if k:
        launch(_backward, (triton.cdiv(k, samples),))(grad, z, proxies, noise, out, k, n, d, **constants)
    return out


OPERATORS = {"spherical_expansion_fwd": spherical_expansion_fwd, "spherical_expansion_bwd": spherical_expansion_bwd}
