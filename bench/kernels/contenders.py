"""Who is measured.

"fused" (this package's C++ or CUDA), "triton" (its Triton kernels), "reference" (eager PyTorch, the specification),
"compiled" (torch.compile of it), "peer" (pytorch-metric-learning), "product" (t_gemm: one torch.mm of the rows into a
buffer that is there already), and of the coding rates "mcr2_loop" (what the public MCR² code does with the classes) and
"logdet" (torch.logdet).
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

import dmlkernels
from bench.kernels import pair_losses
from bench.kernels.batches import Batch, device
from bench.kernels.cases import OPERATIONS, Case

Run = Callable[[Batch], tuple[Tensor, ...]]


class Taken(NamedTuple):
    forward: float  # seconds
    total: float  # seconds, with the backward
    outputs: tuple[Tensor, ...]
    grad: Tensor | None  # (M, D)


def _on_backend(backend: str, call: Run, batch: Batch) -> tuple[Tensor, ...]:
    with dmlkernels.use_backend(backend):
        return call(batch)


def _product(buffer: Tensor, batch: Batch) -> tuple[Tensor, ...]:
    x = batch.embeddings.detach()
    return (torch.mm(x, (x if batch.ref_emb is None else batch.ref_emb).T, out=buffer),)


def _mcr2_logdet(gram: Tensor, count: int, width: int, eps_squared: float = 0.5) -> Tensor:
    """logdet(I + a·gram) with MCR²'s a of so many rows."""
    return torch.logdet(torch.eye(len(gram), device=gram.device) + width / (count * eps_squared) * gram)


def _mcr2_loop(batch: Batch) -> tuple[Tensor, ...]:
    """The rate per class as the public MCR² code has it: a loop, and of every class a D × D determinant.

    The classes' rows are taken by a mask. The N × N membership matrix of each class that the code multiplies by is the
    same sum with N²·D more operations a class, and would flatter us.
    """
    z, labels = normalize(batch.embeddings, dim=1), batch.labels
    total, width = z.shape
    rate = z.new_zeros(())
    for label in labels.unique():
        members = z[labels == label]
        count = len(members)
        rate = rate + count / (2 * total) * _mcr2_logdet(members.T @ members, count, width)
    return (rate,)


def _logdet(batch: Batch) -> tuple[Tensor, ...]:
    """The rate of all rows by torch.logdet, of the smaller Gram matrix: of the other one it would be slower."""
    z = normalize(batch.embeddings, dim=1)
    total, width = z.shape
    return (_mcr2_logdet(z @ z.T if total <= width else z.T @ z, total, width) / 2,)


def _peer(case: Case) -> Run:
    from pytorch_metric_learning import losses, miners

    if case.operation in pair_losses.LOSSES:
        return pair_losses.peer(case.operation)
    if case.operation == "triplet":
        miner = miners.BatchEasyHardMiner(pos_strategy="easy", neg_strategy="hard")
        triplet = losses.TripletMarginLoss(margin=0.2)
        return lambda b: (triplet(b.embeddings, b.labels, miner(b.embeddings, b.labels)),)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it finds the paper's own temperature too high
        ranked = losses.RankedListLoss(margin=0.4, Tn=10, alpha=case.batch().alpha)
    return lambda b: (ranked(b.embeddings, b.labels),)


def contender(case: Case, name: str) -> Run:
    """What to call with a batch."""
    call = OPERATIONS[case.operation].call
    if name == "product":
        return partial(
            _product, torch.empty(case.rows, case.columns, dtype=getattr(torch, case.dtype), device=device())
        )
    if name == "peer":
        return _peer(case)
    if name in ("mcr2_loop", "logdet"):
        return {"mcr2_loop": _mcr2_loop, "logdet": _logdet}[name]
    if name == "compiled":
        # Without this the graph breaks at the reference's nonzero, and half of the gain is lost.
        torch._dynamo.config.capture_dynamic_output_shape_ops = True
        return partial(_on_backend, "reference", torch.compile(call, fullgraph=True))
    return partial(_on_backend, {"fused": "native"}.get(name, name), call)


@contextlib.contextmanager
def products_of(case: Case) -> Iterator[None]:
    """Products of float32 as the case has them, ours and PyTorch's."""
    ours, theirs = dmlkernels.get_float32_precision(), torch.get_float32_matmul_precision()
    dmlkernels.set_float32_precision(case.precision)
    torch.set_float32_matmul_precision("high" if case.precision == "tf32" else "highest")
    try:
        yield
    finally:
        dmlkernels.set_float32_precision(ours)  # type: ignore[arg-type]
        torch.set_float32_matmul_precision(theirs)
