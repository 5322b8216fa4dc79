"""What the compiler made of each CUDA kernel: registers, spills, shared memory, occupancy, tensor-core instructions.

Reads libdmlkernels_cuda.so with cuobjdump and nvdisasm, which need no GPU. csrc/cuda/kernels.txt says which kernels may
not spill and which must use tensor cores; what it forbids fails.

    python -m bench.report.resources build/wheel-cpython-311/libdmlkernels_cuda.so --out build/resources.json
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shutil
import subprocess
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from bench.report.tables import ROOT, write_json

TABLE = ROOT / "csrc" / "cuda" / "kernels.txt"

TENSOR = re.compile(r"(?:[HIDBQO]|[HIQ]G|UTC\w)MMA")  # HMMA, HGMMA, UTCHMMA, ...: an opcode up to its first point
OPCODE = re.compile(r"\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?\w+\s+)?([A-Z][A-Z0-9]*)")  # of a line of disassembly
LOCAL = {"LDL", "STL"}  # memory of a thread's own, which is where spilled registers go


class Multiprocessor(NamedTuple):
    """What the blocks on one multiprocessor share (CUDA C++ Programming Guide, technical specifications)."""

    warps: int
    blocks: int
    shared: int  # bytes
    registers: int = 65536


MULTIPROCESSORS = {
    "80": Multiprocessor(64, 32, 164 * 1024),
    "90": Multiprocessor(64, 32, 228 * 1024),
    "100": Multiprocessor(64, 32, 228 * 1024),
    "120": Multiprocessor(48, 24, 100 * 1024),
}
MOST_KERNELS = 240  # of an architecture: on two cores about 0.4 s of compiling for each
SYSTEM_SHARED = 1024  # bytes of each block that the system keeps
REGISTER_UNIT = 256  # registers of a warp are handed out in such units


class Rule(NamedTuple):
    """A line of kernels.txt."""

    pattern: re.Pattern
    shared: int  # largest dynamic shared memory of a launch, bytes
    hot: bool
    product: bool


def read_rules(text: str) -> list[Rule]:
    rules = []
    for line in text.splitlines():
        if words := line.partition("#")[0].split():
            pattern, shared, *flags = words
            rules.append(Rule(re.compile(pattern), int(shared), "hot" in flags, "product" in flags))
    return rules


def rule_of(kernel: str, rules: Iterable[Rule]) -> Rule | None:
    """The first line whose pattern the name begins with."""
    return next((rule for rule in rules if rule.pattern.match(kernel)), None)


def tool(name: str) -> Path | None:
    """A binary of the CUDA toolkit, or the copy that Triton carries."""
    folders = [os.environ.get("CUDA_HOME", "/usr/local/cuda") + "/bin"]
    if spec := importlib.util.find_spec("triton"):
        folders.append(f"{Path(str(spec.origin)).parent}/backends/nvidia/bin")
    found = shutil.which(name) or shutil.which(name, path=os.pathsep.join(folders))
    return Path(found) if found else None


def _cuobjdump(library: Path, *options: str) -> Iterator[str]:
    program, disassembler = tool("cuobjdump"), tool("nvdisasm")
    if program is None or disassembler is None:
        raise SystemExit(
            "resources: cuobjdump and nvdisasm are needed; install the CUDA toolkit, or pip install triton"
        )
    environment = os.environ | {"PATH": f"{disassembler.parent}{os.pathsep}{os.environ.get('PATH', '')}"}
    with subprocess.Popen(
        [program, *options, library], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        yield from process.stdout
    if process.returncode:
        raise SystemExit(f"resources: cuobjdump {' '.join(options)} fails on {library}")


def architectures(library: Path) -> list[str]:
    """Those that the library carries machine code for."""
    found = {number for line in _cuobjdump(library, "--list-elf") for number in re.findall(r"\.sm_(\d+)[af]?\.", line)}
    return sorted(found, key=int)


def read_usage(lines: Iterable[str]) -> dict[str, dict[str, int]]:
    """Mangled name -> registers, stack bytes and static shared bytes, from `cuobjdump -res-usage`."""
    usage = {}
    name = None
    for line in lines:
        if found := re.match(r"\s*Function (\S+):", line):
            name = found[1]
        elif name and "REG:" in line:
            fields = {key: int(value) for key, value in re.findall(r"(\w+):(\d+)", line)}
            usage[name] = {"registers": fields["REG"], "stack": fields["STACK"], "shared": fields["SHARED"]}
            name = None
    return usage


def read_code(lines: Iterable[str]) -> dict[str, Counter]:
    """Mangled name -> how often each opcode that matters occurs, from `cuobjdump -sass`."""
    counts: dict[str, Counter] = defaultdict(Counter)
    name = ""
    for line in lines:
        if "Function :" in line:
            name = line.split()[-1]
            counts[name] = Counter()
        elif (found := OPCODE.match(line)) and (found[1] in LOCAL or TENSOR.fullmatch(found[1])):
            counts[name][found[1]] += 1
    return counts


def read_threads(lines: Iterable[str]) -> dict[str, int]:
    """Mangled name -> threads of a block, which every kernel of ours declares, from `cuobjdump -elf`."""
    threads = {}
    name, next_is_value = "", False
    for line in lines:
        if line.startswith("."):
            name = line.strip().removeprefix(".nv.info.") if line.startswith(".nv.info.") else ""
        elif "EIATTR_MAX_THREADS" in line:
            next_is_value = True
        elif next_is_value and (found := re.search(r"Value:\s+(.+)", line)):
            x, y, z = (int(word, 16) for word in found[1].split())
            threads[name] = x * y * z
            next_is_value = False
    return threads


def occupancy(architecture: str, registers: int, threads: int, shared: int) -> float:
    """Share of a multiprocessor's warps that can be resident at once."""
    limits = MULTIPROCESSORS[architecture]
    warps = -(-threads // 32)
    of_warp = -(-registers * 32 // REGISTER_UNIT) * REGISTER_UNIT
    blocks = min(limits.blocks, limits.warps // warps, limits.registers // of_warp // warps)
    return min(blocks, limits.shared // (shared + SYSTEM_SHARED)) * warps / limits.warps


def plain(mangled: Iterable[str]) -> dict[str, str]:
    """Mangled -> readable name: file, kernel and template arguments; without the return type and our namespaces."""
    names = list(mangled)
    text = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True).stdout
    readable = {}
    for name, line in zip(names, text.splitlines()):
        # nvcc names the anonymous namespace after the file, between two hashes.
        file = re.search(r"_GLOBAL__N__[0-9a-f]+_\d+_(\w+?)_cu_[0-9a-f]+", name)
        short = re.sub(r"\(anonymous namespace\)::|\bdml::|^void ", "", line)
        short = re.sub(r"\([^()]*(?:\([^()]*\)[^()]*)*\)$", "", short)
        readable[name] = f"{file[1]}.{short}" if file else short
    return readable


def of_architecture(library: Path, architecture: str, rules: list[Rule]) -> dict[str, dict]:
    option = ("-arch", f"sm_{architecture}")
    usage = read_usage(_cuobjdump(library, *option, "-res-usage"))
    code = read_code(_cuobjdump(library, *option, "-sass"))
    threads = read_threads(_cuobjdump(library, *option, "-elf"))
    kernels = {}
    for mangled, name in plain(usage).items():
        rule = rule_of(name, rules)
        static = usage[mangled]["shared"]
        if int(architecture) >= 90:
            static = max(0, static - SYSTEM_SHARED)  # which counts the system's part from there on
        shared = static + (rule.shared if rule else 0)
        block = threads.get(mangled, 1024)
        counts = code[mangled]
        kernels[name] = {
            "registers": usage[mangled]["registers"],
            "stack": usage[mangled]["stack"],
            "spills": sum(counts[opcode] for opcode in LOCAL),
            "shared": shared,
            "threads": block,
            "occupancy": round(occupancy(architecture, usage[mangled]["registers"], block, shared), 3),
            "tensor": {opcode: count for opcode, count in sorted(counts.items()) if opcode not in LOCAL},
        }
    return dict(sorted(kernels.items()))


def problems(report: dict[str, dict[str, dict]], rules: list[Rule]) -> list[str]:
    """What kernels.txt forbids, and where it and the kernels have parted."""
    found = []
    used = set()
    for architecture, kernels in report.items():
        if len(kernels) > MOST_KERNELS:
            found.append(f"{len(kernels)} kernels for sm_{architecture}, more than {MOST_KERNELS}")
        for name, kernel in kernels.items():
            rule = rule_of(name, rules)
            if rule is None:
                found.append(f"{name} has no line in kernels.txt")
                continue
            used.add(rule.pattern)
            if rule.hot and (kernel["spills"] or kernel["stack"]):
                found.append(f"{name} spills on sm_{architecture}: {kernel['stack']} bytes of stack")
            if rule.product and not kernel["tensor"]:
                found.append(f"{name} has no tensor-core instruction on sm_{architecture}")
    found += [f"kernels.txt: {rule.pattern.pattern} is no kernel" for rule in rules if rule.pattern not in used]
    return sorted(set(found))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("library", type=Path)
    parser.add_argument("--out", type=Path, help="a file for the figures of every kernel")
    arguments = parser.parse_args()
    rules = read_rules(TABLE.read_text(encoding="utf-8"))
    names = architectures(arguments.library)
    with ThreadPoolExecutor(2) as pool:
        report = dict(zip(names, pool.map(lambda name: of_architecture(arguments.library, name, rules), names)))
    found = problems(report, rules)
    if arguments.out is not None:
        write_json(arguments.out, report)
    for problem in found:
        print(problem)
    kernels = {name for kernels in report.values() for name in kernels}
    print(f"{len(kernels)} kernels for {', '.join(f'sm_{name}' for name in names)}; {len(found)} problems")
    return 1 if found else 0


if __name__ == "__main__":
    raise SystemExit(main())
