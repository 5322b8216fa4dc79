"""Symmetric positive definite matrices turned into their inverses in place, pivot by pivot: the sweep operator.

Sweeping pivot k of A = [[d, cᵀ], [c, B]] (the pivot first, say) gives [[−1/d, cᵀ/d], [c/d, B − ccᵀ/d]]. Sweeping all of
them leaves −A⁻¹; the pivots d are the squared diagonal of the Cholesky factor, so that log det A = Σ log d. With
v = c/√d outside of k and v_k = −1/√d, a step clears row and column k and subtracts v vᵀ: one rank-one update, where
factor, inverse of the factor and their product would be three. The formula holds for blocks: d is then a block of
pivots and 1/d its inverse.
"""

import triton
import triton.language as tl


@triton.jit
def sweep(a, n):
    """A⁻¹ and log det A (P,) of a (P, N, N), whose rows from n on are those of the identity.

    A pivot that is not positive, or not finite, makes the log det and the whole inverse NaN.
    """
    place = tl.arange(0, a.shape[1])[None, :]
    i, j = place[:, :, None], place[:, None, :]
    logdet = tl.zeros((a.shape[0],), a.dtype)
    for k in range(n):
        # Row k, which is column k: a sum down the columns stays within a thread for the most part.
        column = tl.sum(tl.where(i == k, a, 0.0), 1)
        pivot = tl.sum(tl.where(place == k, column, 0.0), 1)
        pivot = tl.where(pivot > 0.0, pivot + (pivot - pivot), float("nan"))
        logdet += tl.log(pivot)
        root = (1.0 / tl.sqrt(pivot))[:, None]
        v = tl.where(place == k, -root, column * root)
        a = tl.where((i == k) | (j == k), 0.0, a) - v[:, :, None] * v[:, None, :]
    return tl.where((i < n) & (j < n), -a, a), logdet


@triton.jit(do_not_specialize=["B"])
def invert(a_ptr, logdet_ptr, inverse_ptr, B, n, P: tl.constexpr, N: tl.constexpr, NEED_INVERSE: tl.constexpr):
    """a (B, n, n), lower triangle read -> logdet (B,), inverse (B, n, n). P matrices to a program."""
    matrix = tl.program_id(0).to(tl.int64) * P + tl.arange(0, P)
    i, j = tl.arange(0, N)[None, :, None], tl.arange(0, N)[None, None, :]
    inside = (matrix < B)[:, None, None] & (i < n) & (j < n)
    at = matrix[:, None, None] * n * n
    a = tl.load(a_ptr + at + tl.maximum(i, j) * n + tl.minimum(i, j), mask=inside, other=0.0)
    a = tl.where(inside, a, tl.where(i == j, 1.0, 0.0).to(a.dtype))
    inverse, logdet = sweep(a, n)
    tl.store(logdet_ptr + matrix, logdet, mask=matrix < B)
    if NEED_INVERSE:
        tl.store(inverse_ptr + at + i * n + j, inverse, mask=inside)


@triton.jit
def square(ptr, i, j, side):
    """Block of a (side, side) matrix; rows and columns outside are those of the identity."""
    inside = (i < side)[:, None] & (j < side)[None, :]
    block = tl.load(ptr + i[:, None].to(tl.int64) * side + j[None, :], mask=inside, other=0.0)
    return tl.where(inside, block, tl.where(i[:, None] == j[None, :], 1.0, 0.0).to(block.dtype))
