"""Data, contenders and clock of the benchmarks, and the check without which no time is taken.

Contenders: "fused" (this package's C++ or CUDA), "triton" (its Triton kernels), "reference" (eager PyTorch, the
specification), "compiled" (torch.compile of it), "peer" (pytorch-metric-learning), "product" (t_gemm: one torch.mm of
the rows into a buffer that is there already), and of the coding rates "mcr2_loop" (what the public MCR² code does with
the classes) and "logdet" (torch.logdet).
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import platform
import re
import subprocess
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize
from torch.utils._python_dispatch import TorchDispatchMode

import dmlkernels
from dmlkernels import functional as F
from dmlkernels._schemas import TILE
from dmlkernels.losses import RankedListLoss
from dmlkernels.train.measure import peak_extra_bytes

ROOT = Path(__file__).resolve().parent.parent

SAMPLES = 30
LONG = 1.0  # seconds; a contender that takes longer is sampled ...
LONG_BUDGET = 10.0  # ... for about so many seconds,
FEWEST = 3  # but at least so often
FRESH = 3  # batches that take turns

PER_CLASS = 8
# Share of the ordered pairs that the Ranked List Loss must find active for the data to deserve its name.
SHARE = {"dense": (0.6, 1.0), "sparse": (0.0, 0.05), "spread": (0.02, 0.05)}

VALUE_TOLERANCE = 2e-5  # of a distance or a loss of unit rows, absolute
GRADIENT_TOLERANCE = 1e-4  # of a gradient row, relative to itself and to the mean row
# How much more the rounding of operands to 8 or 11 bits allows, in values, gradients and rows on either side.
COARSE = {"bfloat16": 500.0, "tf32": 100.0}
# The D × D determinants of the MCR² loop lose 2e-4 to rounding where the Gram matrix of the class's rows loses 4e-7.
ROUGH = {"mcr2_loop": 4e-4}
EITHER_SIDE = 5e-3  # share of rows with a pair so near a boundary that rounding decides on which side it falls
SWITCHED = 0.03  # share of rows for which rounding may change what is chosen, or that are chosen by one side only
TIE = 2e-6  # distances of unit rows that rounding may put in either order

EXPANSION = 8  # synthetics of a row
MATRIX = 16  # rows and columns of the matrices that are factored

REFERENCE_BYTES = 50  # per pair: what the eager reference needs at most, forward and backward (measured: 28 to 48)

LOOP_MATRICES = 5  # D × D float32, per class: what autograd holds of the MCR² loop until the backward (measured: 4.4)


class Batch(NamedTuple):
    embeddings: Tensor  # (M, D)
    labels: Tensor  # (M,)
    ref_emb: Tensor | None  # (N, D)
    ref_labels: Tensor | None  # (N,)
    alpha: float

    @property
    def pair(self) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        return self.embeddings, self.labels, self.ref_emb, self.ref_labels

    def training(self) -> Batch:
        """The same rows, as a leaf of their own; a gallery is a memory bank and gets no gradient."""
        return self._replace(embeddings=self.embeddings.detach().requires_grad_())


def make_batch(kind: str, rows: int, width: int, gallery: int = 0, seed: int = 0) -> Batch:
    """Rows of shuffled classes of PER_CLASS each, and the alpha that goes with them.

    Args:
        kind: "dense", early in training: all rows point roughly the same way, and most negatives are nearer than RLL's
            default alpha. "sparse", late: classes are tight and far apart, but for one class in four that lies near
            another; most tiles have no active pair. "spread": rows without structure, and an alpha that one negative in
            30 falls short of, wherever one looks; few pairs are active, and no tile is empty.
    """
    generator = torch.Generator().manual_seed(seed)
    classes = (gallery or rows) // PER_CLASS
    centres = normalize(torch.randn(classes, width, generator=generator), dim=1)
    confused = classes // 8
    centres[:confused] = normalize(0.55 * centres[confused : 2 * confused] + 0.835 * centres[:confused], dim=1)

    def draw(count: int) -> tuple[Tensor, Tensor]:
        labels = (torch.arange(count) // PER_CLASS)[torch.randperm(count, generator=generator)]
        noise = torch.randn(count, width, generator=generator) / width**0.5
        if kind == "spread":
            return noise, labels
        common, cosine = (centres[:1], 0.34) if kind == "dense" else (centres[labels], 0.84)
        return cosine**0.5 * common + (1 - cosine) ** 0.5 * noise, labels

    # A distance of random unit rows is about normal, of mean √2 and standard deviation 1/√(2D).
    alpha = {"dense": 1.2, "sparse": 1.0, "spread": 2**0.5 - 1.95 / (2 * width) ** 0.5}[kind]
    return Batch(*draw(rows), *(draw(gallery) if gallery else (None, None)), alpha)


_device = torch.device("cpu")


def use_device(name: str) -> None:
    """Where every later batch and contender lives."""
    global _device
    _device = torch.device(name)


class _TileBitmap(TorchDispatchMode):
    """Keeps the bitmap that the forward hands to the backward."""

    tiles: Tensor  # (ceil(M/TILE), ceil(N/TILE)) uint8

    def __torch_dispatch__(
        self, func: Callable, types: Sequence[type], args: tuple = (), kwargs: dict | None = None
    ) -> object:
        out = func(*args, **(kwargs or {}))
        if func is torch.ops.dmlkernels.ranked_list_fwd.default:
            self.tiles = out[4]
        return out


def active_shares(batch: Batch) -> tuple[float, float]:
    """Share of the pairs, and of the tiles, that the Ranked List Loss finds active."""
    loss = RankedListLoss(alpha=batch.alpha)
    with torch.no_grad(), dmlkernels.use_backend("native"), _TileBitmap() as bitmap:
        loss(batch.embeddings, batch.labels, ref_emb=batch.ref_emb, ref_labels=batch.ref_labels)
    active = loss.last_stats["active_positives"] + loss.last_stats["active_negatives"]
    m = len(batch.labels)
    if batch.ref_labels is not None:
        return float(active) / (m * len(batch.ref_labels)), float(bitmap.tiles.float().mean())
    # Of a symmetric matrix the kernels visit the upper triangle only.
    seen = torch.ones_like(bitmap.tiles, dtype=torch.bool).triu()
    return float(active) / (m * (m - 1)), float(bitmap.tiles[seen].float().mean())


def assert_share(kind: str, share: float) -> None:
    low, high = SHARE[kind]
    assert low <= share <= high, f"{kind} data: {share:.1%} of the pairs are active, expected {low:.0%} to {high:.0%}"


class Operation(NamedTuple):
    title: str
    call: Callable[[Batch], tuple[Tensor, ...]]  # differentiable outputs, then the rows (M,) int64 that were chosen
    outputs: str  # shapes of the differentiable ones: "1" (), "M" (M,), "N" (M, N), "E" those of an expansion
    pairs: bool = True  # of every row with every other


def _mine(negative: str, batch: Batch) -> tuple[Tensor, ...]:
    mined = F.mine(*batch.pair, negative=negative)
    return mined.pos_distance, mined.neg_distance, mined.pos_index, mined.neg_index


def _classes(rows: int) -> int:
    return rows // PER_CLASS


def _with_proxies(batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings, labels and proxies; the last rows are the proxies, so their gradient is compared with the others'."""
    count = _classes(len(batch.labels))
    return batch.embeddings[:-count], batch.labels[:-count], batch.embeddings[-count:]


