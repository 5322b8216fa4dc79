"""Numeric self-test: every operation, on every backend and dtype of this machine, against the float64 reference."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import NamedTuple

import torch
from torch import Tensor

from . import _backend
from . import functional as F
from ._losses import TABLE, Loss
from .reference.pairwise import compute_dtype

ROWS, WIDTH, CLASSES = 300, 40, 24  # three tiles, ragged in every direction
SYNTHETICS = 4  # of a row


class Case(NamedTuple):
    name: str
    function: Callable[[Tensor, Tensor], Tensor]


def _logdet(x: Tensor, side: int) -> Tensor:
    z = x.to(compute_dtype(x.dtype)).unflatten(0, (-1, side))
    return F.cholesky_logdet(z @ z.mT / WIDTH + torch.eye(side, dtype=z.dtype, device=z.device))


def _expansion(x: Tensor, labels: Tensor) -> Tensor:
    noise = torch.randn(len(x), SYNTHETICS - 1, WIDTH, generator=torch.Generator().manual_seed(1))
    noise = noise.bfloat16().to(x)  # every dtype holds these numbers
    return F.spherical_expansion(
        x, labels, x[:CLASSES].flip(1), n=SYNTHETICS, noise=noise, differentiable=True
    ).embeddings


def _of(loss: Loss) -> Case:
    """The function of a row of the table of losses, with the options that are the same in every dtype."""
    function = getattr(F, str(loss.function))
    if not loss.proxies:
        return Case(loss.name, lambda x, y: function(x, y, **loss.steady))
    rows = CLASSES * loss.steady.get("centers_per_class", 1)
    # Rows that no row of x coincides with, but differentiated with them.
    return Case(loss.name, lambda x, y: function(x, y, x[:rows].flip(1), **loss.steady))


def _drawn(x: Tensor, labels: Tensor) -> Tensor:
    uniforms = torch.rand(len(x), 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(x.device)
    return F.margin_loss(x, labels, positive="easy", negative="distance_weighted", uniforms=uniforms)


CASES = (
    Case("pairwise similarity", lambda x, y: F.pairwise_similarity(x)),
    Case("pairwise distance", lambda x, y: F.pairwise_distance(x, normalize=True)),
    Case("nearest positive", lambda x, y: F.nearest_positive(x, y).distance),
    *(_of(loss) for loss in TABLE if loss.function is not None),
    Case("ranked_list, weights differentiated", lambda x, y: F.ranked_list_loss(x, y, weight_grad=True)),
    Case("ranked_list, easy", lambda x, y: F.ranked_list_loss(x, y, positive="easy")),
    Case("triplet, easy × hard", lambda x, y: F.triplet_loss(x, y)),
    Case("triplet, hard × semihard", lambda x, y: F.triplet_loss(x, y, positive="hard", negative="semihard")),
    Case("margin, drawn negatives", _drawn),
    Case("coding rate", lambda x, y: F.coding_rate(x)),
    Case("coding rate, per class", lambda x, y: F.class_coding_rate(x, y)),
    Case("logdet, 30 × 30", lambda x, y: _logdet(x, 30)),
    Case("logdet, 60 × 60", lambda x, y: _logdet(x, 60)),
    Case("spherical expansion", _expansion),
)
# Largest error of value and gradient, each relative to the largest entry of the truth. float32 is 1000 times its eps;
# bf16 and fp16 are judged on the inputs as rounded, and their gradients are stored in 8 and 11 bits.
TOLERANCE = {torch.float64: 1e-11, torch.float32: 1e-4, torch.bfloat16: 1e-2, torch.float16: 2e-3}


def _value_and_gradient(case: Case, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    x = x.detach().requires_grad_()
    out = case.function(x, labels)
    weight = torch.linspace(0.5, 1.5, out.numel(), dtype=torch.float64).view(out.shape).to(out)
    (grad,) = torch.autograd.grad((out * weight).sum(), x)
    return out.detach().double().cpu(), grad.double().cpu()


def relative_error(got: Tensor, truth: Tensor) -> float:
    """The largest error, relative to the largest entry of the truth."""
    return float((got - truth).abs().max() / truth.abs().max().clamp_min(torch.finfo(truth.dtype).tiny))


def targets() -> list[tuple[str, str]]:
    """The reference, and the backends with kernels for a device that is here."""
    kernels = [(name, device) for name, devices in _backend.loaded.items() for device in sorted(devices)]
    # The CUDA kernels load with a torch that has CUDA, whether there is a GPU or not.
    return [("reference", "cpu"), *(target for target in kernels if target[1] != "cuda" or torch.cuda.is_available())]


def run(names: Collection[str] = (), chosen: Collection[tuple[str, str]] = ()) -> int:
    """Print one line for each operation, backend, device and dtype; 1 if any is outside its tolerance.

    Args:
        names: the cases to run; all of them if there is none.
        chosen: backends and devices; without any, `targets()`.
    """
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(ROWS, WIDTH, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, CLASSES, (ROWS,), generator=generator)
    failed = 0
    for case in CASES:
        if names and case.name not in names:
            continue
        for dtype, tolerance in TOLERANCE.items():
            x = rows.to(dtype)
            with _backend.use_backend("reference"):
                truth = _value_and_gradient(case, x.double(), labels)
            for backend, device in chosen or targets():
                with _backend.use_backend(backend):
                    got = _value_and_gradient(case, x.to(device), labels.to(device))
                errors = [relative_error(g, t) for g, t in zip(got, truth, strict=True)]
                good = max(errors) <= tolerance
                failed += not good
                print(
                    f"{'ok  ' if good else 'FAIL'} {case.name:<36} {backend:<10} {device:<5} {str(dtype)[6:]:<9} "
                    f"value {errors[0]:.1e}  gradient {errors[1]:.1e}"
                )
    print(f"{failed} outside the tolerance" if failed else "all within the tolerance")
    return 1 if failed else 0
