"""What an operator on pairs works on: both sides' rows, labels and ids, ready for a kernel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

from . import _rows
from ._pair import NON_FINITE


class Side(NamedTuple):
    """One side of the pairs, in the order in which kernels take it."""

    x: Tensor  # (rows, D)
    operand: Tensor  # (rows, D)
    scale: Tensor  # (rows,)
    norms: Tensor  # (rows,)
    labels: Tensor  # (rows,) int64
    ids: Tensor  # (rows,) int64; the labels where there are none
    state: Tensor  # (rows,) int32


class Problem(NamedTuple):
    queries: _rows.Rows
    gallery: _rows.Rows  # the queries in self mode
    q: Side
    g: Side
    own: bool  # self mode
    has_ids: bool
    all_nan: Tensor  # () bool: a gallery row is not finite

    def constants(self) -> dict[str, object]:
        """Compile-time arguments of every kernel on pairs."""
        return {
            "SELF": self.own,
            "HAS_IDS": self.has_ids,
            "D": self.queries.width,
            "DTYPE": _rows.triton_dtype(self.queries.x.dtype),
        }


def of(op: str, given: Mapping[str, Any]) -> Problem:
    """Of the arguments of an operator; `op` is for errors.

    Raises:
        ValueError: with `check_finite`, which waits for the device.
    """

    def side(x: Tensor, y: Tensor, i: Tensor | None) -> tuple[_rows.Rows, Side]:
        y = y.contiguous()
        rows = _rows.prepare(x, given["normalize"], given["precision"], y, given["ignore_index"])
        i = y if i is None else i.contiguous()
        return rows, Side(rows.x, rows.operand, rows.scale, rows.norms, y, i, rows.state)

    queries, q = side(given["embeddings"], given["labels"], given["ids"])
    own = given["ref_emb"] is None
    gallery, g = (queries, q) if own else side(given["ref_emb"], given["ref_labels"], given["ref_ids"])
    all_nan = (g.state == NON_FINITE.value).any()
    if given.get("check_finite") and bool(all_nan | (q.state == NON_FINITE.value).any()):
        raise ValueError(f"{op}: embeddings and ref_emb must be finite (check_finite=True), got NaN or Inf")
    return Problem(queries, gallery, q, g, own, given["ids"] is not None, all_nan)


def empty(problem: Problem) -> bool:
    """Whether there is no pair at all."""
    return problem.queries.count == 0 or problem.gallery.count == 0
