"""What Triton's compiler makes of each kernel and pinned configuration, for GPUs that need not be there.

The launchers of triton_kernels run on tensors without storage, and each launch is written down in place of being done:
kernel, types, constants and options are those of a real call. All are then compiled to machine code, and registers,
spills, shared memory and tensor-core instructions are compared with what a GPU has. Not under TRITON_INTERPRET=1.

    python -m bench.report.triton_resources --out build/triton.json    compile everything, and keep the figures
    python -m bench.report.triton_resources --quick --dtypes float32 --architectures 80 90
"""

from __future__ import annotations

import argparse
import functools
import importlib
import re
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from dmlkernels.triton_kernels import MODULES, _configs  # type: ignore[import-not-found]
from triton._utils import find_paths_if, get_iterable_path
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature

from bench.report import resources
from bench.report.tables import write_json
from bench.report.triton_cases import calls
from dmlkernels import _contract

ARCHITECTURES = (80, 90, 100, 120)
DTYPES = ("float32", "bfloat16", "float16", "float64")
LARGEST_BLOCK = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024, 120: 99 * 1024}  # bytes of shared memory of a program
# What ptxas may make one operation of, and a fused one that no library function brought; an atomic sum is neither.
FUSIBLE = re.compile(
    r"^\s*(?:@!?%p\d+\s+)?(?:(?:mul|add|sub)\.(?:ftz\.)?f(?:32|64)|fma\.rn\.f32)(?:x2)?\s", re.MULTILINE
)
NARROWEST_FIRST = ("*bf16", "*fp16", "*fp32", "*fp64")
ArgumentPath = tuple[int, ...]


class Case(NamedTuple):
    """One kernel as a launch specialises it; a path leads to an argument, or into one that is a tuple."""

    kernel: JITFunction
    signature: tuple[tuple[str, Any], ...]
    constants: tuple[tuple[ArgumentPath, Any], ...]
    aligned: tuple[ArgumentPath, ...]  # arguments that are multiples of 16, which lets the compiler read wider
    options: tuple[tuple[str, int], ...]

    @property
    def name(self) -> str:
        arrays = {kind for kind in _leaves(kind for _, kind in self.signature) if kind.startswith("*")}
        data = next((kind for kind in NARROWEST_FIRST if kind in arrays), min(arrays))
        names = [name for name, _ in self.signature]
        chosen = ((names[path[0]], value) for path, value in self.constants)
        module = self.kernel.fn.__module__.rpartition(".")[2]
        options = " ".join(_spelled((*chosen, *self.options)))
        return f"{module}.{self.kernel.fn.__name__}<{data.removeprefix('*')} {options}>"

    def compile(self, architecture: int) -> Any:
        attributes = {path: [["tt.divisibility", 16]] for path in self.aligned}
        source = ASTSource(self.kernel, dict(self.signature), dict(self.constants), attributes)
        return triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=dict(self.options))


