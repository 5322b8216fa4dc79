"""CrossBatchMemory: when it is used, what of it is saved, what enters it, one graph for all steps, and messages."""

from __future__ import annotations

import pytest
import torch
import torch._dynamo.testing
from support import contract
from support.contract import assert_close
from support.every_loss import PAIRS, PLAIN, make
from support.remembered import ROWS, SIZE, D, Remembered, batch, outcome

import dmlkernels
from dmlkernels import functional as F
from dmlkernels import losses
from dmlkernels.testing import evaluate


@pytest.mark.parametrize("name", ["MultiSimilarityLoss", "RankedListLoss"])
def test_before_start_step_a_batch_meets_itself(backend, device, name):
    """It is remembered, though: the third step meets the first two."""
    loss = make(name)
    memory = losses.CrossBatchMemory(loss, D, SIZE, start_step=2)
    theirs = Remembered(loss)
    for step in range(4):
        pairs = batch(step, device)
        a, b = (outcome(f, pairs) for f in (memory, theirs))
        if step < 2:
            same = torch.arange(ROWS, device=device)
            gallery = {"ref_emb": pairs.embeddings, "ref_labels": pairs.labels, "ids": same, "ref_ids": same}
            b = outcome(loss, pairs, **gallery)
            torch.testing.assert_close(a.value, loss(*pairs[:2]))
        assert_close(a, b, factor=2.0**14)
        assert int(memory.step) == step + 1
    memory.reset()
    pairs = batch(7, device)
    torch.testing.assert_close(memory(*pairs[:2]), loss(*pairs[:2]))
    assert (int(memory.step), int(memory.fill), int(memory.position)) == (1, ROWS, ROWS)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("stop", [1, 3])
def test_a_resumed_run_is_the_uninterrupted_one(dtype, stop):
    """Position, fill, steps and rows, in their dtype, are in the state_dict."""

    def memory() -> losses.CrossBatchMemory:
        return losses.CrossBatchMemory(losses.RankedListLoss(), D, SIZE, start_step=2)

    def values(module: losses.CrossBatchMemory, steps: range) -> list[torch.Tensor]:
        return [module(*batch(step, dtype=dtype)[:2]) for step in steps]

    with dmlkernels.use_backend("reference"):
        whole = values(memory(), range(5))
        first = memory()
        values(first, range(stop))
        saved = {name: tensor.clone() for name, tensor in first.state_dict().items()}
        second = memory()
        second.load_state_dict(saved)
        assert second.embedding_memory.dtype == dtype
        assert torch.equal(torch.stack(values(second, range(stop, 5))), torch.stack(whole[stop:]))
    assert set(saved) == {"embedding_memory", "label_memory", "id_memory", "position", "fill", "step"}
    assert int(saved["fill"]) == min(SIZE, ROWS * stop)
    assert int(saved["position"]) == ROWS * stop % SIZE


def test_a_state_of_another_size_is_refused():
    small, large = (losses.CrossBatchMemory(losses.RankedListLoss(), D, size) for size in (SIZE, 2 * SIZE))
    with pytest.raises(RuntimeError, match="size mismatch for embedding_memory"):
        small.load_state_dict(large.state_dict())


def test_rows_that_are_not_finite_are_not_remembered(backend, device):
    """Their own step is NaN, the next one is not."""
    loss = losses.RankedListLoss()
    memory, clean = (losses.CrossBatchMemory(loss, D, 4 * ROWS) for _ in range(2))
    broken, after = batch(0, device), batch(1, device)
    # The square of the last is too large for float64: its row is finite, its norm is not.
    for value in (torch.nan, torch.inf, 1e200):
        broken.embeddings[3, 2] = value
        assert bool(memory(*broken[:2]).isnan())
    keep = torch.arange(ROWS, device=device) != 3
    for _ in range(3):
        clean(broken.embeddings[keep], broken.labels[keep])
    torch.testing.assert_close(memory(*after[:2]), clean(*after[:2]))


def test_a_gallery_that_is_not_finite_makes_its_step_nan(backend, device):
    """Though it is not remembered, the loss may not look sound; of an ignored row nothing counts."""
    memory = losses.CrossBatchMemory(losses.RankedListLoss(ignore_index=5), D, SIZE)
    pairs, keys, after = (batch(step, device) for step in range(3))
    keys.embeddings[3, 2] = torch.nan
    given = {"ref_emb": keys.embeddings, "ref_labels": keys.labels}
    result = outcome(lambda x, y: memory(x, y, **given), pairs)
    assert bool(result.value.isnan())
    assert bool(result.grads[0].isnan().any())
    memory.loss.check_finite = True
    filled = int(memory.fill)
    with pytest.raises(ValueError, match="embeddings and ref_emb must be finite"):
        memory(*pairs[:2], **given)
    assert int(memory.fill) == filled
    given["ref_labels"] = torch.where(torch.arange(ROWS, device=device) == 3, 5, keys.labels)
    assert bool(memory(*pairs[:2], **given).isfinite())
    assert bool(memory(*after[:2]).isfinite())


def test_several_forwards_before_one_backward(backend, device):
    """The memory goes on changing; what autograd kept does not."""
    batches = [batch(step, device) for step in range(3)]

    def total(*rows):
        memory = losses.CrossBatchMemory(losses.RankedListLoss(), D, SIZE)
        return torch.stack([memory(x, pairs.labels) for x, pairs in zip(rows, batches, strict=True)]).sum()

    together = evaluate(total, [pairs.embeddings for pairs in batches], torch.ones((), device=device))
    memory = losses.CrossBatchMemory(losses.RankedListLoss(), D, SIZE)
    for grad, pairs in zip(together.grads, batches, strict=True):
        torch.testing.assert_close(grad, outcome(memory, pairs).grads[0])


