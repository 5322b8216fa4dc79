"""The log-sum-exp losses give the numbers of pytorch-metric-learning, value and gradients, in float64."""

from __future__ import annotations

import pytest
import torch
from support.peer import assert_same
from torch.nn import Softplus

from dmlkernels import functional as F
from dmlkernels import losses
from dmlkernels.testing import Pairs, make_pairs

distances = pytest.importorskip("pytorch_metric_learning.distances")
miners = pytest.importorskip("pytorch_metric_learning.miners")
theirs = pytest.importorskip("pytorch_metric_learning.losses")

MODES = pytest.mark.parametrize("n", [None, 23], ids=["self", "reference"])
WORDS = pytest.mark.parametrize("positive", ["all", "easy"])
UNIT = pytest.mark.parametrize("normalize", [True, False], ids=["unit", "raw"])


def data(n: int | None, seed: int, normalize: bool = True, labels: str = "shuffled", scale: float = 0.6) -> Pairs:
    """Raw rows are shorter, so that no exponential of theirs leaves float64."""
    pairs = make_pairs("random", 30, n, 6, 4, torch.float64, seed=seed, labels=labels)
    if normalize:
        return pairs
    return pairs._replace(embeddings=scale * pairs.embeddings, ref_emb=None if n is None else scale * pairs.ref_emb)


def similarity(normalize: bool):
    return distances.CosineSimilarity() if normalize else distances.DotProductSimilarity(normalize_embeddings=False)


def easy_positives(positive: str, normalize: bool = True, negative: str = "all"):
    """Their miner of the nearest positive, which is nearest in Euclidean distance here; None for all positives."""
    euclidean = distances.LpDistance(normalize_embeddings=normalize)
    return None if positive == "all" else miners.BatchEasyHardMiner("easy", negative, distance=euclidean)


def circle_of_theirs(**options):
    """Without the shortcut of their softplus, which is the identity above 20."""
    loss = theirs.CircleLoss(**options)
    loss.soft_plus = Softplus(threshold=500)
    return loss


MULTI_SIMILARITY = [(2.0, 50.0, 0.5), (4.0, 10.0, 0.1), (0.5, 1.0, 0.0), (20.0, 5.0, 1.0)]


@MODES
@WORDS
@UNIT
@pytest.mark.parametrize("alpha, beta, base", MULTI_SIMILARITY)
def test_multi_similarity(alpha, beta, base, normalize, positive, n):
    options = {"alpha": alpha, "beta": beta, "base": base}
    peer = theirs.MultiSimilarityLoss(**options, distance=similarity(normalize))
    ours = losses.MultiSimilarityLoss(**options, positive=positive, normalize=normalize)
    assert_same(ours, peer, data(n, 1, normalize), miner=easy_positives(positive, normalize))


@MODES
@UNIT
@pytest.mark.parametrize("epsilon", [0.1, 0.0, -0.3, 1.0])
@pytest.mark.parametrize("labels", ["shuffled", "ragged"])
def test_multi_similarity_mined(labels, epsilon, normalize, n):
    miner = miners.MultiSimilarityMiner(epsilon, distance=similarity(normalize))
    peer = theirs.MultiSimilarityLoss(beta=10, distance=similarity(normalize))
    ours = losses.MultiSimilarityLoss(beta=10, epsilon=epsilon, normalize=normalize)
    assert_same(ours, peer, data(n, 2, normalize, labels), miner=miner)


TEMPERATURES = [0.01, 0.07, 0.3, 2.0]


@MODES
@WORDS
@UNIT
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_ntxent(temperature, normalize, positive, n):
    peer = theirs.NTXentLoss(temperature, distance=similarity(normalize))
    ours = losses.NTXentLoss(temperature, positive=positive, normalize=normalize)
    assert_same(ours, peer, data(n, 3, normalize, scale=0.4), miner=easy_positives(positive, normalize))


@MODES
@WORDS
@UNIT
@pytest.mark.parametrize("temperature", [0.04, 0.1, 0.3, 2.0])
def test_supcon(temperature, normalize, positive, n):
    """Below such temperatures theirs rounds the losses of converged queries to 0, and divides by fewer."""
    peer = theirs.SupConLoss(temperature, distance=similarity(normalize))
    ours = losses.SupConLoss(temperature, positive=positive, normalize=normalize)
    assert_same(ours, peer, data(n, 4, normalize, scale=0.4), miner=easy_positives(positive, normalize))


@MODES
@WORDS
@pytest.mark.parametrize("m, gamma", [(0.4, 80.0), (0.25, 256.0), (0.25, 32.0), (0.0, 10.0), (0.5, 1.0)])
def test_circle(m, gamma, positive, n):
    ours = losses.CircleLoss(m, gamma, positive=positive)
    assert_same(ours, circle_of_theirs(m=m, gamma=gamma), data(n, 5), miner=easy_positives(positive))


@MODES
@WORDS
@UNIT
@pytest.mark.parametrize("neg_margin, pos_margin", [(1.0, 0.0), (0.5, 0.2), (-4.1, 0.8)])
def test_generalized_lifted(neg_margin, pos_margin, normalize, positive, n):
    """The last margins leave many queries at 0, of one positive each with a neg_margin of its own."""
    if neg_margin < 0 and positive == "easy":
        neg_margin = -1.8
    distance = distances.LpDistance(normalize_embeddings=normalize)
    peer = theirs.GeneralizedLiftedStructureLoss(neg_margin, pos_margin, distance=distance)
    ours = losses.GeneralizedLiftedStructureLoss(neg_margin, pos_margin, positive=positive, normalize=normalize)
    assert_same(ours, peer, data(n, 6, normalize), miner=easy_positives(positive, normalize))


