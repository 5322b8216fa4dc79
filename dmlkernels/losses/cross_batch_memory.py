"""Cross-Batch Memory around any pair loss."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from .. import _checks
from .._options import Configured, size, whole
from ..reference.pairwise import compute_dtype
from ._pairs import NO_LABEL, PairLoss, call_loss, ignoring


@dataclasses.dataclass(eq=False, repr=False)
class CrossBatchMemory(Configured):
    """The loss of a batch against the last `memory_size` embeddings, the batch's own among them.

    Each call first remembers the batch, detached, in place of the oldest rows; then every row of the batch is an anchor
    and the memory is its gallery. A row never meets its own copy. With `ids` it meets none of its older copies either:
    give the number of the image in the data set, which comes back in another epoch.

    Nothing is waited for and no shape depends on how full the memory is: places that are not filled yet have the label
    that the loss ignores. So all steps are one graph of torch.compile, without a synchronisation, and each costs what
    it does with the memory full. A row whose norm is NaN or Inf makes its own step NaN, and is not remembered.

    Args:
        loss: any pair loss of this package. `AntiCollapseLoss`, `SphericalExpansionLoss` and `MultiHead` belong around
            the memory.
        embedding_size: D.
        memory_size: how many embeddings are remembered, at least as many as a batch has.
        start_step: before this step, counted from 0, a batch meets only itself (the features still change too fast).
            It is remembered all the same. The gradient goes to the anchors alone, as it does against the memory.

    Attributes:
        embedding_memory (memory_size, D), label_memory, id_memory (memory_size,): the ring buffer, of the dtype and on
            the device of the last batch.
        position, fill, step (): the next place, how many places are filled, and how many calls there were; like the
            ring buffer they are in the state_dict.
        last_stats: those of the loss, and filled.

    Raises:
        ValueError: for a loss that is not one of pairs; in `forward` for a batch larger than the memory, another width,
            `indices_tuple`, and what the loss refuses.

    Source:
        Wang et al., "Cross-batch memory for embedding learning", CVPR 2020, algorithm 1. Their code adds the loss
        inside the batch; the terms here are pytorch-metric-learning's, whose memory holds the batch.

    Example:
        >>> loss = losses.CrossBatchMemory(losses.RankedListLoss(), embedding_size=64, memory_size=8192)
        >>> loss(embeddings, labels, ids=indices).backward()
    """

    loss: PairLoss
    embedding_size: int = size()
    memory_size: int = size(1024)
    start_step: int = whole(0, least=0)

    embedding_memory: Tensor = dataclasses.field(init=False)
    label_memory: Tensor = dataclasses.field(init=False)
    id_memory: Tensor = dataclasses.field(init=False)
    position: Tensor = dataclasses.field(init=False)
    fill: Tensor = dataclasses.field(init=False)
    step: Tensor = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        if not isinstance(self.loss, PairLoss):
            expected = "a pair loss of this package (what goes around a loss goes around its memory)"
            _checks.fail(self.op, "loss", expected, type(self.loss).__name__)
        memory_size = self.memory_size
        self.register_buffer("embedding_memory", torch.zeros(memory_size, self.embedding_size))
        self.register_buffer("label_memory", torch.zeros(memory_size, dtype=torch.int64))
        self.register_buffer("id_memory", torch.full((memory_size,), NO_LABEL))
        for name in ("position", "fill", "step"):
            self.register_buffer(name, torch.zeros((), dtype=torch.int64))

    def reset(self) -> None:
        """Forget all rows, and count steps from 0 again."""
        for state in (self.position, self.fill, self.step):
            state.zero_()

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        indices_tuple: None = None,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
        *,
        ids: Tensor | None = None,
        ref_ids: Tensor | None = None,
    ) -> Tensor:
        """The loss of embeddings (M, D) against the memory.

        A gallery (ref_emb (N, D), ref_labels, ref_ids) is remembered in place of the batch, for instance the embeddings
        of a momentum encoder. Then only equal ids are excluded.
        """
        op = self.op
        if indices_tuple is not None:
            _checks.fail(op, "indices_tuple", "None: its pairs are all of the batch with the memory", "a list of pairs")
        inputs = _checks.pair_inputs(op, embeddings, labels, ref_emb, ref_labels, ids, ref_ids, self.loss.ignore_index)
        _checks.pair_namespace(op, inputs, self.loss.check_finite)
        rows, row_labels, row_ids, name = inputs.embeddings, inputs.labels, inputs.ids, "embeddings"
        if inputs.ref_emb is not None and inputs.ref_labels is not None:
            rows, row_labels, row_ids, name = inputs.ref_emb, inputs.ref_labels, inputs.ref_ids, "ref_emb"
        if rows.shape[1] != self.embedding_size:
            _checks.fail(op, name, f"(rows, D) with D=embedding_size={self.embedding_size}", tuple(rows.shape))
        if len(rows) > self.memory_size:
            _checks.fail(op, name, f"at most memory_size={self.memory_size} rows", len(rows))
        with ignoring(self.loss) as ignored:
            assert ignored is not None
            slots, memory, memory_labels, memory_ids, clean = self._remember(rows, row_labels, row_ids, ignored)
            gallery: dict[str, Any] = {"ref_emb": memory, "ref_labels": memory_labels}
            if inputs.ids is not None:
                gallery |= {"ids": inputs.ids, "ref_ids": memory_ids}
            elif inputs.ref_emb is None:
                # The place in the memory is as good an id, whatever ids were remembered there before.
                gallery |= {"ids": slots, "ref_ids": torch.arange(self.memory_size, device=slots.device)}
            value = call_loss(self.loss, inputs.embeddings, inputs.labels, **gallery)
        # The memory is without the rows that are not finite, but a step that brings one may not look sound.
        value = value * value.new_ones(()).masked_fill(~clean, torch.nan)
        self.last_stats = {**self.loss.last_stats, "filled": self.fill.clone()}
        return value

    @torch.no_grad()
    def _remember(
        self, rows: Tensor, labels: Tensor, ids: Tensor | None, ignored: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Where the rows were put, copies of the memory that autograd may keep while it goes on changing, and whether
        all rows that count are finite."""
        self._follow(rows)
        count, size = len(rows), self.memory_size
        slots = (self.position + torch.arange(count, device=rows.device)) % size
        age = (torch.arange(size, device=rows.device) - self.position) % size
        # As the operators judge a row: one whose norm overflows would make every later step NaN.
        finite = torch.isfinite(torch.linalg.vector_norm(rows.to(compute_dtype(rows.dtype)), dim=1))
        self.embedding_memory.index_copy_(0, slots, torch.where(finite[:, None], rows.detach(), 0))
        self.label_memory.index_copy_(0, slots, torch.where(finite, labels, ignored))
        self.id_memory.index_copy_(0, slots, torch.full_like(labels, NO_LABEL) if ids is None else ids)
        self.position.copy_((self.position + count) % size)
        self.fill.copy_((self.fill + count).clamp_max(size))
        # Places are filled in their order, those of this batch are the youngest.
        met = (torch.arange(size, device=rows.device) < self.fill) & ((age < count) | (self.step >= self.start_step))
        self.step.add_(1)
        return (
            slots,
            self.embedding_memory.clone(),
            torch.where(met, self.label_memory, ignored),
            self.id_memory.clone(),
            (finite | (labels == ignored)).all(),
        )

    def _follow(self, rows: Tensor) -> None:
        """Take the dtype and the device of the rows."""
        if self.embedding_memory.dtype != rows.dtype or self.embedding_memory.device != rows.device:
            self.embedding_memory = self.embedding_memory.to(rows)
            for name in ("label_memory", "id_memory", "position", "fill", "step"):
                setattr(self, name, getattr(self, name).to(rows.device))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        # Rows that were remembered in float64 or bfloat16 come back as they were.
        saved = state_dict.get(prefix + "embedding_memory")
        if isinstance(saved, Tensor):
            self.embedding_memory = self.embedding_memory.to(saved.dtype)
        super()._load_from_state_dict(state_dict, prefix, *arguments)
