"""One positive and one negative for each anchor, as an index tuple."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from .. import _checks
from .._options import Configured, choice, flag, label
from ..ops.nearest_positive import mine_pairs


@dataclasses.dataclass(eq=False, repr=False)
class PairMiner(Configured):
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

    positive: str = choice("easy", "easy", "hard")
    negative: str = choice("hard", "hard", "semihard")
    normalize: bool = flag(True)
    ignore_index: int | None = label()
    check_finite: bool = flag(False)

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
        gallery = (ref_emb, ref_labels, ids, ref_ids)
        inputs = _checks.pair_inputs(self.op, embeddings, labels, *gallery, self.ignore_index, self.normalize)
        mined = mine_pairs(inputs, self.positive, self.negative, self.check_finite)
        anchors = ((mined.pos_index >= 0) & (mined.neg_index >= 0)).nonzero()[:, 0]
        return anchors, mined.pos_index[anchors], mined.neg_index[anchors]
