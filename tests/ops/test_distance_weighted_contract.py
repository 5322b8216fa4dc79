"""distance_weighted: opcheck, torch.compile, vmap, no gradient, determinism, messages, direct calls."""

from __future__ import annotations

import warnings

import pytest
import torch
from support import contract, settings
from support.contract import VIEWS, Recorder, strided
from support.distance_weighted import CUTOFF, FAR, draw, grid
from support.targets import KERNELS

from dmlkernels import _backend, _checks
from dmlkernels.ops.distance_weighted import sample_negatives
from dmlkernels.testing import Pairs, make_pairs


def arguments(pairs, u, ids=None, ref_ids=None, ignore_index=None, precision="ieee"):
    """Arguments of distance_weighted_fwd, in the order of the schema."""
    u = u.to(pairs.labels.device)
    return (*pairs, ids, ref_ids, ignore_index, True, u, CUTOFF, FAR, precision, False)


@pytest.mark.heavy
@pytest.mark.parametrize("extra", ["plain", "ids_and_ignore_index", "permuted"])
@pytest.mark.parametrize("n", [None, 7], ids=["self", "reference"])
def test_opcheck(kernel, device, n, extra):
    pairs, u, more = make_pairs("random", 9, n, 4, 3, device=device), grid(9, 3), {}
    if extra == "ids_and_ignore_index":
        more = {"ids": torch.arange(9, device=device), "ignore_index": 1}
        more |= {} if n is None else {"ref_ids": torch.arange(n, device=device)}
    elif extra == "permuted":
        pairs = Pairs(
            *(t if t is None else VIEWS["transposed"](t) if t.is_floating_point() else strided(t) for t in pairs)
        )
        u = VIEWS["transposed"](u)
    leaves = [t.requires_grad_() if t is not None and t.is_floating_point() else t for t in pairs]
    contract.check_operator(kernel.operators.distance_weighted_fwd, arguments(Pairs(*leaves), u, **more))


@pytest.mark.parametrize("n", [None, 150], ids=["self", "reference"])
@pytest.mark.parametrize("view", VIEWS)
def test_strided(kernel, device, view, n):
    pairs, u = make_pairs("random", 140, n, 6, seed=1, device=device), grid(140, 5)
    viewed = Pairs(
        *(t if t is None else VIEWS[view](t) if t.is_floating_point() else strided(t) for t in pairs),
    )
    assert torch.equal(draw(viewed, VIEWS[view](u)), draw(pairs, u))


@pytest.mark.heavy
@pytest.mark.parametrize("backend_of_torch", ["aot_eager", "inductor"])
@pytest.mark.parametrize("n", [None, 33], ids=["self", "reference"])
def test_compile(kernel, device, n, backend_of_torch):
    pairs, u = make_pairs("random", 40, n, 6, device=device), grid(40, 4).to(device)
    torch.compiler.reset()
    compiled = torch.compile(draw, fullgraph=True, backend=backend_of_torch)
    for uniforms in (u, u.flip(0)):
        assert torch.equal(compiled(pairs, uniforms), draw(pairs, uniforms))


def test_compile_with_dynamic_shapes(kernel, device):
    pairs, u = make_pairs("random", 40, d=6, device=device), grid(40, 4).to(device)
    torch.compiler.reset()
    compiled = torch.compile(draw, fullgraph=True, backend="aot_eager", dynamic=True)
    for m in (40, 7):
        few = Pairs(pairs.embeddings[:m], pairs.labels[:m], None, None)
        assert torch.equal(compiled(few, u[:m]), draw(few, u[:m]))


def test_vmap(kernel, device):
    problems = [make_pairs("random", 30, 20, 5, 3, seed=s, device=device) for s in range(3)]
    uniforms = torch.stack([grid(30, 4, s) for s in range(3)]).to(device)
    rows = torch.stack([p.embeddings for p in problems], 1), torch.stack([p.ref_emb for p in problems])
    operator = kernel.operators.distance_weighted_fwd

    def one(x, g, u):
        return operator(*arguments(problems[0]._replace(embeddings=x, ref_emb=g), u))

    index = torch.vmap(one, in_dims=(1, 0, 0))(*rows, uniforms)
    for b, p in enumerate(problems):
        assert torch.equal(index[b], one(p.embeddings, p.ref_emb, uniforms[b]))


