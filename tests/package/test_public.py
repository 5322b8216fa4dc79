"""What `import dmlkernels` gives."""

from __future__ import annotations

import inspect
import subprocess
import sys

import dmlkernels


def test_dir_is_what_is_public():
    assert dir(dmlkernels) == sorted(dmlkernels.__all__)


def test_modules_are_there():
    names = ["data", "functional", "losses", "metrics", "miners", "samplers"]
    code = f"import dmlkernels; print([getattr(dmlkernels, name).__name__ for name in {names}])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == f"{[f'dmlkernels.{name}' for name in names]}\n"
    assert all(inspect.ismodule(getattr(dmlkernels, name)) for name in names)
