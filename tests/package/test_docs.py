"""Code in the documents is what stands in the files, and what is meant to run runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from dmlkernels import functional, losses
from dmlkernels.testing import evaluate, make_pairs

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = ROOT / "docs" / "adding-a-loss.md"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"<!-- (quote|run): (\S+) -->\n```(?:python|cpp)\n(.*?)```\n", re.DOTALL)


def blocks(kind: str, text: str | None = None) -> list[tuple[str, str]]:
    """(file or name, code) of the marked blocks."""
    found = BLOCK.findall(DOCUMENT.read_text(encoding="utf-8") if text is None else text)
    return [(name, code) for marked, name, code in found if marked == kind]


def is_quoted(code: str, path: Path) -> bool:
    """Whether these whole lines stand there one after the other."""
    return f"\n{code}" in "\n" + path.read_text(encoding="utf-8")


def test_quotes_are_found_and_a_changed_one_is_noticed(tmp_path: Path) -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    assert text.count("<!-- quote: ") == len(blocks("quote")) >= 10
    assert len(blocks("run")) == 1
    # Every block of code but the commands is a quote or runs.
    assert len(re.findall(r"```(python|cpp)\n", text)) == len(BLOCK.findall(text))
    path = tmp_path / "file.h"
    path.write_text("one\n  two\nthree\n")
    assert is_quoted("one\n  two\n", path)
    assert is_quoted("  two\n", path)
    assert not is_quoted("two\n", path)
    assert not is_quoted("one\n  tw\n", path)
    assert not is_quoted("one\nthree\n", path)


@pytest.mark.parametrize("path, code", blocks("quote"))
def test_the_code_stands_in_the_file(path: str, code: str) -> None:
    assert is_quoted(code, ROOT / path), f"docs/adding-a-loss.md quotes what is not in {path}:\n{code}"


@pytest.mark.parametrize("document", PAGES, ids=lambda path: path.name)
def test_what_a_page_names_exists(document: Path) -> None:
    """Files of the tree in backticks, and pages that are linked."""
    text = document.read_text(encoding="utf-8")
    named = re.findall(r"`((?:dmlkernels|csrc|triton_kernels|tests|bench|docs|scripts)/[\w./-]+)`", text)
    named = [path for path in named if "foo" not in path]  # the operation and the loss that a guide is about
    linked = re.findall(r"\]\(([\w./-]+)(?:#[\w-]+)?\)", text)
    assert [path for path in sorted(set(named)) if not (ROOT / path).exists()] == []
    assert [path for path in sorted(set(linked)) if not (document.parent / path).exists()] == []


def test_the_readme_has_every_operation_function_and_loss() -> None:
    """And none that does not exist."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    table = [line.split("|")[1:-1] for line in text.splitlines() if line.count(" | yes | yes | ") == 1]
    operations = {name.strip() for row in table for name in row[0].split(",")}
    layers = {path.stem for path in (ROOT / "dmlkernels" / "ops").glob("[a-z]*.py")}
    assert operations == layers | {"mine", "cholesky"}
    assert set(re.findall(r"`F\.(\w+)`", text)) == {n for n in functional.__all__ if n.islower()}
    assert set(losses.__all__) == set(re.findall(r"`losses\.(\w+)`", text))
    for link in re.findall(r"\]\((docs/[\w-]+\.md)\)", text):
        assert (ROOT / link).is_file()


@pytest.fixture(scope="module")
def decoupled() -> type:
    namespace: dict = {"__name__": "decoupled"}
    ((_, code),) = blocks("run")
    exec(compile(code, "decoupled", "exec", dont_inherit=True), namespace)
    return namespace["DecoupledContrastiveLoss"]


@pytest.mark.parametrize("positive", ["all", "easy"])
@pytest.mark.parametrize("n", [None, 17], ids=["self", "gallery"])
def test_the_exercise(backend, device, decoupled, n, positive):
    """Value and gradients of the formula, in plain PyTorch."""
    pairs = make_pairs("random", 14, n, 8, 4, torch.float64, seed=70, device=device)

    def spelled(x, g=None):
        f = torch.nn.functional.normalize(x, dim=1)
        s = f @ (f if g is None else torch.nn.functional.normalize(g, dim=1)).T
        same = pairs.labels[:, None] == (pairs.labels if g is None else pairs.ref_labels)
        taken = same & ~torch.eye(*s.shape, dtype=torch.bool, device=device) if g is None else same
        if positive == "easy":
            nearest = torch.where(taken, s, -torch.inf).argmax(1)
            taken = taken & (torch.arange(s.shape[1], device=device) == nearest[:, None])
        negatives = torch.logsumexp(torch.where(same, -torch.inf, s / 0.2), 1)
        return (negatives[:, None] - s / 0.2)[taken].mean()

    def fused(x, g=None):
        return decoupled(temperature=0.2, positive=positive)(x, pairs.labels, None, g, pairs.ref_labels)

    tensors = [t for t in (pairs.embeddings, pairs.ref_emb) if t is not None]
    got, expected = (evaluate(function, tensors, torch.ones((), device=device)) for function in (fused, spelled))
    torch.testing.assert_close(got.value, expected.value, rtol=1e-9, atol=1e-9)
    for grad, wanted in zip(got.grads, expected.grads, strict=True):
        torch.testing.assert_close(grad, wanted, rtol=1e-8, atol=1e-10)
        assert float(wanted.abs().max()) > 1e-3


def test_the_exercise_takes_what_goes_around_losses(decoupled):
    pairs = make_pairs("random", 24, d=16, classes=4, seed=71)
    loss = losses.AntiCollapseLoss(losses.CrossBatchMemory(decoupled(), 16, 40))
    for _ in range(2):
        leaf = pairs.embeddings.clone().requires_grad_()
        loss(leaf, pairs.labels).backward()
        assert float(leaf.grad.abs().max()) > 0
