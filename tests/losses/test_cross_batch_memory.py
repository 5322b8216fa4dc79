"""CrossBatchMemory: the loss of a batch against what earlier batches were, around every pair loss."""

from __future__ import annotations

import pytest
import torch
from support import contract, peer
from support.contract import assert_close
from support.every_loss import PAIRS, make
from support.remembered import ROWS, SIZE, D, Remembered, batch, outcome

import dmlkernels
from dmlkernels import losses


def check_steps(ours: losses.CrossBatchMemory, theirs: Remembered, device: str, steps: int = 4, ids: bool = False):
    """Value and gradients of some steps; the order of the gallery's rows differs, so rounding does."""
    for step in range(steps):
        pairs = batch(step, device)
        given = {"ids": torch.arange(ROWS, device=device) % 9 + 5 * (step % 2)} if ids else {}
        a, b = (outcome(f, pairs, **given) for f in (ours, theirs))
        assert_close(a, b, factor=2.0**14)
        assert int(ours.last_stats["filled"]) == min(SIZE, ROWS * (step + 1))


@pytest.mark.parametrize("name", contract.thinned(PAIRS, "RankedListLoss"))
def test_every_loss(backend, device, name):
    """The loss of the batch against the rows of the last batches, without its own copies."""
    loss = make(name)
    check_steps(losses.CrossBatchMemory(loss, D, SIZE), Remembered(loss), device)
    assert loss.ignore_index is None


@pytest.mark.parametrize("name", contract.thinned(PAIRS, "RankedListLoss"))
def test_ids_and_the_losss_own_ignore_index(backend, device, name):
    """Rows of equal ids never meet, in whatever steps they came; ignored rows stay ignored in the memory."""
    loss = make(name, ignore_index=2)
    check_steps(losses.CrossBatchMemory(loss, D, SIZE), Remembered(loss), device, ids=True)
    assert loss.ignore_index == 2


@pytest.mark.parametrize("name", contract.thinned(PAIRS, "RankedListLoss"))
def test_easy_positives(backend, device, name):
    """The nearest positive of the whole memory, never the row's own copy."""
    loss = make(name, positive="easy")
    check_steps(losses.CrossBatchMemory(loss, D, SIZE), Remembered(loss), device)


def test_drawn_negatives_are_rows_that_are_there(backend, device):
    """The same draws as from the batch alone, though most places of the memory are empty."""

    def loss() -> losses.MarginLoss:
        return losses.MarginLoss(negative="distance_weighted", generator=torch.Generator(device).manual_seed(3))

    pairs = batch(0, device)
    own = torch.arange(ROWS, device=device)
    gallery = {"ref_emb": pairs.embeddings, "ref_labels": pairs.labels, "ids": own, "ref_ids": own}
    a, b = outcome(losses.CrossBatchMemory(loss(), D, SIZE), pairs), outcome(loss(), pairs, **gallery)
    assert float(b.value) > 0
    assert_close(a, b, factor=2.0**14)


@pytest.mark.parametrize("name", PAIRS)
def test_only_the_anchors_have_gradients_and_they_are_not_all_zero(name):
    memory = losses.CrossBatchMemory(make(name), D, SIZE)
    with dmlkernels.use_backend("reference"):
        for step in range(3):
            (grad,) = outcome(memory, batch(step)).grads
            assert float(grad.abs().max()) > 0
    assert not memory.embedding_memory.requires_grad


# Those that pytorch-metric-learning's memory takes; its NCALoss counts a row's own copy, and it has no RLL with one.
PEERS = {
    "CircleLoss": {},
    "ContrastiveLoss": {},
    "GeneralizedLiftedStructureLoss": {},
    "MarginLoss": {"beta": 1.25},  # theirs is a float32, which holds this exactly
    "MultiSimilarityLoss": {},
    "NTXentLoss": {},
    "SupConLoss": {},
    "TripletMarginLoss": {},
}


@pytest.mark.parametrize("size", [SIZE, 2 * ROWS, ROWS])
@pytest.mark.parametrize("name", PEERS)
def test_equals_pytorch_metric_learning(name, size):
    """Five steps, over the end of the ring and back; a memory of exactly one batch too."""
    theirs = pytest.importorskip("pytorch_metric_learning.losses")
    ours = losses.CrossBatchMemory(make(name, **PEERS[name]), D, size)
    other = theirs.CrossBatchMemory(getattr(theirs, name)(**PEERS[name]), D, size)
    with dmlkernels.use_backend("reference"):
        for step in range(5):
            peer.assert_same(ours, other, batch(step))
            assert torch.equal(ours.embedding_memory[: int(ours.fill)], other.embedding_memory[: int(ours.fill)])
            assert int(ours.position) == other.queue_idx


@pytest.mark.parametrize("with_ids", [False, True])
def test_a_gallery_is_remembered_in_place_of_the_batch(backend, device, with_ids):
    """As with a momentum encoder: every pair counts but those of equal ids."""
    loss = losses.RankedListLoss()
    memory = losses.CrossBatchMemory(loss, D, SIZE)
    kept = []
    for step in range(4):
        pairs, keys = batch(step, device), batch(step + 10, device)
        ids = torch.arange(ROWS, device=device) + step
        kept.append((keys.embeddings, keys.labels, ids))
        g, h, ref_ids = (torch.cat(column)[-SIZE:] for column in zip(*kept, strict=True))
        given = {"ids": ids, "ref_ids": ids} if with_ids else {}
        value = memory(*pairs[:2], ref_emb=keys.embeddings, ref_labels=keys.labels, **given)
        expected = loss(*pairs[:2], ref_emb=g, ref_labels=h, **(given and {"ids": ids, "ref_ids": ref_ids}))
        torch.testing.assert_close(value, expected)


def test_a_gallery_equals_pytorch_metric_learnings_enqueue_mask():
    theirs = pytest.importorskip("pytorch_metric_learning.losses")
    other = theirs.CrossBatchMemory(theirs.MultiSimilarityLoss(), D, SIZE)
    memory = losses.CrossBatchMemory(losses.MultiSimilarityLoss(), D, SIZE)
    mask = torch.arange(2 * ROWS) >= ROWS
    with dmlkernels.use_backend("reference"):
        for step in range(5):
            pairs, keys = batch(step), batch(step + 10)

            def masked(x, y, keys=keys):
                return other(torch.cat([x, keys.embeddings]), torch.cat([y, keys.labels]), enqueue_mask=mask)

            def against_keys(x, y, keys=keys):
                return memory(x, y, ref_emb=keys.embeddings, ref_labels=keys.labels)

            peer.assert_same(against_keys, masked, pairs)