@MODES
@UNIT
@pytest.mark.parametrize("softmax_scale", [1, 0.1, 5.0, 30.0])
def test_nca(softmax_scale, normalize, n):
    peer = theirs.NCALoss(softmax_scale, distance=distances.LpDistance(power=2, normalize_embeddings=normalize))
    ours = losses.NCALoss(softmax_scale, normalize=normalize)
    assert_same(ours, peer, data(n, 7, normalize))


@MODES
@pytest.mark.parametrize("temperature", [1.0, 0.1])
def test_nca_of_similarities(temperature, n):
    """For unit rows the softmax of similarities is that of squared distances, at twice the temperature."""
    pairs = data(n, 8)
    peer = theirs.NCALoss(1 / temperature, distance=distances.CosineSimilarity())

    def ours(x, labels, ref_emb=None, ref_labels=None):
        return F.nca_loss(x, labels, ref_emb, ref_labels, temperature=temperature, positive="all")

    assert_same(ours, peer, pairs)


@MODES
@UNIT
@pytest.mark.parametrize("negative", ["all", "hard", "semihard"])
@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_easy_positives_with_mined_negatives(temperature, negative, normalize, n):
    """EP, EPHN and EPSHN: NT-Xent of what BatchEasyHardMiner lists."""
    if normalize:
        peer = theirs.NTXentLoss(temperature, distance=distances.CosineSimilarity())
    else:
        squared = distances.LpDistance(power=2, normalize_embeddings=False)
        peer = theirs.NTXentLoss(2 * temperature, distance=squared)
    options = {"softmax_scale": 1 / (2 * temperature), "positive": "easy", "negative": negative}
    ours = losses.NCALoss(**options, normalize=normalize)
    assert_same(ours, peer, data(n, 9, normalize), miner=easy_positives("easy", normalize, negative))


@UNIT
@pytest.mark.parametrize("softmax_scale", [1, 3.0, 9.0])
@pytest.mark.parametrize("classes", [4, 9], ids=["every_class", "absent_classes"])
def test_proxy_nca(classes, softmax_scale, normalize):
    distance = distances.LpDistance(power=2, normalize_embeddings=normalize)
    peer = theirs.ProxyNCALoss(classes, 6, softmax_scale=softmax_scale, distance=distance).double()
    ours = losses.ProxyNCALoss(classes, 6, softmax_scale, normalize=normalize).double()
    ours.load_state_dict(peer.state_dict())
    assert_same(ours, peer, data(None, 10, normalize), parameters=[(ours.proxies, peer.proxies)])


PAIR_LOSSES = {
    "multi_similarity": (losses.MultiSimilarityLoss, theirs.MultiSimilarityLoss, {"beta": 10.0}),
    "ntxent": (losses.NTXentLoss, theirs.NTXentLoss, {"temperature": 0.2}),
    "supcon": (losses.SupConLoss, theirs.SupConLoss, {}),
    "circle": (losses.CircleLoss, circle_of_theirs, {"gamma": 20.0}),
    "lifted": (losses.GeneralizedLiftedStructureLoss, theirs.GeneralizedLiftedStructureLoss, {}),
}
MINERS = {
    "triplets": lambda: miners.TripletMarginMiner(0.1),
    "pairs": lambda: miners.PairMarginMiner(0.5, 1.2),
    "multi_similarity": lambda: miners.MultiSimilarityMiner(0.0),
    "hardest": lambda: miners.BatchHardMiner(),
    "all_hard": lambda: miners.BatchEasyHardMiner("all", "hard"),
}


@MODES
@pytest.mark.parametrize("miner", MINERS)
@pytest.mark.parametrize("name", PAIR_LOSSES)
def test_listed(name, miner, n):
    """The same list of their miner in both; a pair of several triplets counts once, or each time, as in theirs."""
    ours, peer, options = PAIR_LOSSES[name]
    assert_same(ours(**options), peer(**options), data(n, 11), miner=MINERS[miner](), ours_listed=True)


@MODES
@pytest.mark.parametrize("name", PAIR_LOSSES)
@pytest.mark.parametrize("labels", ["ragged", "one_class", "distinct"])
def test_queries_without_a_side(labels, name, n):
    """Singletons, and batches without negatives or without positives: what is kept, what is 0, what is divided by."""
    ours, peer, options = PAIR_LOSSES[name]
    pairs = data(n, 12, labels=labels)
    if labels == "distinct" and n is not None:
        pairs.ref_labels.add_(100)
    keeps = labels == "ragged" or name in ("multi_similarity", "lifted")
    assert_same(ours(**options), peer(**options), pairs, zero=not keeps)


@MODES
def test_nca_without_a_side(n):
    assert_same(losses.NCALoss(), theirs.NCALoss(), data(n, 13, labels="ragged"))


@pytest.mark.parametrize("name", [*PAIR_LOSSES, "nca", "proxy_nca"])
def test_defaults_and_names(name):
    """Built without arguments, or with theirs by name, both are the same loss."""
    table = {**{key: value[:2] for key, value in PAIR_LOSSES.items()}, "nca": (losses.NCALoss, theirs.NCALoss)}
    if name == "proxy_nca":
        torch.manual_seed(0)
        peer = theirs.ProxyNCALoss(num_classes=4, embedding_size=6).double()
        torch.manual_seed(0)
        ours = losses.ProxyNCALoss(num_classes=4, embedding_size=6).double()
        assert_same(ours, peer, data(None, 14), parameters=[(ours.proxies, peer.proxies)])
    else:
        assert_same(table[name][0](), table[name][1](), data(None, 14))