@cache
def _noise(*shape: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device, dtype)


def _expand(batch: Batch) -> tuple[Tensor, ...]:
    # Drawing the noise would take as long as using it, in all contenders.
    rows, labels, proxies = _with_proxies(batch)
    noise = _noise(len(rows), EXPANSION - 1, rows.shape[1], dtype=rows.dtype, device=rows.device)
    return (F.spherical_expansion(rows, labels, proxies, n=EXPANSION, noise=noise, differentiable=True).embeddings,)


def _small_logdets(batch: Batch) -> tuple[Tensor, ...]:
    rows = batch.embeddings.unflatten(0, (-1, MATRIX))
    return (F.cholesky_logdet(rows @ rows.mT + torch.eye(MATRIX, device=rows.device)).sum(),)


OPERATIONS = {
    "ranked_list": Operation("Ranked List Loss", lambda b: (F.ranked_list_loss(*b.pair, alpha=b.alpha),), "1"),
    "ranked_list_pml": Operation(
        "Ranked List Loss as pytorch-metric-learning has it",
        lambda b: (F.ranked_list_loss(*b.pair, alpha=b.alpha, eps_mode="pml", weight_grad=True),),
        "1",
    ),
    "nearest_positive": Operation("nearest positive", lambda b: tuple(F.nearest_positive(*b.pair)), "M"),
    "mine_hard": Operation("mine, easy × hard", partial(_mine, "hard"), "MM"),
    "mine_semihard": Operation("mine, easy × semihard", partial(_mine, "semihard"), "MM"),
    "triplet": Operation("triplet loss, easy × hard", lambda b: (F.triplet_loss(*b.pair),), "1"),
    "pairwise": Operation("pairwise cosine", lambda b: (F.pairwise_similarity(b.embeddings, b.ref_emb),), "N"),
    "pairwise_distance": Operation(
        "pairwise distance", lambda b: (F.pairwise_distance(b.embeddings, b.ref_emb, normalize=True),), "N"
    ),
    "coding_rate": Operation("coding rate", lambda b: (F.coding_rate(b.embeddings),), "1", pairs=False),
    "class_coding_rate": Operation(
        "coding rate per class", lambda b: (F.class_coding_rate(b.embeddings, b.labels),), "1", pairs=False
    ),
    "cholesky": Operation(f"log-determinants of {MATRIX} × {MATRIX}", _small_logdets, "1", pairs=False),
    "spherical_expansion": Operation("spherical expansion", _expand, "E", pairs=False),
    "proxy_anchor": Operation("Proxy-Anchor", lambda b: (F.proxy_anchor_loss(*_with_proxies(b)),), "1", pairs=False),
}


