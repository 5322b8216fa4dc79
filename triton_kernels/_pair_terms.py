"""Terms that a pair loss adds up: the formulae of csrc/common/pair_hinge.h and pair_softplus.h, by name.

A term h(x) is one function here, with its line in `additive` and its name in `NAMES`.
"""

import triton
import triton.language as tl

from . import _pair

NAMES = ("hinge", "softplus")


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
