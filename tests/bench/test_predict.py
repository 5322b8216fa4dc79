"""Loops and ways in machine code, and the budgets of what was predicted of it."""

from __future__ import annotations

import json
import re
from collections import Counter

import pytest
import torch

from bench.report import kernel_counts, machine_code, predict
from bench.report.tables import RESULTS

# A loop of two rounds inside another, a rare branch with a loop of its own, and the end.
CODE = """
        Function : outer
        /*0000*/                   MOV R1, c[0x0][0x28] ;            /* 0x0 */
        /*0010*/                   LDS.128 R4, [R1] ;                /* 0x0 */
        /*0020*/              @!P0 BRA 0x60 ;                        /* 0x0 */
        /*0030*/                   MUFU.EX2 R5, R4 ;                 /* 0x0 */
        /*0040*/               @P1 BRA 0x30 ;                        /* 0x0 */
        /*0050*/                   FADD R6, R6, R5 ;                 /* 0x0 */
        /*0060*/                   FFMA R5, R4, R4, R5 ;             /* 0x0 */
        /*0070*/                   HMMA.16816.F32.BF16 R8, R4, R6 ;  /* 0x0 */
        /*0080*/               @P2 BRA 0x60 ;                        /* 0x0 */
        /*0090*/               @P3 BRA 0x10 ;                        /* 0x0 */
        /*00a0*/                   EXIT ;                            /* 0x0 */
"""


@pytest.fixture
def kernel() -> machine_code.Kernel:
    return machine_code.Kernel(machine_code.read_instructions(CODE.splitlines())["outer"])


def test_loops(kernel):
    outer, *inner = kernel.loops
    assert [len(loop.blocks) for loop in kernel.loops[1:]] == [1, 1]
    assert sorted(inner, key=lambda loop: loop.header) == sorted(kernel.inside(outer), key=lambda loop: loop.header)
    (product,) = machine_code.innermost(kernel, lambda opcodes: machine_code.count(opcodes, "HMMA") > 0)
    assert kernel.round(product) == Counter({"FFMA": 1, "HMMA.16816.F32.BF16": 1, "BRA": 1})


def test_a_way_around_leaves_out_what_it_need_not_pass(kernel):
    outer = kernel.loops[0]
    (product,) = machine_code.innermost(kernel, lambda opcodes: machine_code.count(opcodes, "HMMA") > 0)
    (rare,) = machine_code.innermost(kernel, lambda opcodes: machine_code.count(opcodes, "MUFU") > 0)
    assert kernel.round(outer, [product]) == Counter({"LDS.128": 1, "BRA": 2})
    assert kernel.round(outer, [product, rare]) == Counter({"LDS.128": 1, "BRA": 2, "FADD": 1})
    with_rare = kernel.round(outer)  # the product is passed in any case, once
    assert with_rare == Counter({"LDS.128": 1, "BRA": 3, "FFMA": 1, "HMMA.16816.F32.BF16": 1})


def test_shared_memory():
    opcodes = Counter({"LDS.128": 2, "STS": 1, "LDSM.16.M88.4": 1, "LDGSTS.E.BYPASS.LTC128B.128": 1, "SHFL.BFLY": 1})
    assert kernel_counts.shared_bytes(opcodes) == 32 * (2 * 16 + 4 + 16 + 16 + 4)

    assert kernel_counts.turns_as_bytes(opcodes) == 6 * 128


@pytest.mark.parametrize("strip", [1, 2, 3, 8])
def test_rounds_of_a_warp(strip):
    """Columns drawn for eight rows: how many of the last strip beat all before it, each in a segment of its own."""
    drawn = torch.rand(2000, 8, strip, kernel_counts.TILE, generator=torch.Generator().manual_seed(1))
    before = drawn[:, :, :-1].flatten(2)
    best = before.amin(2, keepdim=True) if strip > 1 else torch.ones(2000, 8, 1)
    better = (drawn[:, :, -1] < best).sum(2).clamp_max(kernel_counts.TILE // kernel_counts.SEGMENT)
    assert kernel_counts.rounds(strip) == pytest.approx(float(better.amax(1).double().mean()), rel=0.05)


def test_what_takes_longest_is_the_time():
    work = predict.Work(rest=1e9, product=1e9, rest_shared=0, product_shared=0, special=0, tensor=1e-4, memory=0)
    times = work.times(0.5)
    assert times["issue"] == pytest.approx(2e9 / (132 * 1.7e9 * 4 * 0.5))
    assert max(times, key=times.__getitem__) == "issue"
    assert work.phases(0.5) == pytest.approx(times["issue"])


KEPT = json.loads((RESULTS / "predicted.json").read_text(encoding="utf-8"))


def test_budgets():
    """Of the machine code that was counted; CI counts again in the library that it built."""
    assert predict.over_budget(KEPT["kernels"]) == []
    for spec in kernel_counts.SPECS.values():
        for product in spec.products:
            pattern = spec.pattern.format(kernel_counts.PRODUCTS[product])
            assert any(re.match(pattern, name) for name in KEPT["kernels"])


@pytest.mark.parametrize(
    ("figures", "sentence"),
    [
        ({"pair": 20.1}, "instructions a pair"),
        ({"step": 151}, "instructions a step"),
        ({"double precision a pair": 1}, "double precision"),
    ],
)
def test_what_is_over_budget(figures, sentence):
    name = "pair_loss.statistics_kernel<(Product)4, MomentTerm>"
    (found,) = predict.over_budget({name: KEPT["kernels"][name] | figures})
    assert sentence in found


def test_what_is_predicted_to_miss():
    """CI asks the same of the library that it built."""
    assert predict.misses(KEPT["rows"]) == []
    row = KEPT["rows"][0]
    assert len(predict.misses([row | {"predicted": [row["must"] + 0.01] * 3}])) == 1