class Case(NamedTuple):
    """One row of the table: an operation on M rows of width D of one kind of data, against themselves or a gallery."""

    name: str
    operation: str
    kind: str
    rows: int
    width: int
    gallery: int = 0
    rivals: tuple[str, ...] = ("reference", "product")
    timed: bool = True
    memory: bool = True
    dtype: str = "float32"
    precision: str = "ieee"  # of products of float32

    @property
    def columns(self) -> int:
        return self.gallery or self.rows

    def batch(self, seed: int = 0) -> Batch:
        batch = make_batch(self.kind, self.rows, self.width, self.gallery, seed)
        moved = (None if t is None else t.to(_device) for t in batch[:4])
        x, labels, ref_emb, ref_labels = moved
        dtype = getattr(torch, self.dtype)
        return Batch(x.to(dtype), labels, None if ref_emb is None else ref_emb.to(dtype), ref_labels, batch.alpha)

    @property
    def numbers(self) -> str | None:
        """What is multiplied, if not plain float32."""
        return self.dtype if self.dtype != "float32" else None if self.precision == "ieee" else self.precision

    @property
    def coarse(self) -> float:
        """How many times the tolerances of float32 hold here."""
        return COARSE.get(self.numbers or "", 1.0)

    def shrunk(self) -> Case:
        """The same at a size that takes milliseconds."""
        rows = 64 if self.gallery else 512 if self.rows >= self.width else 32
        return self._replace(rows=rows, width=64, gallery=1024 if self.gallery else 0)

    def incoming(self) -> tuple[Tensor, ...]:
        """Gradients of the outputs."""
        expanded = EXPANSION * (self.rows - _classes(self.rows)), self.width
        shapes = {"1": (), "M": (self.rows,), "N": (self.rows, self.columns), "E": expanded}
        generator = torch.Generator().manual_seed(0)
        drawn = (0.5 + torch.rand(shapes[o], generator=generator) for o in OPERATIONS[self.operation].outputs)
        return tuple(gradient.to(_device) for gradient in drawn)


Run = Callable[[Batch], tuple[Tensor, ...]]


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
        return partial(_product, torch.empty(case.rows, case.columns, dtype=getattr(torch, case.dtype), device=_device))
    if name == "peer":
        return _peer(case)
    if name in ("mcr2_loop", "logdet"):
        return {"mcr2_loop": _mcr2_loop, "logdet": _logdet}[name]
    if name == "compiled":
        # Without this the graph breaks at the reference's nonzero, and half of the gain is lost.
        torch._dynamo.config.capture_dynamic_output_shape_ops = True
        return partial(_on_backend, "reference", torch.compile(call, fullgraph=True))
    return partial(_on_backend, {"fused": "native"}.get(name, name), call)


