"""`python -m dmlkernels check`: which cases and which backends it runs, and what it says of numbers that are wrong."""

from __future__ import annotations

import pytest
import torch

from dmlkernels import _backend, selfcheck
from dmlkernels.__main__ import main


def said(capsys, *arguments: str) -> tuple[int, list[list[str]]]:
    """Exit status, and the words of each line but the last."""
    code = main(["check", *arguments])
    return code, [line.split() for line in capsys.readouterr().out.splitlines()[:-1]]


def test_chosen_cases_on_a_chosen_backend(capsys):
    code, lines = said(capsys, "pairwise distance", "contrastive", "--backend", "reference")
    assert code == 0
    assert [line[:2] for line in lines] == [["ok", "pairwise"]] * 4 + [["ok", "contrastive"]] * 4
    assert {line[-7] for line in lines} == {"reference"}


@pytest.mark.parametrize(
    "arguments, words",
    [(["pairwise"], "check: no operation is called 'pairwise'"), (["--device", "cuda"], "no such backend")],
)
def test_what_is_not_there_is_refused(arguments, words, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["check", *arguments]) == 2
    assert words in capsys.readouterr().err


def test_kernels_for_a_gpu_that_is_not_here_are_left_out(monkeypatch):
    monkeypatch.setattr(_backend, "loaded", {"native": {"cpu", "cuda"}, "triton": {"cuda"}})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert selfcheck.targets() == [("reference", "cpu"), ("native", "cpu")]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert selfcheck.targets() == [("reference", "cpu"), ("native", "cpu"), ("native", "cuda"), ("triton", "cuda")]


def test_wrong_numbers_fail(capsys, monkeypatch):
    monkeypatch.setattr(selfcheck, "TOLERANCE", {torch.float32: 0.0})
    code, lines = said(capsys, "contrastive", "--backend", "reference")
    assert code == 1
    assert lines[0][0] == "FAIL"


@pytest.mark.parametrize("got, error", [(0.0, 0.0), (1e-3, 1e-3 / torch.finfo(torch.float64).tiny)])
def test_an_error_beside_a_truth_of_zero(got, error):
    zero = torch.zeros(2, dtype=torch.float64)
    assert selfcheck.relative_error(zero + got, zero) == pytest.approx(error)
