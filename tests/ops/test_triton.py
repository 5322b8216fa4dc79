"""What only the Triton backend has: two schedules, block sizes, roundings of products, pinned configurations."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support import settings
from support.nearest_positive import match as match_selection
from support.pair_loss import OPTIONS as STATISTICS
from support.pair_loss import Case, bounds_for, call, differentiable, forward_arguments, has_moment
from support.pairs import tensors
from support.pairwise import match as match_pairwise
from support.pairwise import rows
from support.ranked_list import OPTIONS, draw, match

import dmlkernels
from bench.report import triton_cases
from dmlkernels import _backend, _verify
from dmlkernels import functional as F
from dmlkernels._contract import OPERATORS
from dmlkernels.testing import assert_matches, evaluate, make_pairs

triton = pytest.importorskip("triton")

from dmlkernels.triton_kernels import MODULES, _configs, _pair  # noqa: E402  (needs Triton)

ROOT = Path(__file__).resolve().parents[2]
NAMES = ["default", "weight_grad", "query", "easy", "pml_constant", "unnormalized"]


@pytest.fixture
def triton_device():
    """Device on which the Triton backend runs here; it is in use during the test."""
    (device,) = _backend.loaded["triton"]
    with dmlkernels.use_backend("triton"):
        yield device


@pytest.fixture
def by_tiles(monkeypatch):
    """The schedule of large problems: one program a tile, both ends by atomics."""
    monkeypatch.setattr(_configs, "SYMMETRIC_FROM", 0)
    with settings.deterministic(False):
        yield


@pytest.fixture
def small_blocks(monkeypatch):
    """Several tiles of pairs share a byte of the bitmap, and features come in several steps and pieces."""
    config = _configs.Config(64, 64, 16, 16, 4, 1)
    monkeypatch.setattr(_configs, "choose", lambda *arguments, **named: config)


# Both schedules against the float64 reference.


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("n", [None, 140], ids=["self", "reference"])
@pytest.mark.parametrize("name", NAMES)
def test_tiles_with_atomics(triton_device, by_tiles, name, n, dtype):
    pairs = draw("random", 135, n, 12, OPTIONS[name], dtype=dtype, seed=2, device=triton_device)
    match(pairs, OPTIONS[name])


@pytest.mark.parametrize("n", [None, 90], ids=["self", "reference"])
@pytest.mark.parametrize("name", ["weight_grad", "query"])
def test_small_blocks_with_atomics(triton_device, by_tiles, small_blocks, name, n):
    match(draw("random", 133, n, 20, OPTIONS[name], seed=3, device=triton_device), OPTIONS[name])


@pytest.mark.parametrize("n", [None, 90], ids=["self", "reference"])
@pytest.mark.parametrize("kind", ["duplicates", "collapsed"])
def test_tiles_of_near_pairs(triton_device, by_tiles, small_blocks, kind, n):
    """A second launch takes them, by smaller tiles."""
    match(draw(kind, 133, n, 20, seed=3, device=triton_device), OPTIONS["default"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("n", [None, 90], ids=["self", "reference"])
def test_small_blocks_by_rows(triton_device, small_blocks, n, dtype):
    match(draw("random", 133, n, 20, dtype=dtype, seed=3, device=triton_device), OPTIONS["default"])


@pytest.mark.parametrize("choice", ["easy_hard", "hard_semihard"])
def test_small_blocks_of_selections(triton_device, small_blocks, choice):
    match_selection(choice, make_pairs("random", 133, 90, 20, seed=3, device=triton_device))


@pytest.mark.parametrize("name", ["cosine", "euclidean"])
@pytest.mark.parametrize("n", [None, 90], ids=["self", "other"])
def test_small_blocks_of_pairwise(triton_device, small_blocks, name, n):
    match_pairwise(name, rows("random", 133, n, 20, seed=3, device=triton_device), max_quiet=0.2)


@pytest.mark.full
@pytest.mark.parametrize("n", [None, 90], ids=["self", "reference"])
@pytest.mark.parametrize(
    "name",
    ["multi_similarity", "steep", "contrastive", "softplus_positives", "ranked_weights", "ranked_query",
     "cosine_moment", "softplus_and_moment", "exp_and_softplus"],
)  # fmt: skip
def test_small_blocks_of_pair_loss(triton_device, by_tiles, small_blocks, name, n):
    """Bounds of every row: a pair may take part at one end only, and so may a tile."""
    pairs = make_pairs("random", 133, n, 20, 12, torch.float64, seed=3, device=triton_device)
    options = STATISTICS[name]
    bounds = None if has_moment(options) else bounds_for(options, 133).to(triton_device)
    # Of the steep ones two factors of a gradient are as steep as their scores of up to 300.
    steep = 600.0 if name == "steep" else 200.0
    assert_matches(differentiable(Case(pairs, options, bounds, {})), tensors(pairs), scale=200.0, exponent=steep)


@pytest.mark.parametrize(
    "name", ["circle", "contrastive", "hinge_negatives", "softplus_positives", "ranked", "hinge_and_exp", "apart"]
)
def test_the_schedules_of_pair_loss_agree(triton_device, monkeypatch, name):
    """float64: statistics, and a bitmap that is not symmetric where only the first rows ask for pairs."""
    monkeypatch.setattr(_configs, "SYMMETRIC_FROM", 0)
    pairs, options = (
        make_pairs("random", 300, None, 8, dtype=torch.float64, seed=4, device=triton_device),
        STATISTICS[name],
    )
    bounds = None
    if not has_moment(options):
        bounds = bounds_for(options, 300).to(triton_device)
        asked = torch.tensor([side.scale for side in options.sides()]) > 0
        bounds[:, 128:] = torch.where(asked, 9.0, -9.0).to(bounds)[:, None]
    known = forward_arguments(Case(pairs, options, bounds, {}))
    forward = torch.ops.dmlkernels_triton.pair_loss_fwd
    tiles, by_rows = (forward(**known | {"deterministic": deterministic}) for deterministic in (False, True))
    for a, b in zip(tiles[:5], by_rows[:5], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    assert torch.equal(tiles[5], by_rows[5])
    asymmetric = bounds is not None and name != "softplus_positives"
    assert bool((tiles[5] != tiles[5].T).any()) == asymmetric


@pytest.mark.parametrize("n", [None, 9], ids=["self", "reference"])
def test_labels_outside_the_classes_make_everything_nan(triton_device, monkeypatch, n):
    """As on a GPU, which nobody waits for."""
    checked = _verify.check
    monkeypatch.setattr(_verify, "check", lambda operator, given, read=False: checked(operator, given))
    pairs = make_pairs("random", 12, n, 4, 3, device=triton_device)
    (pairs.labels if n is None else pairs.ref_labels)[5] = 3
    case = Case(pairs, STATISTICS["ranked"]._replace(classes=3), None, {})
    assert all(t.isnan().all() for t in call(case, *tensors(pairs))[:6])
    assert all(grad.isnan().all() for grad in evaluate(differentiable(case), tensors(pairs)).grads)


@triton.jit
def _tile_of_program(out, tiles):
    program = triton.language.program_id(0)
    i, j = _pair.upper_tile(program, tiles)
    triton.language.store(out + i * tiles + j, program + 1)


_tile_of_program.fn.__globals__["tl"] = triton.language  # the interpreter looks for it by this name


@pytest.mark.parametrize("tiles", [1, 2, 3, 8, 9])
def test_every_tile_of_the_triangle_once(triton_device, tiles):
    out = torch.zeros(tiles, tiles, dtype=torch.int32, device=triton_device)
    programs = tiles * (tiles + 1) // 2
    _tile_of_program[(programs,)](out, tiles)
    assert torch.equal(out.triu(), out)
    assert sorted(out[out > 0].tolist()) == list(range(1, programs + 1))


# Lower precisions of float32: rows and weights are rounded for the products, and what is left of them is exact.


@pytest.mark.parametrize("precision, tolerance", [("ieee", 1e-5), ("tf32x3", 1e-5), ("tf32", 5e-3), ("bf16", 5e-2)])
@pytest.mark.parametrize("n", [None, 90], ids=["self", "reference"])
def test_gradients_of_lower_precisions(triton_device, monkeypatch, precision, tolerance, n):
    pairs = draw("random", 130, n, 24, seed=5, device=triton_device)
    tensors = [t for t in (pairs.embeddings, pairs.ref_emb) if t is not None]

    def loss(x, g=None):
        # Every pair is a member: no rounding decides.
        return F.ranked_list_loss(x, pairs.labels, g, pairs.ref_labels, alpha=3.0, margin=3.5)

    with dmlkernels.use_backend("reference"):
        true = evaluate(loss, [t.double() for t in tensors])
    monkeypatch.setattr(_backend, "_precision", precision)
    got = evaluate(loss, tensors)
    for a, b in zip(got.grads, true.grads, strict=True):
        assert float((a.double() - b).norm()) <= 4 * tolerance * float(b.norm())


def test_rounded_copies_stay_at_distance_zero(triton_device, monkeypatch):
    monkeypatch.setattr(_backend, "_precision", "tf32")
    x = rows("random", 40, None, 19, seed=6, device=triton_device)[0]
    out = F.pairwise_distance(torch.cat([x, x]))
    assert torch.equal(out.diagonal(40), torch.zeros_like(out.diagonal(40)))


# Grids: a GPU takes 2^31 - 1 programs along the first axis, and 65,535 along the others.

MANY = 8_400_000
# Rows, gallery rows and classes, and what is left out: a matrix that no memory holds, and a walk in many stripes.
LARGE = ("pairwise", "triplet", "distance_weighted")
SIZES = {
    "gallery": (300, MANY, 1000, ()),
    "rows": (MANY, 1, 1000, LARGE),
    "classes": (300, 300, 300_000, ()),
    "both": (4_300_000, 4_300_000, 1000, LARGE),
}


@pytest.fixture
def grids(monkeypatch):
    """The kernels and grids of all launches, none of which is done."""
    found = []
    monkeypatch.setattr(_configs, "INTERPRETED", False)

    def note(kernel, grid):
        found.append((kernel.fn.__name__, grid))
        return lambda *arguments, **named: None

    for module in set(MODULES.values()) | {"_rows", "_listed", "_large_classes"}:
        monkeypatch.setattr(importlib.import_module(f"dmlkernels.triton_kernels.{module}"), "launch", note)
    return found


@pytest.mark.parametrize("size", SIZES)
def test_no_grid_is_larger_than_a_gpu_takes(grids, monkeypatch, size):
    m, n, classes, left_out = SIZES[size]
    monkeypatch.setattr(triton_cases, "M", m)
    monkeypatch.setattr(triton_cases, "N", n)
    monkeypatch.setattr(triton_cases, "C", classes)
    for operator, arguments in triton_cases.calls([torch.float32], quick=False):
        operation = operator.rpartition("_")[0]
        if operation not in left_out:
            module = importlib.import_module(f"dmlkernels.triton_kernels.{MODULES[operation]}")
            module.OPERATORS[operator](**OPERATORS[operator].named(arguments))
    assert len(grids) > 100
    assert [(name, grid) for name, grid in grids if grid[0] >= 2**31 or any(side > 65535 for side in grid[1:])] == []


# Specialisations: the sizes of a batch are not among what Triton compiles for.

COUNT = """
import torch
from triton.backends.compiler import GPUTarget
from triton.compiler import make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature
from dmlkernels._contract import OPERATORS
from dmlkernels.ops.pair_loss import Options, Side
from dmlkernels.triton_kernels import nearest_positive, pair_loss, pairwise