class Taken(NamedTuple):
    forward: float  # seconds
    total: float  # seconds, with the backward
    outputs: tuple[Tensor, ...]
    grad: Tensor | None  # (M, D)


class _Clock:
    """Marks of one run. On a GPU they are events in the stream: the processor that launches runs ahead of it."""

    def __init__(self) -> None:
        self._marks: list[Any] = []

    def mark(self) -> None:
        if _device.type == "cuda":
            self._marks.append(torch.cuda.Event(enable_timing=True))
            self._marks[-1].record()
        else:
            self._marks.append(time.perf_counter())

    def seconds(self) -> list[float]:
        """From the first mark to each later one."""
        first, *later = self._marks
        if _device.type == "cuda":
            torch.cuda.synchronize()
            return [first.elapsed_time(mark) / 1e3 for mark in later]
        return [mark - first for mark in later]


def take(run: Run, batch: Batch, incoming: Sequence[Tensor]) -> Taken:
    """One forward, as in training, and its backward."""
    batch, clock = batch.training(), _Clock()
    clock.mark()
    outputs = run(batch)
    clock.mark()
    if not outputs[0].requires_grad:
        (forward,) = clock.seconds()
        return Taken(forward, forward, outputs, None)
    incoming = tuple(g.to(o.dtype) for g, o in zip(incoming, outputs))
    clock.mark()
    torch.autograd.backward(outputs[: len(incoming)], incoming)
    clock.mark()
    forward, started, ended = clock.seconds()
    return Taken(forward, forward + ended - started, tuple(o.detach() for o in outputs), batch.embeddings.grad)


@contextlib.contextmanager
def products_of(case: Case) -> Iterator[None]:
    """Products of float32 as the case has them, ours and PyTorch's."""
    ours, theirs = dmlkernels.get_float32_precision(), torch.get_float32_matmul_precision()
    dmlkernels.set_float32_precision(case.precision)
    torch.set_float32_matmul_precision("high" if case.precision == "tf32" else "highest")
    try:
        yield
    finally:
        dmlkernels.set_float32_precision(ours)
        torch.set_float32_matmul_precision(theirs)


def _switched(case: Case, ours: Taken, theirs: Taken) -> Tensor:
    """(M,) bool: queries that chose differently, and the rows that they chose."""
    switched = torch.zeros(case.rows, dtype=torch.bool, device=_device)
    for ours_out, theirs_out in zip(ours.outputs, theirs.outputs):
        if ours_out.is_floating_point():
            continue
        differ = ours_out != theirs_out
        switched |= differ
        if not case.gallery:
            chosen = torch.cat([ours_out[differ], theirs_out[differ]])
            switched[chosen[chosen >= 0]] = True
    return switched


def assert_agree(case: Case, name: str, ours: Taken, theirs: Taken) -> None:
    """Values and gradients of two contenders in float32 differ by rounding only."""
    where = f"{case.name} {case.rows}×{case.columns}×{case.width}: fused and {name}"
    switched = _switched(case, ours, theirs)
    count = int(switched.sum())
    assert count <= min(0.5, SWITCHED * case.coarse) * case.rows, f"{where} disagree in the choices around {count} rows"
    for k, (ours_out, theirs_out) in enumerate(zip(ours.outputs, theirs.outputs)):
        if not ours_out.is_floating_point():
            continue
        # Infinity (nothing to select) equals infinity; NaN is never close.
        allowed = VALUE_TOLERANCE * case.coarse
        close = torch.isclose(ours_out.double(), theirs_out.double(), rtol=allowed, atol=allowed)
        if case.operation == "mine_semihard" and k == 1:
            # Semi-hard is strictly farther than the positive: one as far as it is chosen by one side and not the other.
            close |= switched & ((torch.minimum(ours_out, theirs_out) - ours.outputs[0]).abs() <= TIE)
        assert bool(close.all()), f"{where} disagree in {int((~close).sum())} values"
    assert ours.grad is not None
    assert theirs.grad is not None
    size = torch.linalg.vector_norm(theirs.grad.float(), dim=1)
    error = torch.linalg.vector_norm(ours.grad.float() - theirs.grad.float(), dim=1)
    assert float(size.mean()) > 0, f"{where}: no gradient"
    tolerance = ROUGH.get(name, GRADIENT_TOLERANCE) * case.coarse
    lost = (ours.grad == 0).all(1) & (size > tolerance * size.mean()) & ~switched
    assert not bool(lost.any()), f"{where} disagree: {int(lost.sum())} gradient rows are zero"
    wrong = ~(error <= tolerance * (size + size.mean())) & ~switched
    count = int(wrong.sum())
    assert count <= min(0.5, EITHER_SIDE * case.coarse) * case.rows, (
        f"{where} disagree in {count} gradient rows, by up to {error.max():.1e}"
    )


