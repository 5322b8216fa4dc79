"""bench: the table of the losses beside pytorch-metric-learning's."""

from __future__ import annotations

import importlib.util

import pytest

from bench.kernels import run, timing
from bench.kernels.pair_losses import LOSSES
from bench.report import kernels as table
from dmlkernels import _backend

NAMES = list(LOSSES)


@pytest.mark.parametrize("name", NAMES)
def test_contenders_compute_the_same(name):
    if "cpu" not in _backend.loaded["native"]:
        pytest.skip("no native kernels")
    case = next(case for case in run.PEER_CASES if case.operation == name)
    peers = [rival for rival in case.rivals if rival == "peer" and importlib.util.find_spec("pytorch_metric_learning")]
    timing.assert_rivals_agree(case.shrunk()._replace(rows=256), ("reference", *peers))


def test_every_loss_has_a_goal_in_time_and_one_in_memory():
    goals = [(goal.case, goal.part) for goal in run.GOALS if goal.beside_peer]
    assert sorted(goals) == sorted((case.name, part) for case in run.PEER_CASES for part in ("total", "peak_bytes"))
    assert {case.operation for case in run.PEER_CASES} > set(NAMES)


def test_table_has_one_line_a_loss():
    taken = {"fused": {"total": [0.09, 0.1, 0.11], "peak_bytes": 5_000_000}, "product": {"total": [0.05, 0.05, 0.05]}}
    peer = {"peer": {"total": [1.9, 2.0, 2.1], "peak_bytes": 900_000_000}}
    rows = [
        {"name": "supcon_peer", "operation": "SupCon", "rows": 4096, "width": 128, "contenders": taken | peer},
        {"name": "ntxent_peer", "operation": "NT-Xent", "rows": 4096, "width": 128, "contenders": taken},
        {"name": "pairwise", "operation": "pairwise", "rows": 4096, "width": 128, "contenders": taken},
    ]
    goals = [
        goal.judged(row["contenders"])
        for row in rows
        for goal in run.GOALS
        if goal.case == row["name"] and "peer" in goal.case
    ]
    lines = table.render_peers({"rows": rows, "goals": goals}).splitlines()[2:]
    assert [[cell.strip() for cell in line.strip("|").split("|")] for line in lines] == [
        ["SupCon", "4096 × 128", "2.00", "5 MB", "40", "900 MB", "must"],
        ["NT-Xent", "4096 × 128", "2.00", "5 MB", "", "", "must"],
    ]
    assert table.render_goals({"goals": goals}) == ""
    late = taken | {"fused": {"total": [0.4, 0.4, 0.4], "peak_bytes": 5_000_000}}
    goals = [goal.judged(late) for goal in run.GOALS if goal.case == "supcon_peer"]
    assert "MISSED" in table.render_peers({"rows": rows[:1], "goals": goals})
