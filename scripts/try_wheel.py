"""Installs a wheel where there is nothing but torch and numpy, and no compiler, and uses it there.

The new environment gets torch, numpy and what they need as links into the environment that runs this script: it then
has them and nothing else, at the price of neither a download nor a copy of half a gigabyte.
"""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

SMOKE = """
import torch
import dmlkernels
from dmlkernels import _C, functional as F, losses

assert _C.build_info()["cuda"]
assert not torch.cuda.is_available() or "cuda" in dmlkernels._backend.loaded["native"]
dmlkernels.set_backend("native")
x = torch.randn(64, 32, requires_grad=True)
labels = torch.arange(64) // 4
for loss in (losses.RankedListLoss(), F.triplet_loss, losses.AntiCollapseLoss(losses.RankedListLoss())):
    value = loss(x, labels)
    (grad,) = torch.autograd.grad(value, x)
    assert value.isfinite() and grad.isfinite().all() and grad.abs().sum() > 0, loss
assert F.nearest_positive(x, labels).index.min() >= 0
print("forward and backward: ok")
"""


def needed(*names: str) -> set[str]:
    """The distributions of these names here, and all that they need on this machine."""
    found: set[str] = set()
    todo = list(names)
    while todo:
        name = re.sub(r"[-_.]+", "-", todo.pop()).lower()
        if name in found:
            continue
        try:
            requirements = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue  # for another system or Python
        found.add(name)
        todo += [re.split(r"[^\w.-]", line)[0] for line in requirements if "extra ==" not in line]
    return found - {"triton"}


def link(names: set[str], site_packages: Path) -> None:
    """Put the top-level files and folders of these distributions into another environment."""
    for name in names:
        distribution = importlib.metadata.distribution(name)
        for top in {file.parts[0] for file in distribution.files or []} - {"..", "__pycache__"}:
            if not (site_packages / top).exists():
                (site_packages / top).symlink_to(distribution.locate_file(top))


def main() -> int:
    wheel = Path(sys.argv[1]).resolve()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        venv.create(home / "venv", symlinks=True, with_pip=False)
        binaries = home / "venv" / "bin"
        python = binaries / "python"
        site = subprocess.run(
            [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], capture_output=True, text=True
        )
        link(needed("torch", "numpy"), Path(site.stdout.strip()))
        install = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-index", wheel]
        subprocess.run(install, check=True)
        environment = {"PATH": str(binaries), "HOME": folder}
        for command in (["-m", "dmlkernels", "info"], ["-m", "dmlkernels", "check"], ["-c", SMOKE]):
            # From another folder: the repository's own package must not be found.
            subprocess.run([python, *command], cwd=folder, env=environment, check=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
