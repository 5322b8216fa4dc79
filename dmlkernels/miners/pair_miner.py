"""One positive and one negative for each anchor, as an index tuple."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .. import _checks
from ..ops.nearest_positive import mine


class PairMiner(nn.Module):
    """Mine (anchors, positives, negatives) without the N×N matrix.

    Args:
        positive: "easy" (nearest: EPS, EPHN, EPSHN) or "hard" (farthest).
        negative: "hard" (nearest) or "semihard" (nearest that is farther than the chosen positive).
        normalize: L2-normalise the rows.
        ignore_index: rows of this label take no part.
        check_finite: raise for NaN or Inf; by default an anchor whose distances are NaN is dropped.

    Source:
        Levi et al., ICCV 2021; Xuan et al., WACV 2020; pytorch-metric-learning's BatchEasyHardMiner has the same words.

    Example:
        >>> miner, loss = miners.PairMiner("easy", "semihard"), losses.TripletMarginLoss(margin=0.2)
        >>> loss(embeddings, labels, miner(embeddings, labels))
    """

    def __init__(
        self,
        positive: str = "easy",
        negative: str = "hard",
        normalize: bool = True,
        ignore_index: int | None = None,
        check_finite: bool = False,
    ) -> None:
        super().__init__()
        _checks.one_of("PairMiner", "positive", positive, ("easy", "hard"))
        _checks.one_of("PairMiner", "negative", negative, ("hard", "semihard"))
        self.options: dict[str, Any] = {
            "positive": positive,
            "negative": negative,
            "normalize": normalize,
            "ignore_index": ignore_index,
            "check_finite": check_finite,
        }

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.options.items())

    @torch.no_grad()
    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
        *,
        ids: Tensor | None = None,
        ref_ids: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Three (T,) int64 tensors; anchors without a positive or a negative are left out.

        T depends on the data, so this waits for the device; the losses with `positive="easy"` do not.
        """
        mined = mine(embeddings, labels, ref_emb, ref_labels, ids=ids, ref_ids=ref_ids, **self.options)
        anchors = ((mined.pos_index >= 0) & (mined.neg_index >= 0)).nonzero()[:, 0]
        return anchors, mined.pos_index[anchors], mined.neg_index[anchors]
