"""Terms of a pair loss: the formulae of csrc/common/pair_hinge.h, pair_softplus.h and pair_moment.h, by name.

A term h(x) that is added up is one function here, with its case in `additive`.
"""

import triton
import triton.language as tl

from . import _pair


@triton.jit
def hinge(x):
    """[x]_+: who takes part, h(x) and dh/dx."""
    return x > 0.0, tl.maximum(x, 0.0), tl.full(x.shape, 1.0, x.dtype)


@triton.jit
def softplus(x):
    """log(1 + e^x) of every pair; x is -inf where the bound is the log-sum-exp of nothing, and the term 0."""
    e = tl.exp(-tl.maximum(x, -x))
    share = 1.0 / (1.0 + e)
    return x <= float("inf"), tl.maximum(x, 0.0) + _pair.log_one_plus(e), tl.where(x > 0.0, share, e * share)


@triton.jit
def additive(x, TERM: tl.constexpr):
    tl.static_assert(TERM == "hinge" or TERM == "softplus")
    if TERM == "hinge":
        return hinge(x)
    else:
        return softplus(x)


@triton.jit
def moment_limit(scale, base, ROOTED: tl.constexpr):
    """Sign and limit with which x > 0 is sign * measured > sign * limit, so that the pairs outside need no root.

    ROOTED: the value is the root of what is measured.
    """
    sign = tl.where(scale < 0.0, -1.0, 1.0)
    limit = base
    if ROOTED:
        # d > base holds for every d >= 0 if the base is negative, d < base for none if it is not positive.
        limit = tl.where((base < 0.0) | ((base == 0.0) & (sign < 0.0)), -1.0, base * base)
    return sign, tl.where(scale == 0.0, float("inf"), limit)


@triton.jit
def beyond(measured, sign, limit):
    return sign * measured > sign * limit