def test_steps_with_and_without_ids_mix(backend, device):
    """A row that came without an id has none in common with anyone, whatever number its place has."""
    loss = losses.RankedListLoss()
    memory = losses.CrossBatchMemory(loss, D, SIZE)
    first, second, third = (batch(step, device) for step in range(3))
    places = torch.arange(ROWS, device=device)
    memory(*first[:2])
    value = memory(*second[:2], ids=places)
    g, h = torch.cat([first.embeddings, second.embeddings]), torch.cat([first.labels, second.labels])
    ids = torch.cat([places - 100, places])
    torch.testing.assert_close(value, loss(*second[:2], ref_emb=g, ref_labels=h, ids=places, ref_ids=ids))
    value = memory(*third[:2])
    kept = [torch.cat([old[6:], new]) for old, new in ((g, third.embeddings), (h, third.labels))]
    own = torch.arange(SIZE, device=device)
    expected = loss(*third[:2], ref_emb=kept[0], ref_labels=kept[1], ids=own[-ROWS:], ref_ids=own)
    torch.testing.assert_close(value, expected)


def test_an_empty_batch_changes_nothing(backend, device):
    memory = losses.CrossBatchMemory(losses.RankedListLoss(), D, SIZE)
    none = torch.empty(0, D, dtype=torch.float64, device=device), torch.empty(0, dtype=torch.int64, device=device)
    for step in range(2):
        assert float(memory(*none)) == 0
        assert int(memory.fill) == ROWS * step
        memory(*batch(step, device)[:2])


def test_reductions_and_options_are_the_losss(backend, device):
    memory = losses.CrossBatchMemory(losses.RankedListLoss(reduction="none", positive="easy"), D, SIZE)
    first, second = batch(0, device), batch(1, device)
    memory(*first[:2])
    rows = memory(*second[:2])
    assert rows.shape == (ROWS,)
    own = torch.arange(2 * ROWS, device=device)
    expected = F.ranked_list_loss(
        *second[:2],
        torch.cat([first.embeddings, second.embeddings]),
        torch.cat([first.labels, second.labels]),
        ids=own[ROWS:],
        ref_ids=own,
        positive="easy",
        reduction="none",
    )
    torch.testing.assert_close(rows, expected)
    stats = memory.last_stats
    assert set(stats) == {*memory.loss.last_stats, "filled"}
    assert not any(v.requires_grad or v.ndim for v in stats.values())


@pytest.mark.parametrize(
    "ids, dtype, graphs",
    contract.thinned(
        [(False, torch.float32, 1), (True, torch.float32, 1), (True, torch.bfloat16, 2)], (True, torch.float32, 1)
    ),
)
def test_one_graph_for_all_steps(kernel, device, ids, dtype, graphs):
    """Filling, full and after the end of the ring: nothing is compiled twice, and the values are the eager ones.

    But for the first step in another dtype than float32, which the memory takes then.
    """
    torch.compiler.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled_memory, memory = (losses.CrossBatchMemory(losses.RankedListLoss(), D, SIZE, 1) for _ in range(2))
    compiled = torch.compile(lambda x, y, **given: compiled_memory(x, y, **given), fullgraph=True, backend=counter)
    for step in range(5):
        pairs = batch(step, device, dtype=dtype)
        given = {"ids": torch.arange(ROWS, device=device) + step} if ids else {}
        a, b = (outcome(f, pairs, **given) for f in (compiled, memory))
        contract.assert_identical(a, b)
    assert counter.frame_count == graphs
    for name, state in memory.state_dict().items():
        assert torch.equal(state, compiled_memory.state_dict()[name]), name


def test_messages():
    op = "CrossBatchMemory: "
    loss = losses.RankedListLoss()
    contract.check_messages(
        losses.CrossBatchMemory,
        {"loss": loss, "embedding_size": D},
        [
            ({"memory_size": 0}, op + "memory_size must be an integer of at least 1, got 0"),
            ({"memory_size": 1.5}, op + "memory_size must be an integer of at least 1, got 1.5"),
            ({"embedding_size": True}, op + "embedding_size must be an integer of at least 1, got True"),
            ({"start_step": -1}, op + "start_step must be an integer of at least 0, got -1"),
        ],
    )
    for name in PLAIN:
        if name not in PAIRS:
            with pytest.raises(ValueError, match=f"loss must be a pair loss of this package .*, got {name}"):
                losses.CrossBatchMemory(make(name), D)
    for around in (losses.AntiCollapseLoss, losses.MultiHead, losses.SphericalExpansionLoss):
        with pytest.raises(ValueError, match=r"what goes around a loss goes around its memory"):
            losses.CrossBatchMemory(around(loss), D)
    x, y = batch(0)[:2]
    contract.check_messages(
        losses.CrossBatchMemory(loss, D, 10),
        {"embeddings": x[:10], "labels": y[:10]},
        [
            ({"embeddings": x, "labels": y}, op + "embeddings must be at most memory_size=10 rows, got 12"),
            ({"embeddings": x[:10, :5]}, op + "embeddings must be (rows, D) with D=embedding_size=6, got (10, 5)"),
            ({"embeddings": x[0]}, op + "embeddings must be (M, D), got (6,)"),
            ({"labels": y[:9]}, op + "labels must be (M,) with M=10, got (9,)"),
            ({"ids": y[:9]}, op + "ids must be (M,) with M=10, got (9,)"),
            (
                {"indices_tuple": (y, y, y)},
                op + "indices_tuple must be None: its pairs are all of the batch with the memory, got a list of pairs",
            ),
            ({"ref_emb": x, "ref_labels": y}, op + "ref_emb must be at most memory_size=10 rows, got 12"),
        ],
    )
