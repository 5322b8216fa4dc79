"""The schedule of tiles: every tile once, and no two tiles of a round write to the same rows."""

from __future__ import annotations

import pytest

from dmlkernels import _backend, _contract

pytestmark = pytest.mark.skipif("cpu" not in _backend.loaded["native"], reason="the planner is in the native part")

TILE = _contract.TILE
SIZES = [0, 1, TILE - 1, TILE, TILE + 1, 2 * TILE, 3 * TILE, 5 * TILE + 7, 8 * TILE, 17 * TILE]


def _tiles(rows: int) -> int:
    return (rows + TILE - 1) // TILE


def test_tile_is_the_same_in_python_and_cpp() -> None:
    from dmlkernels import _C

    assert _C.constants()["tile"] == TILE


@pytest.mark.parametrize("rows", SIZES)
def test_self_mode_is_a_tournament(rows: int) -> None:
    from dmlkernels import _C

    rounds = _C.tile_schedule(rows, rows, True)
    met = [(row, col) for pairs in rounds for row, col, _ in pairs]
    n = _tiles(rows)
    assert sorted(met) == [(i, j) for i in range(n) for j in range(i, n)]
    for number, pairs in enumerate(rounds):
        written = [tile for row, col, _ in pairs for tile in {row, col}]
        assert len(written) == len(set(written)), f"round {number} has two tiles on one block of rows"


@pytest.mark.parametrize("rows", SIZES)
@pytest.mark.parametrize("cols", [*SIZES, 130 * TILE])
def test_reference_mode_writes_each_block_once_a_round(rows: int, cols: int) -> None:
    from dmlkernels import _C

    rounds = _C.tile_schedule(rows, cols, False)
    met = [(row, col) for pairs in rounds for row, col, _ in pairs]
    assert sorted(met) == [(i, j) for i in range(_tiles(rows)) for j in range(_tiles(cols))]
    for pairs in rounds:
        partial_sums = [(row, part) for row, _, part in pairs]
        gallery_blocks = [col for _, col, _ in pairs]
        assert len(partial_sums) == len(set(partial_sums))
        assert len(gallery_blocks) == len(set(gallery_blocks))


def test_few_queries_and_a_long_gallery_make_parallel_work() -> None:
    from dmlkernels import _C

    rounds = _C.tile_schedule(TILE, 128 * TILE, False)
    assert max(len(pairs) for pairs in rounds) == 16
