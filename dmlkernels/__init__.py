"""Exact deep-metric-learning losses at large batch: the N×N matrix never exists."""

from . import _backend, _library, _triton
from ._backend import get_backend, get_float32_precision, set_backend, set_float32_precision, use_backend
from ._version import __version__

_library.define()
_library.load_native()
_triton.load()
_backend.read_environment()

from . import data, functional, losses, metrics, miners, samplers  # noqa: E402  (they call operators that the lines above define)

__all__ = [
    "__version__",
    "data",
    "functional",
    "get_backend",
    "get_float32_precision",
    "losses",
    "metrics",
    "miners",
    "samplers",
    "set_backend",
    "set_float32_precision",
    "use_backend",
]


def __dir__() -> list[str]:
    return __all__
