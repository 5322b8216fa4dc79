"""Every exported loss, so that a new one is met by what goes around losses and by the training job."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from support import oracles
from torch import Tensor

from dmlkernels import functional as F
from dmlkernels import losses
from dmlkernels._losses import TABLE, Loss
from dmlkernels._options import options
from dmlkernels.testing import make_pairs

ROWS = {row.module: row for row in TABLE}
AROUND = ("AntiCollapseLoss", "CrossBatchMemory", "MultiHead", "SphericalExpansionLoss")
PLAIN = [name for name in losses.__all__ if name not in AROUND]
PAIRS = [name for name in PLAIN if name in ROWS and ROWS[name].pairs]
PROXIES = [name for name in PLAIN if name in ROWS and ROWS[name].proxies]


def make(name: str, classes: int = 6, width: int = 16, **options: object) -> torch.nn.Module:
    """The loss with its defaults; proxies are drawn with a fixed seed."""
    sizes = {"num_classes": classes, "embedding_size": width}
    torch.manual_seed(0)
    return ROWS[name].type(**{argument: sizes[argument] for argument in ROWS[name].sizes}, **options)


def samples(rows: Mapping[str, Loss] = ROWS) -> list[tuple[str, dict[str, Any]]]:
    """Every loss with its defaults, and with each of its samples."""
    return [(name, dict(chosen)) for name, row in rows.items() for chosen in ({}, *row.samples)]


def data(name: str, kind: str, device: str = "cpu", m: int = 14) -> oracles.Batch:
    """A batch; with kind "gallery" or "ids" also a gallery, for a loss of pairs."""
    own = "self" if not ROWS[name].pairs else kind
    pairs = make_pairs("random", m, None if own == "self" else 12, 6, 6, torch.float64, seed=3, device=device)
    if own != "ids":
        return oracles.Batch(*pairs)
    ids, ref_ids = (torch.arange(len(y), device=device) // k for y, k in ((pairs.labels, 2), (pairs.ref_labels, 3)))
    return oracles.Batch(*pairs, ids, ref_ids)


def call(loss: torch.nn.Module, batch: oracles.Batch, indices: tuple[Tensor, ...] | None = None) -> Tensor:
    """The module of a batch."""
    x, y, g, h, ids, ref_ids = batch
    given = {"indices_tuple": indices, "ref_emb": g, "ref_labels": h, "ids": ids, "ref_ids": ref_ids}
    return loss(x, y, **{name: value for name, value in given.items() if value is not None})


def function_of(loss: torch.nn.Module, row: Loss, batch: oracles.Batch) -> Tensor:
    """The public function with the options of the module."""
    x, y, g, h, ids, ref_ids = batch
    function = getattr(F, str(row.function))
    chosen = {
        name: getattr(loss, name) for name in options(type(loss)) if name not in ("num_classes", "embedding_size")
    }
    if row.name == "nca":
        chosen["temperature"] = 1 / (2 * chosen.pop("softmax_scale"))
    if row.name == "margin":
        chosen["beta"] = loss.beta
        chosen["nu"] = chosen["nu"] if chosen.pop("learn_beta") else 0.0
    if row.proxies:
        return function(x, y, *loss.parameters(), **chosen)
    return function(x, y, g, h, ids=ids, ref_ids=ref_ids, **chosen)


def oracle_of(loss: torch.nn.Module, row: Loss, batch: oracles.Batch) -> Tensor:
    """What the loss should be, on the CPU."""
    chosen = {
        name: getattr(loss, name) for name in options(type(loss)) if name not in ("num_classes", "embedding_size")
    }
    parameters = [loss.beta] if row.name == "margin" else list(loss.parameters())
    return getattr(oracles, row.name)(batch, *parameters, **chosen)


def value_and_gradients(
    loss: torch.nn.Module, batch: oracles.Batch, function: Callable[[oracles.Batch], Tensor]
) -> list[Tensor]:
    """Value, and the gradients of embeddings, gallery and parameters, zeros where there is none."""
    torch.manual_seed(5)
    leaves = [t.detach().clone().requires_grad_() for t in (batch.x, batch.g) if t is not None]
    value = function(batch._replace(x=leaves[0], g=leaves[1] if len(leaves) > 1 else None))
    weights = torch.linspace(0.5, 1.5, value.numel(), dtype=value.dtype, device=value.device).view(value.shape)
    inputs = [*leaves, *loss.parameters()]
    grads = torch.autograd.grad((value * weights).sum(), inputs, allow_unused=True)
    return [value.detach(), *(torch.zeros_like(t) if g is None else g for t, g in zip(inputs, grads, strict=True))]


def check_oracle(name: str, chosen: Mapping[str, Any], kind: str, device: str, make: Callable = make) -> None:
    """Assert that value and gradients of module and function are those of the oracle."""
    row, loss = ROWS[name], make(name, width=6, **chosen).double()
    batch = data(name, kind)
    expected = value_and_gradients(loss, batch, lambda b: oracle_of(loss, row, b))
    loss, batch = loss.to(device), oracles.Batch(*(None if t is None else t.to(device) for t in batch))
    found = [value_and_gradients(loss, batch, lambda b: call(loss, b))]
    if row.function is not None:
        found.append(value_and_gradients(loss, batch, lambda b: function_of(loss, row, b)))
    for results in found:
        for result, truth in zip(results, expected, strict=True):
            torch.testing.assert_close(result.cpu(), truth, rtol=1e-9, atol=1e-9 * max(1.0, float(truth.abs().max())))
