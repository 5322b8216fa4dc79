"""Sizes at which 32-bit offsets run over: N² and M·N above 2³¹ on a GPU, the same code at small sizes elsewhere.

The float64 truth is made of blocks of queries against the whole gallery, since no N × N matrix fits.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dmlkernels import functional as F
from dmlkernels import use_backend

PER_CLASS = 8
BLOCK = 512  # queries of the truth at a time
TOLERANCE = 1e-4  # of losses, distances and gradient rows of unit rows in float32


class Sizes:
    def __init__(self, device: str, emulated: bool) -> None:
        large = device == "cuda"
        self.rows = 65536 if large else 128 if emulated else 520  # N² = 2³² pairs
        self.queries, self.gallery = (32768, 131072) if large else (100, 264)  # M·N = 2³²
        self.width = 64 if large else 16
        self.sampled = 256 if large else 40


@pytest.fixture
def sizes(kernel) -> Sizes:
    return Sizes(kernel.device, kernel.emulated)


def rows_of(count: int, width: int, device: str, seed: int) -> tuple[Tensor, Tensor]:
    """Shuffled classes of PER_CLASS, and rows that lie around a common direction: most pairs are active."""
    generator = torch.Generator().manual_seed(seed)
    labels = (torch.arange(count) // PER_CLASS)[torch.randperm(count, generator=generator)]
    x = torch.randn(count, width, generator=generator) + 1.5 * torch.randn(width, generator=generator)
    return x.to(device), labels.to(device)


def from_the_last(count: int, wanted: int, device: str) -> Tensor:
    """About so many row numbers, evenly from the last one down."""
    return torch.arange(count - 1, -1, -(count // wanted), device=device)


def assert_rows_close(got: Tensor, truth: Tensor) -> None:
    error = torch.linalg.vector_norm(got.double() - truth, dim=-1)
    size = torch.linalg.vector_norm(truth, dim=-1)
    assert float(size.min()) > 0
    assert bool((error <= TOLERANCE * (size + size.mean())).all()), (
        f"off by {float(error.max()):.1e} of {size.mean():.1e}"
    )


def test_self_mode(sizes, device):
    """Loss and the whole gradient: of every row as a query, and as a member of every other row's gallery."""
    x, labels = rows_of(sizes.rows, sizes.width, device, 0)
    leaf = x.clone().requires_grad_()
    loss = F.ranked_list_loss(leaf, labels, reduction="none")
    loss.sum().backward()

    ids = torch.arange(len(x), device=device)
    truth, grad = torch.empty(len(x), dtype=torch.float64, device=device), torch.zeros_like(x, dtype=torch.float64)
    with use_backend("reference"):
        for start in range(0, len(x), BLOCK):
            block = slice(start, start + BLOCK)
            whole = x.double().requires_grad_()
            part = F.ranked_list_loss(
                whole[block], labels[block], whole, labels, ids=ids[block], ref_ids=ids, reduction="none"
            )
            grad += torch.autograd.grad(part.sum(), whole)[0]
            truth[block] = part.detach()
    torch.testing.assert_close(loss.detach().double(), truth, rtol=TOLERANCE, atol=TOLERANCE)
    assert_rows_close(leaf.grad, grad)


def test_reference_mode(sizes, device):
    """Sampled queries against a gallery, among them the last ones, whose pairs have the largest offsets."""
    x, labels = rows_of(sizes.queries, sizes.width, device, 1)
    gallery, ref_labels = rows_of(sizes.gallery, sizes.width, device, 2)
    leaf = x.clone().requires_grad_()
    loss = F.ranked_list_loss(leaf, labels, gallery, ref_labels, reduction="none")
    loss.sum().backward()
    sampled = from_the_last(sizes.queries, sizes.sampled, device)
    with use_backend("reference"):
        some = x[sampled].double().requires_grad_()
        truth = F.ranked_list_loss(some, labels[sampled], gallery.double(), ref_labels, reduction="none")
        (grad,) = torch.autograd.grad(truth.sum(), some)
    torch.testing.assert_close(loss.detach()[sampled].double(), truth.detach(), rtol=TOLERANCE, atol=TOLERANCE)
    assert_rows_close(leaf.grad[sampled], grad)


def test_mining(sizes, device):
    """Distances of what is chosen; the choice itself may fall on either side of a tie."""
    x, labels = rows_of(sizes.rows, sizes.width, device, 3)
    mined = F.mine(x, labels)
    sampled = from_the_last(sizes.rows, sizes.sampled, device)
    with use_backend("reference"):
        truth = F.mine(
            x[sampled].double(),
            labels[sampled],
            x.double(),
            labels,
            ids=sampled,
            ref_ids=torch.arange(len(x)).to(device),
        )
    for name in ("pos_distance", "neg_distance"):
        got, expected = getattr(mined, name)[sampled].double(), getattr(truth, name)
        torch.testing.assert_close(got, expected, rtol=TOLERANCE, atol=TOLERANCE)
    unit = torch.nn.functional.normalize(x.double(), dim=1)
    for name in ("pos", "neg"):
        index = getattr(mined, f"{name}_index")[sampled]
        assert int(index.min()) >= 0
        direct = torch.linalg.vector_norm(unit[sampled] - unit[index], dim=1)
        torch.testing.assert_close(
            getattr(mined, f"{name}_distance")[sampled].double(), direct, rtol=TOLERANCE, atol=TOLERANCE
        )


def test_pairwise(sizes, device):
    """An output of more than 2³¹ elements; bfloat16 on a GPU, where float32 would be 17 GB and its gradient as much."""
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    x, y = (rows_of(n, sizes.width, device, 4)[0].to(dtype) for n in (sizes.queries, sizes.gallery))
    out = F.pairwise_similarity(x, y)
    assert out.numel() > 2**31 or device != "cuda"
    unit = [torch.nn.functional.normalize(t.double(), dim=1) for t in (x[-16:], y)]
    allowed = 1e-2 if dtype == torch.bfloat16 else TOLERANCE
    torch.testing.assert_close(out[-16:].double(), unit[0] @ unit[1].T, rtol=allowed, atol=allowed)
