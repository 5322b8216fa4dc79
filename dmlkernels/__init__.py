"""Exact deep-metric-learning losses at large batch: the N×N matrix never exists."""

from . import _backend, _library, _triton
from ._backend import get_backend, get_float32_precision, set_backend, set_float32_precision, use_backend
from ._version import __version__
from .ops import (
    coding_rate,
    distance_weighted,
    nearest_positive,
    pair_loss,
    pairwise,
    proxy_anchor,
    ranked_list,
    soft_triple,
    spherical_expansion,
    triplet,
)

for _namespace in _backend.namespaces.values():
    _library.define(_namespace)
for _op in (
    pairwise,
    ranked_list,
    pair_loss,
    nearest_positive,
    distance_weighted,
    coding_rate,
    spherical_expansion,
    proxy_anchor,
    soft_triple,
    triplet,
):
    _op.register()
_library.load_native()
_triton.load()
_backend.read_environment()

from . import functional, losses, miners  # noqa: E402  (they call operators that the lines above define)

__all__ = [
    "__version__",
    "functional",
    "get_backend",
    "get_float32_precision",
    "losses",
    "miners",
    "set_backend",
    "set_float32_precision",
    "use_backend",
]