binders, found, label = {}, {}, ""

def note(kernel, *arguments, grid, warmup, **named):
    if kernel not in binders:
        backend = make_backend(GPUTarget("cuda", 90, 32))
        binders[kernel] = create_function_from_signature(kernel.signature, kernel.params, backend)
    specialization = binders[kernel](*arguments, **named)[1]
    found.setdefault(label + kernel.fn.__module__ + "." + kernel.fn.__name__, set()).add(str(specialization))

JITFunction.run = note

def call(module, operator, *values):
    module.OPERATORS[operator](**OPERATORS[operator].named(values))

lifted = Options("distance", Side("exp", 10.0, 0.5), Side("exp", -10.0, 1.0))
ranked = Options("distance", Side("moment", 1.0, 0.8), Side("moment", -1.0, 1.2, temperature=10.0))
for m in (*range(2, 40), 64, 100, 127, 128, 129, 256, 1000, 4096, 5000, 8192):
    x, y = torch.randn(m, 32), torch.arange(m) % 4
    pair = (x, y, None, None, None, None, None, True)
    reference = (x, y, torch.randn(m + 3, 32), torch.arange(m + 3) % 4, None, None, None, True)
    grad, per_row, index = torch.randn(m), torch.randn(2, m), torch.zeros(m, dtype=torch.int64)
    for inputs in (pair, reference):
        n = m if inputs is pair else m + 3
        tiles = torch.ones(-(-m // 128), -(-n // 128), dtype=torch.uint8)
        for label, loss, bounds in (("lifted: ", lifted, per_row), ("ranked: ", ranked, None)):
            for deterministic in (False, True):
                options = (*loss.arguments(), "ieee", deterministic)
                call(pair_loss, "pair_loss_fwd", *inputs, bounds, *options, False)
                call(
                    pair_loss, "pair_loss_bwd",
                    *[per_row] * 3, *inputs, per_row, per_row, tiles, bounds, *options, inputs is reference,
                )
        label = ""
        call(nearest_positive, "mine_fwd", *inputs, "easy", "semihard", "ieee", False)
        call(nearest_positive, "nearest_positive_bwd", grad, x, inputs[2], index, True, inputs is reference)
        call(pairwise, "pairwise_fwd", x, inputs[2], "euclidean", True, "ieee")
        call(pairwise, "pairwise_bwd", torch.randn(m, n), x, inputs[2], "euclidean", True, "ieee")
for name, keys in sorted(found.items()):
    print(name.replace(" ", ""), len(keys))
"""


@pytest.mark.full
def test_batch_sizes_do_not_specialise():
    """Fifty batch sizes, in self and reference mode: what is compiled depends on the mode, not on the size."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", COUNT], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    counts = dict(line.split() for line in done.stdout.splitlines())
    assert len(counts) >= 19
    # Self and reference mode, and in reference mode either side as the one that owns the rows.
    assert max(map(int, counts.values())) <= 4, counts


def test_frames_beyond_the_registers_are_refused(triton_device):
    z = torch.randn(2, 1024, device=triton_device)
    noise = torch.randn(2, 39, 1024, device=triton_device)
    with (
        dmlkernels.use_backend("triton"),
        pytest.raises(ValueError, match=r"n must be such that n times D.*got 64 x 1024"),
    ):
        F.spherical_expansion(z, torch.arange(2, device=triton_device), z.flip(0), n=40, noise=noise)
