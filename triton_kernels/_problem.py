"""What an operator on pairs works on: both sides' rows, labels and ids, checked and ready for a kernel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from . import _rows
from ._pair import NON_FINITE

PAIR = ("embeddings", "labels", "ref_emb", "ref_labels", "ids", "ref_ids", "ignore_index", "normalize")


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


def prepare(op: str, pair: Sequence, precision: str, check_finite: bool = False) -> Problem:
    """The pair arguments of an operator's schema, checked, with the statistics of the rows.

    Raises:
        ValueError: for arguments that the public functions would not pass, or with `check_finite`, which waits for the
            device.
    """
    embeddings, labels, ref_emb, ref_labels, ids, ref_ids, ignore_index, normalize = pair

    def side(x: Tensor, y: Tensor, i: Tensor | None) -> tuple[_rows.Rows, Side]:
        y = y.contiguous()
        rows = _rows.prepare(x, normalize, precision, y, ignore_index)
        i = y if i is None else i.contiguous()
        return rows, Side(rows.x, rows.operand, rows.scale, rows.norms, y, i, rows.state)

    queries, q = side(embeddings, labels, ids)
    gallery, g = queries, q
    if ref_emb is not None:
        gallery, g = side(ref_emb, ref_labels, ref_ids)
    all_nan = (g.state == NON_FINITE.value).any()
    if check_finite and bool(all_nan | (q.state == NON_FINITE.value).any()):
        raise ValueError(f"{op}: embeddings and ref_emb must be finite (check_finite=True), got NaN or Inf")
    return Problem(queries, gallery, q, g, ref_emb is None, ids is not None, all_nan)


def of(op: str, given: Mapping[str, Any]) -> Problem:
    """Of the arguments of an operator; `op` is for errors."""
    return prepare(op, [given[name] for name in PAIR], given["precision"], given.get("check_finite", False))


def empty(problem: Problem) -> bool:
    """Whether there is no pair at all."""
    return problem.queries.count == 0 or problem.gallery.count == 0