def test_no_gradient(backend, device):
    """Rows that require one are no obstacle, and draw the same."""
    pairs, u = make_pairs("random", 30, 20, 5, 3, device=device), grid(30, 4)
    leaves = pairs._replace(
        embeddings=pairs.embeddings.clone().requires_grad_(), ref_emb=pairs.ref_emb.clone().requires_grad_()
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        index = draw(leaves, u)
    assert not index.requires_grad
    assert torch.equal(index, draw(pairs, u))


def test_the_kernel_is_what_runs(kernel, device):
    pairs, u = make_pairs("random", 30, 20, 5, 3, device=device), grid(30, 4)
    with Recorder() as recorder:
        draw(pairs, u)
    ours = [name for name in recorder.names if name.startswith("dmlkernels")]
    assert ours == [f"{_backend.namespaces[kernel.name]}.distance_weighted_fwd.default"]
    assert not any(name.startswith(("aten.mm", "aten.bmm", "aten.matmul", "aten._cdist")) for name in recorder.names)


@pytest.mark.parametrize("kernel", [k for k in KERNELS if k.name == "triton"], ids=["triton"], indirect=True)
def test_groups_of_rows(kernel, device, monkeypatch):
    """A small workspace takes the rows in several turns, and draws the same."""
    from dmlkernels.triton_kernels import distance_weighted

    pairs, u = make_pairs("random", 300, 40, 3, 5, device=device), grid(300, 2)
    whole = draw(pairs, u)
    monkeypatch.setattr(distance_weighted, "SUMS_BYTES", 1)
    assert torch.equal(draw(pairs, u), whole)
    monkeypatch.setattr(distance_weighted, "MOST_DRAWS", 1)
    assert torch.equal(draw(pairs, u), whole)


@pytest.mark.heavy
@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize("n", [None, 290], ids=["self", "reference"])
def test_deterministic(kernel, device, n, deterministic):
    pairs, u = make_pairs("duplicates", 300, n, 13, 40, device=device), grid(300, 9)
    with settings.deterministic(deterministic):
        contract.check_deterministic(lambda *rows: draw(pairs._replace(embeddings=rows[0]), u), [pairs.embeddings])


def sampled(uniforms, cutoff=CUTOFF, nonzero_loss_cutoff=FAR, check_finite=False, **pair):
    inputs = _checks.pair_inputs("margin_loss", **pair)
    return sample_negatives("margin_loss", inputs, uniforms, cutoff, nonzero_loss_cutoff, check_finite)


def test_messages(backend, device):
    x, y = torch.randn(12, 4, device=device), torch.arange(12, device=device) % 3
    u, op = torch.rand(12, 5, dtype=torch.float64, device=device), "margin_loss: "
    nan = x.clone()
    nan[3, 2] = torch.nan
    far = op + "nonzero_loss_cutoff must be "
    cases = [
        ({"uniforms": None}, op + "uniforms must be a (M, S) tensor, got NoneType"),
        (
            {"uniforms": u.long()},
            op + "uniforms must be float64, float32, bfloat16 or float16, got torch.int64",
        ),
        ({"uniforms": u[0]}, op + "uniforms must be (M, S) with M=12, got (5,)"),
        ({"uniforms": u[:11]}, op + "uniforms must be (M, S) with M=12, got (11, 5)"),
        ({"nonzero_loss_cutoff": 2.5}, far + "at most 2, the largest distance of unit rows, got 2.5"),
        ({"nonzero_loss_cutoff": "1"}, far + "a positive number, got '1'"),
        ({"cutoff": 0}, op + "cutoff must be a positive number, got 0"),
        ({"cutoff": 1.4}, op + "cutoff must be below nonzero_loss_cutoff=1.4, got 1.4"),
        (
            {"embeddings": nan, "check_finite": True},
            op + "embeddings and ref_emb must be finite (check_finite=True), got NaN or Inf",
        ),
    ]
    contract.check_messages(sampled, {"embeddings": x, "labels": y, "uniforms": u}, cases)


@pytest.mark.parametrize("value", [-0.25, 1.0, torch.nan])
def test_uniforms_outside(kernel, device, value):
    """They raise; where nobody waits for the kernel, and in a graph, they draw nothing."""
    pairs, u = make_pairs("random", 30, d=5, classes=3, device=device), grid(30, 4).to(device)
    good = draw(pairs, u)
    u[3, 1] = value
    if device == "cpu":
        with pytest.raises(ValueError, match=r"margin_loss: uniforms must be in \[0, 1\), got"):
            draw(pairs, u)
    if not kernel.asynchronous:
        with pytest.raises(ValueError, match=r"distance_weighted: uniforms must be in \[0, 1\), got"):
            kernel.operators.distance_weighted_fwd(*arguments(pairs, u))
        return
    index = kernel.operators.distance_weighted_fwd(*arguments(pairs, u))
    assert int(index[3, 1]) == -1
    index[3, 1] = good[3, 1]
    assert torch.equal(index, good)
