"""What `import dmlkernels` gives."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

import dmlkernels


def test_dir_is_what_is_public():
    assert dir(dmlkernels) == sorted(dmlkernels.__all__)


@pytest.mark.parametrize("name", ["data", "functional", "losses", "metrics", "miners", "samplers"])
def test_modules_are_there(name):
    code = f"import dmlkernels; print(dmlkernels.{name}.__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == f"dmlkernels.{name}\n"
    assert inspect.ismodule(getattr(dmlkernels, name))