def assert_rivals_agree(case: Case, names: Sequence[str] = ("reference",)) -> None:
    batch, incoming = case.batch(), case.incoming()
    with products_of(case):
        ours = take(contender(case, "fused"), batch, incoming)
        for name in names:
            assert_agree(case, name, ours, take(contender(case, name), batch, incoming))


def time_forward(benchmark: Any, case: Case, name: str) -> None:
    """The forward as in training, by pytest-benchmark."""
    benchmark.group = f"{case.name} forward"
    run, batch = contender(case, name), case.batch().training()
    benchmark(run, batch)


def time_backward(benchmark: Any, case: Case, name: str) -> None:
    """The backward of a fresh forward each time, by pytest-benchmark."""
    benchmark.group = f"{case.name} backward"
    run, batch, incoming = contender(case, name), case.batch(), case.incoming()
    benchmark.pedantic(
        torch.autograd.backward,
        setup=lambda: ((run(batch.training())[: len(incoming)], incoming), {}),
        rounds=SAMPLES,
        warmup_rounds=1,
    )


def quantiles(seconds: Sequence[float]) -> list[float]:
    """20 %, 50 % and 80 %, to 4 digits."""
    levels = torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)
    return [float(f"{q:.4g}") for q in torch.quantile(torch.tensor(seconds, dtype=torch.float64), levels).tolist()]


def measure(case: Case, names: Sequence[str], samples: int = SAMPLES) -> dict[str, dict]:
    """Times of the contenders, the fused one first, taking turns in this process; every rival is checked against it.

    A contender that takes longer than LONG skips turns, evenly.
    """
    with products_of(case):
        return _measure(case, names, samples)


def _measure(case: Case, names: Sequence[str], samples: int) -> dict[str, dict]:
    batches, incoming = [case.batch(seed) for seed in range(FRESH)], case.incoming()
    runs = {name: contender(case, name) for name in names}
    turns = {}
    first: Taken | None = None
    for name, run in runs.items():
        if name == "compiled" or _device.type == "cuda":
            take(run, batches[0], incoming)  # compiles, or makes the handles of the CUDA libraries
        taken = take(run, batches[0], incoming)
        if first is None:
            first = taken
        elif taken.grad is not None:
            assert_agree(case, name, first, taken)
        wanted = samples if taken.total <= LONG else int(LONG_BUDGET / taken.total)
        turns[name] = min(samples, max(FEWEST, wanted))
        del taken
    del first

    taken_by: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for turn in range(samples):
        for name, run in runs.items():
            if (turn + 1) * turns[name] // samples > turn * turns[name] // samples:
                taken_by[name].append(take(run, batches[turn % FRESH], incoming)[:2])
    result: dict[str, dict] = {}
    for name, times in taken_by.items():
        forward, total = zip(*times)
        result[name] = {"samples": len(times), "forward": quantiles(forward), "total": quantiles(total)}
    return result


def _peak(case: Case, name: str) -> int | None:
    def step(of: Case, batch: Batch, incoming: Sequence[Tensor]) -> None:
        take(contender(of, name), batch, incoming)

    # A compiled function is specialised to its shape: only the full size brings its code in.
    tiny = case if name == "compiled" else case.shrunk()
    full = partial(step, case, case.batch(), case.incoming())
    with products_of(case):
        return peak_extra_bytes(full, partial(step, tiny, tiny.batch(), tiny.incoming()), _device)


