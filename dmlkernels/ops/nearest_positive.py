"""nearest_positive and mine: in-batch selection of positives and negatives."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from .. import _backend, _checks, _library
from ..reference import nearest_positive as reference


class NearestPositive(NamedTuple):
    distance: Tensor  # (M,) float32 (float64 for float64); +inf where there is none
    index: Tensor  # type: ignore[assignment]  # (M,) int64 row of the gallery, -1 for none; not tuple.index


class Mined(NamedTuple):
    pos_distance: Tensor  # (M,) float32 (float64 for float64); +inf where there is none
    pos_index: Tensor  # (M,) int64; -1 where there is none
    neg_distance: Tensor
    neg_index: Tensor


def nearest_positive(
    embeddings: Tensor,
    labels: Tensor,
    ref_emb: Tensor | None = None,
    ref_labels: Tensor | None = None,
    *,
    normalize: bool = True,
    ids: Tensor | None = None,
    ref_ids: Tensor | None = None,
    ignore_index: int | None = None,
    check_finite: bool = False,
) -> NearestPositive:
    """Nearest row of the same class for every query: Easy Positive Sampling.

    The distance is differentiable to both ends, the index is not. Ties go to the lowest index.

    Args:
        embeddings: (M, D) queries, floating.
        labels: (M,) integers.
        ref_emb: (N, D) gallery; None compares the queries with themselves, without the pairs (i, i).
        ref_labels: (N,) integers, with `ref_emb`.
        normalize: L2-normalise the rows (distances are then at most 2).
        ids: (M,) integers; pairs of equal ids are excluded (give the copies of one image one id).
        ref_ids: (N,) integers, with `ref_emb`.
        ignore_index: rows of this label are no query, no positive and no negative.
        check_finite: raise for NaN or Inf; by default they make the distances NaN.

    Returns:
        NearestPositive(distance (M,), index (M,)); +inf and -1 for a query without a positive.

    Raises:
        ValueError: for a wrong shape, dtype or device, or with `check_finite`.

    Source:
        Levi et al., "Rethinking preventing class-collapsing in metric learning with margin-based losses", ICCV 2021.

    Example:
        >>> found = F.nearest_positive(torch.randn(8, 4), torch.tensor([0, 0, 1, 1, 2, 2, 3, 3]))
        >>> found.index
        tensor([1, 0, 3, 2, 5, 4, 7, 6])
    """
    op = "nearest_positive"
    inputs = _checks.pair_inputs(op, embeddings, labels, ref_emb, ref_labels, ids, ref_ids, ignore_index, normalize)
    return find_nearest(op, inputs, _checks.flag(op, "check_finite", check_finite))


def find_nearest(op: str, inputs: _checks.PairInputs, check_finite: bool) -> NearestPositive:
    """`nearest_positive` on checked pair arguments; `op` is the public function, for errors."""
    namespace = _checks.pair_namespace(op, inputs, check_finite)
    if namespace is None:
        return NearestPositive(*reference.nearest_positive(inputs))
    forward = _library.forward(namespace, "nearest_positive")
    return NearestPositive(*forward(*inputs, _backend.get_float32_precision(), check_finite))


def mine(
    embeddings: Tensor,
    labels: Tensor,
    ref_emb: Tensor | None = None,
    ref_labels: Tensor | None = None,
    *,
    positive: str = "easy",
    negative: str = "hard",
    normalize: bool = True,
    ids: Tensor | None = None,
    ref_ids: Tensor | None = None,
    ignore_index: int | None = None,
    check_finite: bool = False,
) -> Mined:
    """One positive and one negative for every query, with differentiable distances.

    Args:
        embeddings, labels, ref_emb, ref_labels, normalize, ids, ref_ids, ignore_index, check_finite: as in
            `nearest_positive`.
        positive: "easy" (nearest) or "hard" (farthest).
        negative: "hard" (nearest) or "semihard" (nearest that is farther than the chosen positive, strictly).

    Returns:
        Mined(pos_distance, pos_index, neg_distance, neg_index), each (M,); +inf and -1 where there is none.

    Raises:
        ValueError: for a wrong shape, dtype, device or option, or with `check_finite`.

    Source:
        Levi et al., ICCV 2021; Xuan et al., "Improved embeddings with easy positive triplet mining", WACV 2020
        (EPHN is easy × hard, EPSHN easy × semihard; BatchEasyHardMiner has the same words).

    Example:
        >>> mined = F.mine(torch.randn(8, 4), torch.arange(8) // 2, negative="semihard")
    """
    inputs = _checks.pair_inputs("mine", embeddings, labels, ref_emb, ref_labels, ids, ref_ids, ignore_index, normalize)
    return mine_pairs(inputs, positive, negative, _checks.flag("mine", "check_finite", check_finite))


def mine_pairs(inputs: _checks.PairInputs, positive: str, negative: str, check_finite: bool) -> Mined:
    """`mine` on checked pair arguments."""
    _checks.one_of("mine", "positive", positive, ("easy", "hard"))
    _checks.one_of("mine", "negative", negative, ("hard", "semihard"))
    namespace = _checks.pair_namespace("mine", inputs, check_finite)
    if namespace is None:
        return Mined(*reference.mine(inputs, positive, negative))
    forward = _library.forward(namespace, "mine")
    return Mined(*forward(*inputs, positive, negative, _backend.get_float32_precision(), check_finite))
