"""The table of losses: a new one is its file, its line in `losses/__init__.py` (and `functional.py`), and one row here.

The command line (`--loss`), the tables of the documents, the benchmark of losses, `python -m dmlkernels check` and the
tests are made from it: a loss without a row fails, and so does a row without an oracle (`tests/support/oracles.py`).
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

Options = Mapping[str, Any]
EASY: Options = MappingProxyType({"positive": "easy"})
NONE: Options = MappingProxyType({})


class Loss(NamedTuple):
    """One row.

    Args:
        name: of `--loss`, of the file in `losses/`, and of the oracle.
        module: class in `dmlkernels.losses`.
        function: in `dmlkernels.functional`; None: there is none.
        choose: when to choose it, as far as that does not depend on numbers.
        formula: a row's (or a proxy's) loss, with similarities s, distances d, positives p and negatives n.
        samples: options with which it is compared with its oracle, beside the defaults; each option is in one of them.
        steady: options with which a loss is the same in every dtype: of a mean over what costs something, how much that
            is may be a matter of rounding.
        job: arguments where the training job's default is not the class's.
        easy: arguments that `--easy-positive` sets.
    """

    name: str
    module: str
    function: str | None
    choose: str
    formula: str
    samples: tuple[Options, ...]
    steady: Options = NONE
    job: Options = NONE
    easy: Options = EASY

    @property
    def type(self) -> Any:
        from . import losses

        return getattr(losses, self.module)

    @property
    def arguments(self) -> Mapping[str, inspect.Parameter]:
        """Of the constructor."""
        return inspect.signature(self.type).parameters

    @property
    def pairs(self) -> bool:
        """Whether it is a loss of pairs, which takes a gallery, lists and ids."""
        from .losses._pairs import PairLoss

        return issubclass(self.type, PairLoss)

    @property
    def sizes(self) -> list[str]:
        """The arguments that it cannot do without: those of parameters for each class."""
        named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        return [a.name for a in self.arguments.values() if a.default is inspect.Parameter.empty and a.kind in named]

    @property
    def proxies(self) -> bool:
        """Whether it has proxies, or centers, of so many classes."""
        return "num_classes" in self.sizes


TABLE = (
    Loss(
        "ranked_list",
        "RankedListLoss",
        "ranked_list_loss",
        "for retrieval: it stops pulling at a distance, so a class keeps its spread",
        r"mean of $[d_p - (\alpha - m)]_+$, softmax-weighted mean of $[\alpha - d_n]_+$",
        (
            {"alpha": 1.3, "margin": 0.5, "pos_temperature": 3.0, "neg_temperature": -2.0, "reduction": "none"},
            {"form": "cvpr", "neg_weight": 0.3, "reduction": "sum", "grad": "query"},
            {"weight_grad": True, "pos_temperature": 2.0, "eps_mode": "pml"},
            {"positive": "easy", "margin": 0.9, "eps_mode": "pml"},
            {"reduction": "share", "pos_temperature": 5.0},
            {"normalize": False, "alpha": 4.0, "ignore_index": 2, "reduction": "share", "neg_temperature": 1.0},
        ),
        # The wider margin brings the boundary of positives down to 0.6: at 0.8 most nearest ones are inside it.
        easy={"positive": "easy", "margin": 0.8},
    ),
    Loss(
        "contrastive",
        "ContrastiveLoss",
        "contrastive_loss",
        "as a baseline, and where the application compares distances with a fixed threshold",
        r"$[d_p - m_p]_+$ and $[m_n - d_n]_+$",
        (
            {"pos_margin": 0.5, "neg_margin": 1.3, "reduction": "mean"},
            {"metric": "cosine", "pos_margin": 0.9, "neg_margin": -0.2, "reduction": "none"},
            {"positive": "easy", "reduction": "sum", "ignore_index": 2},
            {"normalize": False, "neg_margin": 4.0},
        ),
        steady={"reduction": "mean"},
    ),
    Loss(
        "margin",
        "MarginLoss",
        "margin_loss",
        "where classes need boundaries of their own, which it can learn (`--learn-beta`)",
        r"$[\delta + d_p - \beta]_+$ and $[\delta + \beta - d_n]_+$, β fixed or learned, all or "
        r"distance-weighted negatives",
        (
            {"margin": 0.3, "beta": 1.1, "count": "pairs", "ignore_index": 2},
            {"nu": 0.2, "learn_beta": True},
            {"nu": 0.2, "learn_beta": True, "num_classes": 6, "positive": "easy"},
            {"positive": "easy", "count": "triplets", "normalize": False, "beta": 3.0},
            {"negative": "distance_weighted", "cutoff": 0.9, "nonzero_loss_cutoff": 1.6},
        ),
    ),
    Loss(
        "triplet",
        "TripletMarginLoss",
        "triplet_loss",
        "as the best known baseline; its hard positives want clean labels",
        r"$[d_p - d_n + \delta]_+$ of easy, hard or all positives and hard, semi-hard or all negatives",
        (
            {"positive": "easy", "negative": "semihard", "margin": 0.3, "swap": True},
            {"positive": "hard", "negative": "hard", "soft": True, "reduction": "mean"},
            {"positive": "easy", "negative": "all", "reduction": "sum", "ignore_index": 2},
            {"positive": "all", "negative": "hard", "normalize": False},
            {"positive": "all", "negative": "semihard", "margin": 0.5},
        ),
        steady={"positive": "all", "negative": "all", "reduction": "mean"},
        job={"positive": "hard", "negative": "semihard", "margin": 0.2},
    ),
    Loss(
        "multi_similarity",
        "MultiSimilarityLoss",
        "multi_similarity_loss",
        "if the hardest negatives of a clean data set should count most",
        r"$\frac1\alpha \log(1 + \sum_p e^{-\alpha(s_p - l)}) + \frac1\beta \log(1 + \sum_n e^{\beta(s_n - "
        r"l)})$, with mining if asked for",
        (
            {"alpha": 3.0, "beta": 20.0, "base": 0.2},
            {"epsilon": 0.1, "ignore_index": 2},
            {"epsilon": 0.1, "positive": "easy", "normalize": False, "beta": 2.0},
        ),
    ),
    Loss(
        "ntxent",
        "NTXentLoss",
        "ntxent_loss",
        "for pairs: two views of an image, or a question and its answer",
        r"$-\log e^{s_p/\tau} / (e^{s_p/\tau} + \sum_n e^{s_n/\tau})$ of each positive pair",
        ({"temperature": 0.5, "ignore_index": 2}, {"positive": "easy", "normalize": False, "temperature": 2.0}),
    ),
    Loss(
        "supcon",
        "SupConLoss",
        "supcon_loss",
        "for labelled classes with many positives in a batch, all of which should count",
        r"$-\log e^{s_p/\tau} / \sum_{a} e^{s_a/\tau}$ over all other rows a, mean over p",
        ({"temperature": 0.5, "ignore_index": 2}, {"positive": "easy", "normalize": False, "temperature": 2.0}),
    ),
    Loss(
        "circle",
        "CircleLoss",
        "circle_loss",
        "if a pair should count the more, the farther it is from where it belongs",
        r"$\log(1 + \sum_n e^{\gamma [s_n + m]_+ (s_n - m)} \sum_p e^{-\gamma [1 + m - s_p]_+ (s_p - 1 + m)})$",
        ({"m": 0.2, "gamma": 10.0, "ignore_index": 2}, {"positive": "easy", "normalize": False, "gamma": 1.0}),
    ),
    Loss(
        "lifted",
        "GeneralizedLiftedStructureLoss",
        "lifted_loss",
        "if all pairs of a row should count smoothly, with a margin",
        r"$[\log \sum_p e^{d_p - m_p} + \log \sum_n e^{m_n - d_n}]_+$",
        (
            {"neg_margin": -2.0, "pos_margin": 0.3, "ignore_index": 2},
            {"positive": "easy", "neg_margin": -1.0, "normalize": False},
        ),
    ),
    Loss(
        "nca",
        "NCALoss",
        "nca_loss",
        "if near positives suffice, as for a nearest-neighbour classifier",
        r"$-\log \sum_p e^{-\sigma d_p^2} / (\sum_p e^{-\sigma d_p^2} + \sum_n e^{-\sigma d_n^2})$",
        (
            {"softmax_scale": 5.0, "ignore_index": 2},
            {"positive": "easy", "negative": "semihard", "normalize": False, "softmax_scale": 0.2},
            {"positive": "all", "negative": "hard"},
        ),
        # The temperature of N-pair losses, 0.1; the class's scale of 1 is that of a peer.
        job={"softmax_scale": 5.0},
    ),
    Loss(
        "proxy_nca",
        "ProxyNCALoss",
        "proxy_nca_loss",
        "if batches are too small for pairs and classes few enough for proxies",
        r"the same of its class's proxy against all proxies",
        ({"softmax_scale": 9.0}, {"normalize": False, "softmax_scale": 0.3}),
        # ProxyNCA++'s temperature, 1/9.
        job={"softmax_scale": 9.0},
    ),
    Loss(
        "proxy_anchor",
        "ProxyAnchorLoss",
        "proxy_anchor_loss",
        "as that one, with hard samples counting more, and time for proxies to settle",
        r"log-sum-exps of a proxy's own samples and of the others",
        ({"margin": 0.3, "alpha": 8.0}, {"normalize": False, "alpha": 1.0}),
        # Half the class's alpha was better on held-out training classes (docs/methods.md).
        job={"alpha": 16.0},
    ),
    Loss(
        "soft_triple",
        "SoftTripleLoss",
        "soft_triple_loss",
        "as the proxy losses, for classes of several kinds of images",
        r"softmax over classes of several centers each, the nearest of a class counting most",
        ({"centers_per_class": 3, "la": 5.0, "gamma": 0.5, "margin": 0.2}, {"normalize": False, "la": 1.0}),
        steady={"centers_per_class": 3},
    ),
    Loss(
        "mcr2",
        "MCR2Loss",
        None,
        "if classes should span subspaces and not be points",
        r"coding rate of the classes less that of the whole batch",
        ({"gain": 0.5, "rate_weight": 0.7, "eps_squared": 0.3}, {"normalize": False}),
    ),
)
