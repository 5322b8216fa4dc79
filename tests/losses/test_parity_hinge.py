"""The hinge losses give the numbers of pytorch-metric-learning, value and gradients, in float64."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from support.peer import assert_same

import dmlkernels
from dmlkernels import functional as F
from dmlkernels import losses
from dmlkernels._checks import pair_inputs
from dmlkernels.ops.distance_weighted import sample_negatives
from dmlkernels.testing import Pairs, make_pairs

distances = pytest.importorskip("pytorch_metric_learning.distances")
miners = pytest.importorskip("pytorch_metric_learning.miners")
reducers = pytest.importorskip("pytorch_metric_learning.reducers")
theirs = pytest.importorskip("pytorch_metric_learning.losses")

MODES = pytest.mark.parametrize("n", [None, 23], ids=["self", "reference"])
WORDS = pytest.mark.parametrize("positive", ["all", "easy"])
UNIT = pytest.mark.parametrize("normalize", [True, False], ids=["unit", "raw"])
REDUCERS = {"mean": reducers.MeanReducer, "sum": reducers.SumReducer, "nonzero_mean": reducers.AvgNonZeroReducer}


def data(n: int | None, seed: int, normalize: bool = True, labels: str = "shuffled") -> Pairs:
    """Raw rows are shorter, so that their distances are of the size of the margins."""
    pairs = make_pairs("random", 30, n, 6, 4, torch.float64, seed=seed, labels=labels)
    if normalize:
        return pairs
    return pairs._replace(embeddings=0.4 * pairs.embeddings, ref_emb=None if n is None else 0.4 * pairs.ref_emb)


def euclidean(normalize: bool):
    return distances.LpDistance(normalize_embeddings=normalize)


def miner_of(positive: str, negative: str = "all", normalize: bool = True):
    """Their miner of these words; None for all pairs or triplets."""
    if (positive, negative) == ("all", "all"):
        return None
    return miners.BatchEasyHardMiner(positive, negative, distance=euclidean(normalize))


# Contrastive loss.


@MODES
@WORDS
@UNIT
@pytest.mark.parametrize("pos_margin, neg_margin", [(0.0, 1.0), (0.5, 1.3), (1.1, 0.9), (0.2, 1.6)])
def test_contrastive(pos_margin, neg_margin, normalize, positive, n):
    peer = theirs.ContrastiveLoss(pos_margin, neg_margin, distance=euclidean(normalize))
    ours = losses.ContrastiveLoss(pos_margin, neg_margin, positive=positive, normalize=normalize)
    assert_same(ours, peer, data(n, 1, normalize), miner=miner_of(positive, normalize=normalize))


@MODES
@WORDS
@UNIT
@pytest.mark.parametrize("pos_margin, neg_margin", [(1.0, 0.0), (0.7, 0.2), (0.3, -0.3), (0.9, 0.4)])
def test_contrastive_of_similarities(pos_margin, neg_margin, normalize, positive, n):
    similarity = (
        distances.CosineSimilarity() if normalize else distances.DotProductSimilarity(normalize_embeddings=False)
    )
    peer = theirs.ContrastiveLoss(pos_margin, neg_margin, distance=similarity)
    ours = losses.ContrastiveLoss(pos_margin, neg_margin, "cosine", positive, normalize=normalize)
    assert_same(ours, peer, data(n, 2, normalize), miner=miner_of(positive, normalize=normalize))


@MODES
@WORDS
@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("labels", ["shuffled", "ragged"])
def test_contrastive_reductions(labels, reduction, metric, positive, n):
    margins, distance = (0.6, 1.2), euclidean(True)
    if metric == "cosine":
        margins, distance = (0.6, 0.1), distances.CosineSimilarity()
    peer = theirs.ContrastiveLoss(*margins, distance=distance, reducer=REDUCERS[reduction]())
    ours = losses.ContrastiveLoss(*margins, metric, positive, reduction)
    assert_same(ours, peer, data(n, 3, labels=labels), miner=miner_of(positive))


# Margin loss.


def margin_of_theirs(beta: float = 1.2, normalize: bool = True, **options):
    """Their fixed β is rounded to float32, and a learned one makes the loss a vector of one entry."""
    loss = theirs.MarginLoss(beta=beta, distance=euclidean(normalize), **options).double()
    if not options.get("learn_beta"):
        loss.beta = torch.tensor([beta], dtype=torch.float64)
    return loss, lambda *args, **kwargs: loss(*args, **kwargs).reshape(())


@MODES
@WORDS
@UNIT
@pytest.mark.parametrize("margin, beta", [(0.2, 1.2), (0.1, 0.9), (0.5, 1.4), (-0.1, 1.0)])
def test_margin(margin, beta, normalize, positive, n):
    _, peer = margin_of_theirs(beta, normalize, margin=margin)
    ours = losses.MarginLoss(margin, beta=beta, positive=positive, count="triplets", normalize=normalize)
    assert_same(ours, peer, data(n, 4, normalize), miner=miner_of(positive, normalize=normalize))


@MODES
@WORDS
@pytest.mark.parametrize("labels", ["shuffled", "ragged"])
@pytest.mark.parametrize("classes", [None, 4], ids=["global", "per_class"])
@pytest.mark.parametrize("nu", [0.0, 0.3])
def test_margin_learns_beta(nu, classes, labels, positive, n):
    options = {"nu": nu, "learn_beta": True, "num_classes": classes}
    module, peer = margin_of_theirs(1.1, **options)
    ours = losses.MarginLoss(beta=1.1, positive=positive, count="triplets", **options).double()
    with torch.no_grad():
        for beta in (ours.beta, module.beta):
            beta += 0.1 * torch.arange(len(beta))
    parameters = [(ours.beta, module.beta)]
    assert_same(ours, peer, data(n, 5, labels=labels), miner=miner_of(positive), parameters=parameters)


@MODES
@WORDS
@pytest.mark.parametrize("classes", [None, 4], ids=["global", "per_class"])
@pytest.mark.parametrize("cutoff, far", [(0.5, 1.4), (0.8, 1.2)])
def test_margin_of_drawn_negatives(cutoff, far, classes, positive, n):
    """Each positive with the negative that was drawn for it, listed for theirs."""
    pairs = data(n, 6)
    uniforms = torch.rand(30, 1 if positive == "easy" else 8, generator=torch.Generator().manual_seed(1))
    index = sample_negatives("margin_loss", pair_inputs("margin_loss", *pairs), uniforms, cutoff, far, False)
    a, p, *_ = miner_of(positive, "hard")(pairs.embeddings, pairs.labels, pairs.ref_emb, pairs.ref_labels)
    place = torch.tensor([int((a[:k] == a[k]).sum()) for k in range(len(a))])
    triplets = a, p, index[a, place]
    triplets = tuple(t[triplets[2] >= 0] for t in triplets)
    module, peer = margin_of_theirs(1.1, nu=0.2, learn_beta=True, num_classes=classes)
    beta = module.beta.detach().clone().requires_grad_()

    def ours(x, y, ref_emb=None, ref_labels=None):
        drawn = {"negative": "distance_weighted", "uniforms": uniforms, "cutoff": cutoff, "nonzero_loss_cutoff": far}
        return F.margin_loss(x, y, ref_emb, ref_labels, beta=beta, nu=0.2, positive=positive, **drawn)

    assert_same(ours, peer, pairs, miner=lambda *_, **__: triplets, parameters=[(beta, module.beta)])


# Triplet loss.

TRIPLET_WORDS = [
    ("all", "all"),
    ("all", "hard"),
    ("easy", "all"),
    ("hard", "all"),
    ("easy", "hard"),
    ("easy", "semihard"),
    ("hard", "hard"),
    ("hard", "semihard"),
]


@MODES
@UNIT
@pytest.mark.parametrize("soft, margin", [(False, 0.05), (False, 0.4), (True, 0.1)])
@pytest.mark.parametrize("positive, negative", TRIPLET_WORDS)
def test_triplet(positive, negative, soft, margin, normalize, n):
    peer = theirs.TripletMarginLoss(margin, smooth_loss=soft, distance=euclidean(normalize))
    ours = losses.TripletMarginLoss(margin, positive=positive, negative=negative, soft=soft, normalize=normalize)
    assert_same(ours, peer, data(n, 7, normalize), miner=miner_of(positive, negative, normalize))


@MODES
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("positive, negative", TRIPLET_WORDS)
def test_triplet_reductions(positive, negative, reduction, n):
    peer = theirs.TripletMarginLoss(0.2, reducer=REDUCERS[reduction]())
    ours = losses.TripletMarginLoss(0.2, positive=positive, negative=negative, reduction=reduction)
    assert_same(ours, peer, data(n, 8, labels="ragged"), miner=miner_of(positive, negative))


@pytest.mark.parametrize("soft", [False, True], ids=["hinge", "soft"])
@pytest.mark.parametrize("positive, negative", TRIPLET_WORDS)
def test_triplet_swap(positive, negative, soft):
    """With a gallery theirs takes the distance of a query to a gallery row for that of two gallery rows."""
    peer = theirs.TripletMarginLoss(0.3, swap=True, smooth_loss=soft)
    ours = losses.TripletMarginLoss(0.3, swap=True, positive=positive, negative=negative, soft=soft)
    with dmlkernels.use_backend("reference") if "all" in (positive, negative) else nullcontext():
        assert_same(ours, peer, data(None, 9), miner=miner_of(positive, negative))


# Lists of their miners.

MINERS = {
    "semihard triplets": lambda: miners.TripletMarginMiner(0.3, type_of_triplets="semihard"),
    "hard triplets": lambda: miners.TripletMarginMiner(type_of_triplets="hard"),
    "hardest": miners.BatchHardMiner,
    "pairs": lambda: miners.PairMarginMiner(0.9, 1.2),
    "multi-similarity": miners.MultiSimilarityMiner,
    "easy and all": lambda: miners.BatchEasyHardMiner("easy", "all"),
}
LISTED = {
    "contrastive": (losses.ContrastiveLoss(0.6, 1.4), lambda: theirs.ContrastiveLoss(0.6, 1.4)),
    "contrastive of similarities": (
        losses.ContrastiveLoss(0.6, 0.1, "cosine", reduction="mean"),
        lambda: theirs.ContrastiveLoss(0.6, 0.1, distance=distances.CosineSimilarity(), reducer=reducers.MeanReducer()),
    ),
    "margin": (losses.MarginLoss(0.3, beta=1.25), lambda: margin_of_theirs(1.25, margin=0.3)[1]),
    "triplet": (losses.TripletMarginLoss(0.4), lambda: theirs.TripletMarginLoss(0.4)),
    "soft triplet": (losses.TripletMarginLoss(soft=True), lambda: theirs.TripletMarginLoss(smooth_loss=True)),
}


@MODES
@pytest.mark.parametrize("name", LISTED)
@pytest.mark.parametrize("miner", MINERS)
def test_listed(miner, name, n):
    ours, peer = LISTED[name]
    assert_same(ours, peer(), data(n, 10), miner=MINERS[miner](), ours_listed=True)


@MODES
@pytest.mark.parametrize("classes", [None, 4], ids=["global", "per_class"])
@pytest.mark.parametrize("miner", MINERS)
def test_listed_margin_learns_beta(miner, classes, n):
    options = {"nu": 0.2, "learn_beta": True, "num_classes": classes}
    module, peer = margin_of_theirs(1.25, **options)
    ours = losses.MarginLoss(beta=1.25, **options).double()
    assert_same(ours, peer, data(n, 11), miner=MINERS[miner](), ours_listed=True, parameters=[(ours.beta, module.beta)])


# Defaults, and batches without pairs.


@MODES
@pytest.mark.parametrize("name", ["ContrastiveLoss", "MarginLoss", "TripletMarginLoss"])
@pytest.mark.parametrize("labels", ["shuffled", "ragged", "negative", "wide"])
def test_defaults(labels, name, n):
    peer = margin_of_theirs()[1] if name == "MarginLoss" else getattr(theirs, name)()
    assert_same(getattr(losses, name)(), peer, data(n, 12, labels=labels))


@MODES
@pytest.mark.parametrize("labels, name", [("one_class", "pos"), ("distinct", "neg")])
@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_contrastive_keeps_the_side_that_exists(metric, labels, name, n):
    margins, distance = ((0.1, 1.3), None) if metric == "euclidean" else ((0.9, 0.1), distances.CosineSimilarity())
    peer = theirs.ContrastiveLoss(*margins, distance=distance)
    pairs = data(n, 13, labels=labels)
    if name == "neg" and n is not None:
        pairs = pairs._replace(ref_labels=pairs.ref_labels + 100)
    assert_same(losses.ContrastiveLoss(*margins, metric), peer, pairs)


@pytest.mark.parametrize("labels", ["one_class", "distinct"])
@pytest.mark.parametrize("positive, negative", TRIPLET_WORDS)
def test_without_triplets(positive, negative, labels):
    batch = data(None, 14, labels=labels)[:2]
    assert losses.TripletMarginLoss(0.4, positive=positive, negative=negative)(*batch) == 0
    assert theirs.TripletMarginLoss(0.4)(*batch) == 0


@WORDS
@pytest.mark.parametrize("labels", ["one_class", "distinct"])
def test_margin_without_triplets(labels, positive):
    batch = data(None, 14, labels=labels)[:2]
    options = {"nu": 0.5, "learn_beta": True}
    assert losses.MarginLoss(positive=positive, **options)(*batch) == 0
    assert theirs.MarginLoss(**options)(*batch) == 0
