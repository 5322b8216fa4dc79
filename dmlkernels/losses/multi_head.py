"""The sum of a loss over several heads."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .. import _checks
from ._pairs import call_loss
from .cross_batch_memory import CrossBatchMemory


class MultiHead(nn.Module):
    """Sum of the losses of several heads of one network: RLL-(L, M, H) with `RankedListLoss`.

    At test time the embeddings of the heads are concatenated. `AntiCollapseLoss`, `SphericalExpansionLoss` and
    `CrossBatchMemory` are of one embedding, so they belong inside.

    Args:
        loss: one loss for all heads, or a sequence with a loss for each head: heads with proxies or with a memory of
            their own need theirs.

    Attributes:
        last_stats: those of the losses, as head_0_NAME, head_1_NAME, ...

    Raises:
        ValueError: for one loss with a memory for all heads; in `forward` for embeddings that are no sequence, for a
            gallery of another number of heads, and for what a loss refuses.

    Source:
        Wang et al., "Ranked List Loss for Deep Metric Learning", CVPR 2019, §4.2.

    Example:
        >>> loss = losses.MultiHead(losses.RankedListLoss())
        >>> loss([low, middle, high], labels).backward()
    """

    def __init__(self, loss: nn.Module | Sequence[nn.Module]) -> None:
        super().__init__()
        self.shared = not isinstance(loss, (Sequence, nn.ModuleList))
        if not self.shared and len(loss) == 0:  # type: ignore[arg-type]
            _checks.fail("MultiHead", "loss", "a loss, or a sequence of at least one", "none")
        self.heads = nn.ModuleList(loss if isinstance(loss, (Sequence, nn.ModuleList)) else [loss])
        if self.shared and any(isinstance(module, CrossBatchMemory) for module in self.heads.modules()):
            _checks.fail("MultiHead", "loss", "a sequence with a CrossBatchMemory for each head", type(loss).__name__)
        self.last_stats: dict[str, Tensor] = {}

    def forward(
        self,
        embeddings: Sequence[Tensor],
        labels: Tensor,
        indices_tuple: tuple[Tensor, ...] | None = None,
        ref_emb: Sequence[Tensor] | None = None,
        ref_labels: Tensor | None = None,
        *,
        ids: Tensor | None = None,
        ref_ids: Tensor | None = None,
    ) -> Tensor:
        """Sum of the losses of embeddings [(M, D_0), (M, D_1), ...], against ref_emb [(N, D_0), ...] if given."""
        count = self._count("embeddings", embeddings, None if self.shared else len(self.heads))
        if ref_emb is not None:
            self._count("ref_emb", ref_emb, count)
        given = {"indices_tuple": indices_tuple, "ref_labels": ref_labels, "ids": ids, "ref_ids": ref_ids}
        values: list[Tensor] = []
        stats: dict[str, Tensor] = {}
        for head in range(count):
            loss = self.heads[0 if self.shared else head]
            gallery = None if ref_emb is None else ref_emb[head]
            values.append(call_loss(loss, embeddings[head], labels, ref_emb=gallery, **given))
            stats |= {f"head_{head}_{name}": value for name, value in getattr(loss, "last_stats", {}).items()}
        self.last_stats = stats
        return torch.stack(values).sum(0)

    def _count(self, argument: str, heads: Sequence[Tensor], expected: int | None) -> int:
        if not isinstance(heads, (list, tuple)) or not heads or expected not in (None, len(heads)):
            number = "one or more" if expected is None else str(expected)
            got = f"{len(heads)}" if isinstance(heads, (list, tuple)) else type(heads).__name__
            _checks.fail("MultiHead", argument, f"a list or tuple of {number} (rows, D) tensors", got)
        return len(heads)
