"""What a torch with CUDA makes of the CUDA library on a machine without a GPU: `make gpu-load`.

    python scripts/gpu_load.py WHEEL [--out FILE]

Installs the wheel into a folder of its own and shows: what `python -m dmlkernels info` says, that every operator has
its kernel for CUDA, and that forwards of losses on fakes of CUDA tensors are traced, and compiled by dynamo, to one
graph that calls these operators. Nothing is launched; a backward would ask for the GPU.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

OUT = Path(__file__).resolve().parents[1] / "bench" / "results" / "gpu-load.txt"

PROGRAM = '''
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from dmlkernels import _backend, functional as F, use_backend
from dmlkernels._contract import SCHEMAS
from dmlkernels._losses import TABLE

has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
for namespace in _backend.namespaces.values():
    lacking = [name for name in SCHEMAS if not has_kernel(f"{namespace}::{name}", "CUDA")]
    assert not lacking, f"{namespace} has no CUDA kernel for {lacking}"
    print(f"{namespace}: {len(SCHEMAS)} of {len(SCHEMAS)} operators have a kernel for CUDA")
assert not torch.cuda.is_available()

M, D, C = 256, 64, 32


def called(graph):
    """Our operators in a graph."""
    return sorted({str(node.target) for node in graph.graph.nodes if str(node.target).startswith("dmlkernels")})


with FakeTensorMode():
    x, labels = torch.empty(M, D, device="cuda", requires_grad=True), torch.empty(M, dtype=torch.int64, device="cuda")
    out = F.pairwise_similarity(x.bfloat16())
    print(f"fake: pairwise similarity of {tuple(x.shape)} is {tuple(out.shape)} {out.dtype} on {out.device}")
    assert (out.shape, out.dtype, out.device.type) == ((M, M), torch.bfloat16, "cuda")
    for backend in ("native", "triton"):
        for row in TABLE:
            if row.function is None:
                continue
            function = getattr(F, row.function)
            centers = C * row.steady.get("centers_per_class", 1)
            proxies = (torch.empty(centers, D, device="cuda"),) if row.proxies else ()

            def step(x, labels, *proxies):
                with use_backend(backend):
                    return function(x, labels, *proxies, **row.steady)

            graph = make_fx(step)(x, labels, *proxies)
            print(f"traced: {backend} {row.name}: {', '.join(called(graph))}")
            assert called(graph)

seen = []


def noted(graph, inputs):
    seen.append(graph)
    return graph.forward


with FakeTensorMode(allow_non_fake_inputs=True):
    for row in TABLE:
        if row.function is None or row.proxies:
            continue
        module = row.type(**row.steady).to("cuda")
        torch._dynamo.reset()
        seen.clear()
        torch.compile(module, fullgraph=True, backend=noted)(x.detach(), labels)
        print(f"compiled: {row.module}: {len(seen)} graph, {', '.join(called(seen[0]))}")
        assert len(seen) == 1 and called(seen[0])
'''


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        install = ["pip", "install", "--quiet", "--no-index", "--no-deps", "--target", folder, str(arguments.wheel)]
        subprocess.run([sys.executable, "-m", *install], check=True)
        said = []
        for command in (["-m", "dmlkernels", "info"], ["-c", PROGRAM]):
            done = subprocess.run([sys.executable, *command], cwd=folder, capture_output=True, text=True, check=False)
            said.append(done.stdout)
            if done.returncode:
                print("\n".join(said), done.stderr, file=sys.stderr)
                return 1
    arguments.out.write_text("\n".join(said), encoding="utf-8")
    print("\n".join(said))
    return 0


if __name__ == "__main__":
    sys.exit(main())
