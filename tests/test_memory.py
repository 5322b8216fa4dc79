"""No operation stores N×N of anything, whatever its labels."""

from __future__ import annotations

import subprocess
import sys

import pytest

CODE = """
import sys, torch, dmlkernels
from dmlkernels import functional as F

def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) / 1024

def run(name, n):
    x = torch.randn(n, 64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    few, one = torch.arange(n) % (n // 8), torch.zeros(n, dtype=torch.int64)
    if name == "ranked_list":
        loss = F.ranked_list_loss(x, few)
    elif name == "one_class":
        loss = F.nearest_positive(x, one).distance.sum()
    elif name == "easy":
        loss = F.ranked_list_loss(x, few, positive="easy", ids=torch.arange(n))
    else:
        loss = F.triplet_loss(x, few, positive="hard", negative="semihard")
    loss.backward()
    assert x.grad.isfinite().all()

torch.set_num_threads(2)
dmlkernels.set_backend(sys.argv[1])
names = ("ranked_list", "one_class", "easy", "triplet")
for name in names:
    run(name, 600)
for name in names:
    open("/proc/self/clear_refs", "w").write("5")  # the peak starts again from here
    before = peak()
    run(name, 8192)
    print(name, peak() - before)
"""


@pytest.mark.large
def test_no_square_of_pairs(kernel, device):
    """At N = 8,192 one N×N array of float32 is 256 MB, of bytes 64 MB; the inputs are 2 MB."""
    if device != "cpu" or not sys.platform.startswith("linux"):
        pytest.skip("reads the peak resident memory of a Linux process")
    done = subprocess.run([sys.executable, "-c", CODE, kernel.name], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    growth = {name: float(megabytes) for name, megabytes in map(str.split, done.stdout.splitlines())}
    assert len(growth) == 4
    assert max(growth.values()) < 48, growth