def _rate(seconds: Callable[[], float], flops: float) -> float:
    return float(f"{flops / sorted(seconds() for _ in range(7))[3] / 1e9:.3g}")


def _one_thread(rows: int, width: int) -> dict[str, float]:
    """GFLOP/s of the product alone, with one thread: this package's tiles, and torch.mm."""
    torch.set_num_threads(1)
    x, buffer = torch.randn(rows, width), torch.empty(rows, rows)
    labels = torch.arange(rows)  # no positives, and no negative nearer than alpha: products and cheap tests are left

    def clock(run: Callable[[], object]) -> float:
        start = time.process_time()
        run()
        return time.process_time() - start

    ours = rows * (rows + TILE) * width  # the tiles on and above the diagonal
    with dmlkernels.use_backend("native"):
        tiles = _rate(partial(clock, lambda: F.ranked_list_loss(x, labels, alpha=1e-3, margin=0.0)), ours)
    return {"tiles": tiles, "mm": _rate(partial(clock, lambda: torch.mm(x, x.T, out=buffer)), 2 * rows * rows * width)}


_children = multiprocessing.get_context("forkserver")
# The children fork from a process that has imported everything and computed nothing.
_children.set_forkserver_preload(["dmlkernels.train.measure"])


def in_child(function: Callable, *arguments: object) -> object:
    """function(*arguments) in a fresh process; None if the system ended it, as it does when memory runs out."""
    with ProcessPoolExecutor(1, mp_context=_children) as pool:
        try:
            return pool.submit(function, *arguments).result()
        except BrokenProcessPool:
            return None


def peak_bytes(case: Case, name: str) -> int | None:
    """Extra bytes of one forward and backward, on the CPU in a process that has done nothing else; None: unknown."""
    return _peak(case, name) if _device.type == "cuda" else in_child(_peak, case, name)


def one_thread_rates(rows: int = 4096, width: int = 2048) -> dict[str, float] | None:
    return in_child(_one_thread, rows, width)


def _field(path: str, name: str) -> str | None:
    """The first value of a field in a file of /proc."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError:
        return None
    found = re.search(rf"^{name}\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1].strip() if found else None


def _memory(name: str) -> int | None:
    """Bytes of a field of /proc/meminfo."""
    field = _field("/proc/meminfo", name)
    return int(field.split()[0]) * 1024 if field else None


def reference_fits(case: Case) -> bool:
    """Whether there is memory for the eager reference's M×N matrices, if it makes any."""
    return not OPERATIONS[case.operation].pairs or _fits(REFERENCE_BYTES * case.rows * case.columns)


def loop_fits(case: Case) -> bool:
    """Whether there is memory for the D×D matrices of all classes."""
    return _fits(LOOP_MATRICES * 4 * case.width**2 * _classes(case.rows))


def _fits(size: int) -> bool:
    free = torch.cuda.mem_get_info(_device)[0] if _device.type == "cuda" else _memory("MemAvailable")
    return free is None or size < free


def _commit() -> str:
    def git(*arguments: str) -> str | None:
        done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else None

    try:
        commit = git("rev-parse", "--short=12", "HEAD")
        changed = git("status", "--porcelain", "--untracked-files=no", "--", "csrc", "dmlkernels", "bench/*.py")
    except FileNotFoundError:
        return "unknown"
    return "unknown" if commit is None else commit + (" with changes" if changed else "")


def machine() -> dict[str, str | int | float]:
    """What the numbers belong to."""
    from dmlkernels import _C  # a build without it is refused in plain words before this

    memory = _memory("MemTotal")
    return {
        "cpu": _field("/proc/cpuinfo", "model name") or platform.processor() or platform.machine(),
        "cores": os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        "memory_gb": round(memory / 1e9) if memory else 0,
        "isa": _C.cpu_capability(),
        "torch": torch.__version__,
        "dmlkernels": dmlkernels.__version__,
        "commit": _commit(),
        "load": round(os.getloadavg()[0], 2),
        **({"gpu": _gpu()} if _device.type == "cuda" else {}),
    }


def _gpu() -> str:
    properties = torch.cuda.get_device_properties(_device)
    return f"{properties.name}, {properties.total_memory / 1e9:.0f} GB, CUDA {torch.version.cuda}"


def slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
