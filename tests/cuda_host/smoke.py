"""One call or more of every operator, forward and backward, at sizes that fill no tile, no warp and no vector.

    python smoke.py LIBRARY NAME...

runs the named calls on the kernels of a library, in the dtypes that they name: tests do so with the library that has
sanitizers. In that one the name "overrun" writes beyond the end of a tensor.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from dmlkernels import _checks
from dmlkernels import functional as F
from dmlkernels.ops.distance_weighted import sample_negatives
from dmlkernels.ops.pair_loss import Options, Side, statistics
from dmlkernels.testing import Outcome, evaluate, make_pairs

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
M, N, D, CLASSES = 131, 140, 19, 7  # a second tile of three rows, and one of twelve


class Call(NamedTuple):
    function: Callable[..., Tensor]
    wide: bool = False  # rows of whole 16-byte pieces, which kernels copy asynchronously
    sanitized: tuple[torch.dtype, ...] = DTYPES  # in which the sanitizers watch it
    mirrored: bool = False  # and again where a tile stands for its mirror image too


def _joined(*parts: Tensor) -> Tensor:
    return torch.cat([p.flatten() for p in parts])


def _matrices(x: Tensor, n: int) -> Tensor:
    """(3, n, n) positive definite."""
    rows = x[torch.arange(3 * n) % len(x)].reshape(3, n, -1)
    return rows @ rows.mT + torch.eye(n, dtype=x.dtype, device=x.device)


def _cholesky(n: int) -> Callable[..., Tensor]:
    return lambda x, y, g, h: F.cholesky_logdet(_matrices(x.double(), n).to(x.dtype))


def _expansion(x: Tensor, y: Tensor, g: Tensor, h: Tensor) -> Tensor:
    noise = torch.randn(len(x), 4, x.shape[1], generator=torch.Generator().manual_seed(0))
    noise = noise.bfloat16().to(x)  # every dtype holds these numbers
    return F.spherical_expansion(x, y, g[:CLASSES].detach(), n=5, noise=noise, differentiable=True).embeddings


def _easy(positive: str, **options: object) -> Callable[..., Tensor]:
    return lambda x, y, g, h: F.ranked_list_loss(
        x, y, pos_temperature=5.0, positive=positive, reduction="none", **options
    )


def _in_order(*parts: Tensor) -> tuple[Tensor, Tensor]:
    """Rows in the order of small classes: most of their sixteen tiles hold negatives alone, all of which count."""
    rows = torch.cat([*parts, *(part.flip(1) for part in parts)])
    return rows, torch.arange(len(rows), device=rows.device) // 4


def _mixed(x: Tensor, y: Tensor, g: Tensor, h: Tensor) -> Tensor:
    options = Options("distance", Side("softplus", 2.0, 0.3), Side("moment", -1.0, 1.3, temperature=5.0), apart=True)
    found = statistics("smoke", _checks.pair_inputs("smoke", x, y, g, h), options)
    return _joined(found.pos, found.neg)


def _nearest(x: Tensor, y: Tensor, g: Tensor | None, h: Tensor | None) -> Tensor:
    return F.nearest_positive(x, y, g, h).distance


def _mined(x: Tensor, y: Tensor, g: Tensor | None, h: Tensor | None, negative: str = "hard") -> Tensor:
    found = F.mine(x, y, g, h, negative=negative)
    return _joined(found.pos_distance, found.neg_distance)


def _drawn(x: Tensor, y: Tensor, g: Tensor | None, h: Tensor | None) -> Tensor:
    uniforms = torch.rand(len(x), 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return sample_negatives("margin_loss", _checks.pair_inputs("margin_loss", x, y, g, h), uniforms.to(x.device))


# Functions of x (M, D), its labels, g (N, D) and its labels.
CALLS = {
    "similarity": Call(lambda x, y, g, h: F.pairwise_similarity(x, g)),
    "similarity_wide": Call(lambda x, y, g, h: F.pairwise_similarity(x, g, metric="dot"), wide=True),
    "similarity_of_long_rows": Call(lambda x, y, g, h: F.pairwise_similarity(x.repeat(1, 7), g.repeat(1, 7))),
    "distance": Call(lambda x, y, g, h: F.pairwise_distance(x)),
    "squared": Call(lambda x, y, g, h: F.pairwise_distance(x, g, squared=True, normalize=True)),
    "ranked_list": Call(_easy("all")),
    "ranked_list_wide": Call(_easy("all", weight_grad=True), wide=True),
    "ranked_list_easy": Call(_easy("easy")),
    "ranked_list_query": Call(_easy("easy", grad="query", ignore_index=2)),
    "ranked_list_gallery": Call(lambda x, y, g, h: F.ranked_list_loss(x, y, g, h, normalize=False)),
    "ranked_list_plain": Call(
        lambda x, y, g, h: F.ranked_list_loss(*_in_order(x, g)), sanitized=(torch.bfloat16,), mirrored=True
    ),
    "ntxent_plain": Call(
        lambda x, y, g, h: F.ntxent_loss(*_in_order(x, g)), sanitized=(torch.bfloat16,), mirrored=True
    ),
    "nearest": Call(lambda x, y, g, h: _nearest(x, y, None, None)),
    "nearest_gallery": Call(_nearest, wide=True),
    "mine": Call(lambda x, y, g, h: _mined(x, y, None, None, "semihard")),
    "mine_gallery": Call(_mined),
    "distance_weighted": Call(lambda x, y, g, h: _drawn(x, y, None, None)),
    "distance_weighted_gallery": Call(_drawn, wide=True),
    "contrastive": Call(lambda x, y, g, h: F.contrastive_loss(x, y)),
    "multi_similarity": Call(lambda x, y, g, h: F.multi_similarity_loss(x, y, epsilon=0.1)),
    "ntxent": Call(lambda x, y, g, h: F.ntxent_loss(x, y, g, h), wide=True),
    "circle": Call(lambda x, y, g, h: F.circle_loss(x, y, normalize=False, gamma=1.0)),
    "mixed": Call(_mixed),
    "triplets": Call(lambda x, y, g, h: F.triplet_loss(x, y, positive="all", negative="all")),
    "triplets_gallery": Call(
        lambda x, y, g, h: F.triplet_loss(x, y, g, h, positive="all", negative="all", soft=True, normalize=False),
        wide=True,
    ),
    "triplets_semihard": Call(
        lambda x, y, g, h: F.triplet_loss(x, y, positive="all", negative="semihard", reduction="sum")
    ),
    "cholesky_3": Call(_cholesky(3)),
    "cholesky_12": Call(_cholesky(12)),
    "cholesky_21": Call(_cholesky(21)),
    "cholesky_43": Call(_cholesky(43)),
    "cholesky_101": Call(_cholesky(101)),
    "cholesky_190": Call(_cholesky(190)),
    "cholesky_230": Call(_cholesky(230)),
    "rate": Call(lambda x, y, g, h: F.coding_rate(x)),
    "rate_of_rows": Call(lambda x, y, g, h: F.coding_rate(x[:11], normalize=False)),
    "rate_of_classes": Call(lambda x, y, g, h: F.class_coding_rate(x, y)),
    "rate_of_ragged_classes": Call(lambda x, y, g, h: F.class_coding_rate(x, (y - 3).clamp_min(0))),
    "rate_of_wide_classes": Call(lambda x, y, g, h: F.class_coding_rate(x.repeat(1, 9), (y - 4).clamp_min(0))),
    "expansion": Call(_expansion),
    "proxy_anchor": Call(lambda x, y, g, h: F.proxy_anchor_loss(x, y, g[:CLASSES])),
    "soft_triple": Call(lambda x, y, g, h: F.soft_triple_loss(x, y, g, centers_per_class=N // CLASSES)),
    "soft_triple_wide": Call(
        lambda x, y, g, h: F.soft_triple_loss(x, y, g[: 3 * CLASSES], centers_per_class=3, normalize=False),
        wide=True,
    ),
}


def run(name: str, dtype: torch.dtype, device: str = "cpu", exact: bool = False) -> Outcome:
    """Value and gradients of a call on the backend in use; exact: of the same rows in float64."""
    call = CALLS[name]
    x, y, g, h = make_pairs("random", M, N, 24 if call.wide else D, CLASSES, dtype, device=device)
    rows = (x.double(), g.double()) if exact else (x, g)
    return evaluate(lambda x, g: call.function(x, y, g, h), rows)


def main() -> None:
    from dmlkernels import _backend, _library, use_backend

    library, *names = sys.argv[1:]
    if names == ["overrun"]:
        values = torch.zeros(100)
        ctypes.CDLL(library).dmlkernels_cuda_host_overrun(
            ctypes.c_void_p(values.data_ptr()), ctypes.c_int64(len(values))
        )
        return
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    _library.add_backend("cuda-host", "dmlkernels_cuda_host")
    torch.ops.load_library(library)
    _backend.loaded["cuda-host"].add("cpu")
    with use_backend("cuda-host"):
        for name in names:
            for dtype in CALLS[name].sanitized:
                print(name, dtype, flush=True)
                run(name, dtype)
                if CALLS[name].mirrored:
                    torch.use_deterministic_algorithms(False)
                    run(name, dtype)
                    torch.use_deterministic_algorithms(True)


if __name__ == "__main__":
    main()
