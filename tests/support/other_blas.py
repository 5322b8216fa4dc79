"""A plugin for pytest: products of matrices as another library's kernels might round them.

    PYTHONPATH=tests pytest -p support.other_blas

BLAS rounds a product as it likes: by shapes, strides, threads and processor, and an element by its place. Here each
element is off by an eps or not, as a hash of all that decides. A test that still passes asks BLAS for no bits.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

_library = torch.library.Library("aten", "IMPL")


def _exact(t: Tensor) -> bool:
    """Small multiples of 1/16: their products and sums are exact, in whatever order."""
    return bool(((16 * t).frac() == 0).all() and (t.abs() < 64).all())


def _shaken(result: Tensor, *operands: Tensor) -> Tensor:
    if not result.is_floating_point() or not result.numel() or all(map(_exact, operands)):
        return result
    layout = [(t.shape, t.stride(), t.data_ptr() % 64) for t in operands]
    seed = hashlib.sha1(repr((torch.get_num_threads(), layout)).encode()).digest()[:7]
    generator = torch.Generator().manual_seed(int.from_bytes(seed, "little"))
    sign = torch.randint(-1, 2, result.shape, generator=generator)
    return result.copy_(result + result * sign * torch.finfo(result.dtype).eps)


def _register(name: str, of_shapes) -> None:
    out = getattr(torch.ops.aten, name).out

    def product(*operands, **scalars) -> Tensor:
        tensors = [t for t in operands if isinstance(t, Tensor)]
        result = torch.empty(of_shapes(*[t.shape for t in tensors]), dtype=tensors[-1].dtype)
        return _shaken(out(*operands, **scalars, out=result), *tensors)

    _library.impl(name, product, "CPU")


_register("mm", lambda a, b: (a[0], b[1]))
_register("bmm", lambda a, b: (a[0], a[1], b[2]))
_register("mv", lambda a, b: (a[0],))
_register("addmm", lambda c, a, b: (a[0], b[1]))
_register("baddbmm", lambda c, a, b: (a[0], a[1], b[2]))
_register("addmv", lambda c, a, b: (a[0],))