def _leaves(values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        yield from _leaves(value) if isinstance(value, tuple) else (value,)


def _spelled(constants: Iterable[tuple[str, Any]]) -> Iterator[str]:
    for name, value in constants:
        if hasattr(value, "_asdict"):  # a kernel's NamedTuple of constants
            yield from _spelled(value._asdict().items())
        else:
            yield f"{name}={getattr(value, 'value', value)}"


@functools.cache
def _binder(kernel: JITFunction) -> Callable[..., Any]:
    return create_function_from_signature(kernel.signature, kernel.params, make_backend(GPUTarget("cuda", 90, 32)))


def bound_arguments(kernel: JITFunction, arguments: tuple, named: dict[str, Any]) -> list[Any]:
    """Those of a launch, in the order of the signature."""
    return list(_binder(kernel)(*arguments, **named)[0].values())


def specialised(kernel: JITFunction, arguments: tuple, named: dict[str, Any]) -> Case:
    """The case of a launch, by Triton's own launcher."""
    bound, kinds, options = _binder(kernel)(*arguments, **named)
    signature, marks = [kind for kind, _ in kinds], [mark for _, mark in kinds]
    constants = find_paths_if(signature, lambda _, kind: kind == "constexpr")
    values = list(bound.values())
    return Case(
        kernel,
        tuple(zip(bound, signature)),
        tuple((path, get_iterable_path(values, path)) for path in constants),
        tuple(find_paths_if(marks, lambda path, mark: mark == "D" and path not in constants)),
        tuple(options.items()),
    )


def cases(dtypes: Sequence[torch.dtype], quick: bool, architecture: int) -> list[Case]:
    """The cases of every launch in the calls of triton_cases.py, of which nothing is launched."""
    _configs.capability = lambda device: architecture
    found: dict[Case, None] = {}

    def note(kernel: JITFunction, *arguments: Any, grid: Any, warmup: bool, **named: Any) -> None:
        assert all(size > 0 for size in grid), f"{kernel.fn.__name__}: grid {grid}"
        found[specialised(kernel, arguments, named)] = None

    launch, JITFunction.run = JITFunction.run, note
    try:
        for operator, arguments in calls(dtypes, quick):
            module = importlib.import_module(f"dmlkernels.triton_kernels.{MODULES[operator.rpartition('_')[0]]}")
            module.OPERATORS[operator](**_contract.OPERATORS[operator].named(arguments))
    finally:
        JITFunction.run = launch
    return list(found)


def figures(case: Case, architecture: int) -> dict[str, Any]:
    """As resources.py has them of a CUDA kernel, and whether the kernel multiplies matrices."""
    compiled = case.compile(architecture)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        (usage,) = resources.read_usage(resources._cuobjdump(Path(file.name), "-res-usage")).values()
        (code,) = resources.read_code(resources._cuobjdump(Path(file.name), "-sass")).values()
    shared, threads = usage["shared"] + compiled.metadata.shared, 32 * compiled.metadata.num_warps
    return {
        "registers": usage["registers"],
        "stack": usage["stack"],
        "spills": sum(code[opcode] for opcode in resources.LOCAL),
        "shared": shared,
        "threads": threads,
        "occupancy": round(resources.occupancy(str(architecture), usage["registers"], threads, shared), 3),
        "tensor": {opcode: count for opcode, count in sorted(code.items()) if opcode not in resources.LOCAL},
        "products": compiled.asm["ttir"].count("tt.dot "),
        "fusible": len(FUSIBLE.findall(compiled.asm["ptx"])),
    }


def problems(report: dict[str, dict[str, dict]]) -> Iterator[str]:
    for architecture, kernels in report.items():
        for name, kernel in kernels.items():
            # A stack alone is that of a call, as float64's division is one. Tiles with near pairs are few.
            if kernel["spills"] and "NEARBY=True" not in name:
                yield f"{name} spills on sm_{architecture}: {kernel['stack']} bytes of stack"
            if kernel["shared"] > LARGEST_BLOCK[int(architecture)]:
                yield f"{name} takes {kernel['shared']} bytes of shared memory on sm_{architecture}"
            if kernel["fusible"]:
                yield f"{name} has {kernel['fusible']} products and sums that may be fused on sm_{architecture}"
            if kernel["products"] and not kernel["tensor"]:
                yield f"{name} has no tensor-core instruction on sm_{architecture}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="a file for the figures of every kernel")
    parser.add_argument("--quick", action="store_true", help="few options of each kernel")
    parser.add_argument("--kernels", nargs="+", metavar="MODULE.KERNEL", help="these alone")
    parser.add_argument("--dtypes", nargs="+", default=DTYPES, choices=DTYPES)
    parser.add_argument("--architectures", type=int, nargs="+", default=ARCHITECTURES, choices=ARCHITECTURES)
    arguments = parser.parse_args()
    dtypes = [getattr(torch, name) for name in arguments.dtypes]
    report = {}
    for architecture in arguments.architectures:
        chosen = [
            case
            for case in cases(dtypes, arguments.quick, architecture)
            if arguments.kernels is None or case.name.partition("<")[0] in arguments.kernels
        ]
        found = [(case.name, figures(case, architecture)) for case in chosen]
        # Types of labels and what is aligned are not in a name; the launch that takes most registers stands for both.
        report[str(architecture)] = dict(sorted(found, key=lambda item: (item[0], item[1]["registers"])))
    if arguments.out is not None:
        write_json(arguments.out, report)
    faults = list(problems(report))
    for problem in faults:
        print(problem)
    compiled = ", ".join(f"sm_{architecture}" for architecture in report)
    print(f"{len(chosen)} kernels for {compiled} by Triton {triton.__version__}; {len(faults)} problems")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
