"""`make bench`: the table of a device, every contender side by side in one run, and whether each goal is reached.

On the CPU it writes bench/results/cpu-<model>-<threads>t.json, with --peers cpu-<model>-<threads>t-peers.json, which
`python -m bench.report` carries into the documents, and exits with 1 if a "must" is missed. Run it on a machine
that does nothing else. With --device cuda the table of cuda_cases.py is taken on the GPU, as `make gpu` does. Results
are written after each row, so that whoever interrupts the run has those before, and --again goes on from there.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from bench.kernels import batches, cuda_cases, host, pair_losses
from bench.kernels.batches import active_shares, assert_share, use_device
from bench.kernels.cases import OPERATIONS, Case
from bench.kernels.fresh import one_thread_rates, peak_bytes
from bench.kernels.timing import SAMPLES, assert_rivals_agree, measure
from bench.report import kernels as report
from bench.report.tables import RESULTS, read_json, write_json
from dmlkernels import _backend

CASES = (
    Case("ranked_list", "ranked_list", "dense", 4096, 128, rivals=("reference", "compiled", "product")),
    Case("ranked_list_large", "ranked_list", "dense", 8192, 128),
    Case("ranked_list_sparse", "ranked_list", "sparse", 8192, 128, memory=False),
    Case("ranked_list_spread", "ranked_list", "spread", 8192, 128, rivals=("product",), memory=False),
    Case("ranked_list_gallery", "ranked_list", "dense", 256, 128, gallery=65536),
    Case("nearest_positive", "nearest_positive", "dense", 16384, 512, rivals=("reference",)),
    Case("mine_hard", "mine_hard", "dense", 8192, 128),
    Case("mine_semihard", "mine_semihard", "dense", 8192, 128, memory=False),
    Case("pairwise", "pairwise", "dense", 8192, 128),
    # The MCR² loop holds gigabytes and takes seconds: it is not run once more for its memory.
    Case("class_coding_rate", "class_coding_rate", "dense", 8192, 512, rivals=("reference", "mcr2_loop"), memory=False),
    Case("coding_rate_tall", "coding_rate", "dense", 2048, 128, rivals=("logdet",), memory=False),
    Case("coding_rate_wide", "coding_rate", "dense", 256, 512, rivals=("logdet",), memory=False),
    Case("ranked_list_memory", "ranked_list", "dense", 16384, 128, rivals=("reference",), timed=False),
)
PEER_CASES = (
    Case("ranked_list_peer", "ranked_list_pml", "dense", 4096, 128, rivals=("peer", "product")),
    Case("triplet_peer", "triplet", "dense", 4096, 128, rivals=("peer", "product")),
    *(
        Case(f"{name}_peer", name, "dense", loss.rows, 128, rivals=(*(("peer",) if loss.peer else ()), "product"))
        for name, loss in pair_losses.LOSSES.items()
    ),
)


class Goal(NamedTuple):
    """How many times faster than a rival, how many t_gemm ("product"), or how many MB."""

    title: str
    case: str
    part: str  # "forward" | "total" | "peak_bytes"
    rival: str | None
    must: float
    strong: float | None = None
    stretch: float | None = None
    beside_peer: bool = False  # of a loss in the table of losses beside pytorch-metric-learning's

    def reached(self, value: float) -> str:
        more_is_better = self.rival not in (None, "product")
        for level, bound in (("stretch", self.stretch), ("strong", self.strong), ("must", self.must)):
            if bound is not None and (value >= bound if more_is_better else value <= bound):
                return level
        return "MISSED"

    def judged(self, contenders: dict[str, dict]) -> dict:
        """The goal beside what was measured; the range is that of the quantiles, whichever way they fall together."""
        low = value = high = None
        fused = contenders.get("fused", {}).get(self.part)
        if self.rival is None:
            low = value = high = None if fused is None else fused / 1e6
        else:
            rival = contenders.get(self.rival, {}).get("total" if self.rival == "product" else self.part)
            if fused is not None and rival is not None:
                over, under = (fused, rival) if self.rival == "product" else (rival, fused)
                low, value, high = (over[i] / under[2 - i] for i in range(3))
        return {
            "title": self.title,
            "unit": " MB" if self.rival is None else "" if self.rival == "product" else "×",
            "value": value,
            "low": low,
            "high": high,
            "must": self.must,
            "strong": self.strong,
            "stretch": self.stretch,
            "met": "not measured" if value is None else self.reached(value),
            **({"beside_peer": self.case} if self.beside_peer else {}),
        }


BOTH = "forward + backward"
RLL = f"RLL {BOTH}"
SPREAD = "8192 × 128, sparse, no tile empty"
GALLERY = "256 × 65536 × 128, gradient to the queries"
MCR2 = "8192 × 512, 8 a class, faster than the public MCR² loop"
LOGDET = "faster than eager `torch.logdet`"
GOALS = (
    Goal(f"{RLL}, 4096 × 128, faster than eager", "ranked_list", "total", "reference", 20, 28, 35),
    Goal(f"{RLL}, 4096 × 128, faster than pytorch-metric-learning", "ranked_list_peer", "total", "peer", 25, 38, 45),
    Goal("RLL forward / `t_gemm`, 8192 × 128", "ranked_list_large", "forward", "product", 0.75, 0.55, 0.52),
    Goal(f"{RLL} / `t_gemm`, 8192 × 128, dense", "ranked_list_large", "total", "product", 2.5, 2.1, 2.05),
    Goal(f"{RLL} / `t_gemm`, 8192 × 128, sparse", "ranked_list_sparse", "total", "product", 0.7, 0.5, 0.45),
    Goal(f"{RLL} / `t_gemm`, {SPREAD}", "ranked_list_spread", "total", "product", 1.6, 1.2, 0.8),
    Goal(f"{RLL} / `t_gemm`, {GALLERY}", "ranked_list_gallery", "total", "product", 4.5, 3.6, 3.2),
    Goal("nearest positive, 16384 × 512, faster than eager", "nearest_positive", "forward", "reference", 50, 200),
    Goal(f"nearest positive {BOTH}, faster than eager", "nearest_positive", "total", "reference", 130, 200, 400),
    Goal(f"pairwise cosine {BOTH}, 8192 × 128, faster than eager", "pairwise", "total", "reference", 1, 1.25, 1.67),
    Goal(f"coding rate per class {BOTH}, {MCR2}", "class_coding_rate", "total", "mcr2_loop", 400, 800, 1500),
    Goal(f"coding rate {BOTH}, 2048 × 128, {LOGDET}", "coding_rate_tall", "total", "logdet", 1, 1.2, 1.5),
    Goal(f"coding rate {BOTH}, 256 × 512, {LOGDET}", "coding_rate_wide", "total", "logdet", 1, 1.2, 1.5),
    Goal(f"extra memory of {RLL}, 16384 × 128", "ranked_list_memory", "peak_bytes", None, 64, 32, 24),
    *(
        Goal(f"{OPERATIONS[case.operation].title} {what}, {case.rows} × 128", case.name, *goal)._replace(
            beside_peer=True
        )
        for case in PEER_CASES
        for what, *goal in (
            # The smallest product waits for memory, and so does what is divided by it.
            (f"{BOTH} / `t_gemm`", "total", "product", *((2.7, 2.2, 2.1) if case.rows >= pair_losses.ROWS else (6,))),
            (f"{BOTH}, extra memory", "peak_bytes", None, 40),
        )
    ),
)


def measured_row(case: Case, samples: int, skip: dict[str, str], memory: bool) -> dict:
    """Times and peaks of one row, or for a rival in `skip` why there are none."""
    pairs = tiles = None
    if case.operation.startswith("ranked_list"):
        pairs, tiles = active_shares(case.batch())
        assert_share(case.kind, pairs)
    names = [name for name in ("fused", *case.rivals) if name not in skip]
    if case.timed and set(names) <= {"fused", "triton", "product"}:
        # Nothing in the row says whether the fused result is right.
        assert_rivals_agree(case if host.reference_fits(case) else case.shrunk())
    contenders = measure(case, names, samples) if case.timed else {name: {} for name in names}
    if memory and (case.memory or not case.timed):
        for name in names:
            if name != "product":
                contenders[name]["peak_bytes"] = peak_bytes(case, name)
    contenders |= {name: {"skipped": skip[name]} for name in case.rivals if name in skip}
    return described(case, contenders) | {"active_pairs": pairs, "active_tiles": tiles}


def described(case: Case, contenders: dict[str, dict]) -> dict:
    """A row but for the shares of active pairs and tiles."""
    operation = OPERATIONS[case.operation]
    return {
        "name": case.name,
        "operation": operation.title,
        "kind": case.kind,
        "rows": case.rows,
        "columns": case.columns if operation.pairs else None,
        "width": case.width,
        "classes": case.classes or None,
        "numbers": case.numbers,
        "active_pairs": None,
        "active_tiles": None,
        "contenders": contenders,
    }


def failed_row(case: Case, error: Exception) -> dict:
    """A row without a number: a contender that is wrong, or that does not run, is not timed."""
    return described(case, {"fused": {"skipped": f"FAILED: {type(error).__name__}: {error}"}})


def failed(row: dict) -> bool:
    return row["contenders"]["fused"].get("skipped", "").startswith("FAILED")


def skipped(case: Case, arguments: argparse.Namespace) -> dict[str, str]:
    """Rivals that are left out of a row, and why."""
    skip = {}
    if "triton" in case.rivals and "cuda" not in _backend.loaded["triton"]:
        skip["triton"] = "not available here"
    if "peer" in case.rivals and importlib.util.find_spec("pytorch_metric_learning") is None:
        skip["peer"] = "not installed"
    if arguments.no_compile or arguments.quick:
        skip["compiled"] = "left out"
    if not host.reference_fits(case):
        skip["reference"] = skip["compiled"] = "not enough memory here"
    if "mcr2_loop" in case.rivals and not host.loop_fits(case):
        skip["mcr2_loop"] = "not enough memory here"
    if not case.timed and arguments.no_eager_memory:
        skip["reference"] = "left out"
    return skip


def cases_of(arguments: argparse.Namespace) -> list[Case]:
    """The rows that are asked for, with the rivals that are asked for."""
    cases: Sequence[Case] = cuda_cases.CASES if arguments.device == "cuda" else PEER_CASES if arguments.peers else CASES
    if arguments.rivals is not None:
        cases = [
            case._replace(rivals=tuple(name for name in case.rivals if name in arguments.rivals)) for case in cases
        ]
    return [case.shrunk() if arguments.quick else case for case in cases]


def measured(arguments: argparse.Namespace, path: Path | None) -> dict:
    """The results, which are in `path` after each row. With --again the rows there stay, and what failed comes last."""
    machine = host.machine()
    if machine["load"] > 0.5:
        print(
            f"bench: others are at work here (load {machine['load']}): these times are not worth keeping",
            file=sys.stderr,
        )
    samples = 3 if arguments.quick else SAMPLES
    results = {"machine": machine, "samples": samples, "one_thread_gflops": None}
    goals = [Goal(*goal) for goal in cuda_cases.GOALS] if arguments.device == "cuda" else GOALS
    cases = cases_of(arguments)
    kept = read_json(path)["rows"] if arguments.again and path is not None and path.is_file() else []
    rows = {row["name"]: row for row in kept}
    start = time.perf_counter()
    missing = [case for case in cases if case.name not in rows]
    for case in missing + [case for case in cases if case.name in rows and failed(rows[case.name])]:
        try:
            memory = not arguments.quick or not case.timed
            rows[case.name] = measured_row(case, samples, skipped(case, arguments), memory)
        except Exception as error:
            rows[case.name] = failed_row(case, error)
        said = rows[case.name]["contenders"]["fused"].get("skipped", "")
        print(f"{time.perf_counter() - start:5.0f} s  {case.name}  {said}", file=sys.stderr, flush=True)
        results["rows"] = [rows[case.name] for case in cases if case.name in rows]
        results["goals"] = [goal.judged(rows[goal.case]["contenders"]) for goal in goals if goal.case in rows]
        if path is not None:
            write_json(path, results)
        if batches.device().type == "cuda":
            torch.cuda.synchronize()  # after an error of a kernel no other would run: this ends, for one that goes on
    if arguments.device == "cpu" and not arguments.peers:
        results["one_thread_gflops"] = one_thread_rates(*((256, 64) if arguments.quick else ()))
    return results


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for flag, text in (
        ("--peers", "the table beside pytorch-metric-learning (make bench-peers installs it)"),
        ("--quick", "tiny sizes and no torch.compile: every path runs, no number means anything"),
        ("--no-eager-memory", "do not measure the 11 GB of the reference"),
        ("--no-compile", "leave torch.compile out"),
    ):
        parser.add_argument(flag, action="store_true", help=text)
    parser.add_argument("--rivals", nargs="+", metavar="NAME", help="only these beside the fused kernels")
    parser.add_argument("--again", action="store_true", help="only the rows that --out lacks, or that failed")
    parser.add_argument("--out", type=Path, help="result file, in place of bench/results/ (--quick writes only here)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dry", action="store_true", help="with --device cuda: its rows at tiny sizes, on the CPU")
    arguments = parser.parse_args()
    arguments.quick |= arguments.dry
    device = "cpu" if arguments.dry else arguments.device
    if device not in _backend.loaded["native"]:
        print(f"bench: no native kernels: {_backend.missing['native', device]}", file=sys.stderr)
        return 2
    use_device(device)
    if arguments.peers and importlib.util.find_spec("pytorch_metric_learning") is None:
        print("bench: --peers needs pytorch-metric-learning: make bench-peers", file=sys.stderr)
        return 2

    path = arguments.out
    if path is None and not arguments.quick and device == "cpu":
        processor, beside = host.slug(host.processor()), "-peers" if arguments.peers else ""
        path = RESULTS / f"cpu-{processor}-{torch.get_num_threads()}t{beside}.json"
    results = measured(arguments, path)
    print(f"\n{report.render_machine(results)}\n\n{report.render_all(results)}\n")
    if path is not None:
        write_json(path, results)
        print(path)
    wrong = [row["name"] for row in results["rows"] if failed(row)]
    if wrong:
        print(f"bench: failed: {', '.join(wrong)}", file=sys.stderr)
    missed = [goal["title"] for goal in results["goals"] if goal["met"] == "MISSED"]
    if missed and not arguments.quick and device == "cpu":  # those of a GPU are judged in docs/gpu-status.md
        print(f"bench: missed: {'; '.join(missed)}", file=sys.stderr)
        return 1
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
