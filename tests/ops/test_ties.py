"""Ties and edges: every backend selects alike and decides alike on which side of a boundary a pair lies."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import pytest
import torch
from support.contract import FLOAT_IDS, FLOATS, thinned
from torch import Tensor

import dmlkernels
from dmlkernels import functional as F

CHOICES = list(itertools.product(["easy", "hard"], ["hard", "semihard"]))
NEVER = 2**40


class Grid(NamedTuple):
    """Rows whose distances are often equal."""

    x: Tensor
    y: Tensor
    options: dict[str, object]

    def squared(self) -> Tensor:
        """(M, M) squared distances, four times as large, which are integers: norms are 1 or 2."""
        norm = self.x.norm(dim=1, keepdim=True).clamp_min(1) if self.options["normalize"] else 1
        points = (2 * self.x / norm).to(torch.int64)
        return (points[:, None] - points[None, :]).square().sum(2)

    def pairs(self) -> tuple[Tensor, Tensor]:
        """Masks (M, M) of the positives and of the negatives."""
        allowed = ~torch.eye(len(self.y), dtype=torch.bool)
        if isinstance(ids := self.options.get("ids"), Tensor):
            allowed = allowed & (ids[:, None] != ids[None, :])
        if "ignore_index" in self.options:
            kept = self.y != self.options["ignore_index"]
            allowed = allowed & kept[:, None] & kept[None, :]
        same = self.y[:, None] == self.y[None, :]
        return allowed & same, allowed & ~same


def make_grid(generator: torch.Generator, normalize: bool, exact: bool = True, rows: int = 40) -> Grid:
    """Entries of -1, 0 and 1, copies and zero rows. Exact normalised rows have one entry, or four of them."""

    def draw(high: int) -> int:
        return int(torch.randint(1, high + 1, (1,), generator=generator))

    n, d = draw(rows), 4 if exact and normalize else draw(6)
    x = torch.randint(-1, 2, (n, d), generator=generator).float()
    if exact and normalize:
        full = torch.where(x == 0, 1, x)
        one = torch.nn.functional.one_hot(torch.randint(0, d, (n,), generator=generator), d)
        x = torch.where(torch.rand(n, 1, generator=generator) < 0.5, one * full, full)
    x[torch.rand(n, generator=generator) < 0.1] = 0
    options: dict[str, object] = {"normalize": normalize}
    if draw(2) == 1:
        options["ids"] = torch.randint(0, n, (n,), generator=generator)
    if draw(2) == 1:
        options["ignore_index"] = 2
    return Grid(x, torch.randint(0, 3, (n,), generator=generator), options)


def first_of_nearest(squared: Tensor, candidates: Tensor) -> Tensor:
    """Index (T,) of the nearest candidate (T, N), the lowest of equals; -1 for none."""
    place = torch.arange(squared.shape[1])
    key = torch.where(candidates, squared * len(place) + place, NEVER)
    best, index = key.min(1)
    return torch.where(best < NEVER, index, -1)


def selected(grid: Grid, positive: str, negative: str) -> tuple[list[int], list[int]]:
    """Chosen positives and negatives in exact arithmetic."""
    squared, (own, others) = grid.squared(), grid.pairs()
    chosen = first_of_nearest(-squared if positive == "hard" else squared, own)
    if negative == "semihard":
        limit = squared.gather(1, chosen.clamp_min(0)[:, None])
        others = others & (chosen >= 0)[:, None] & (squared > limit)
    return chosen.tolist(), first_of_nearest(squared, others).tolist()


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("seed", thinned(range(120), 0, 1))
def test_exact_rows_are_selected_exactly(backend, seed, normalize):
    grid = make_grid(torch.Generator().manual_seed(seed), normalize)
    x = grid.x.to(FLOATS[seed % 2])
    for positive, negative in CHOICES:
        positives, negatives = selected(grid, positive, negative)
        mined = F.mine(x, grid.y, positive=positive, negative=negative, **grid.options)
        assert mined.pos_index.tolist() == positives
        assert mined.neg_index.tolist() == negatives
    assert F.nearest_positive(x, grid.y, **grid.options).index.tolist() == selected(grid, "easy", "hard")[0]


@pytest.mark.parametrize("seed", thinned(range(120), 0, 1))
def test_rows_of_any_norm_are_selected_alike(kernel, seed):
    """Norms of √2, √3 and √5 are not exact: whatever their rounding makes of a tie, every backend makes the same."""
    grid = make_grid(torch.Generator().manual_seed(1000 + seed), True, exact=False)
    x = grid.x.to(FLOATS[seed % 2])
    for positive, negative in CHOICES:
        mined = F.mine(x, grid.y, positive=positive, negative=negative, **grid.options)
        with dmlkernels.use_backend("reference"):
            expected = F.mine(x, grid.y, positive=positive, negative=negative, **grid.options)
        assert torch.equal(mined.pos_index, expected.pos_index)
        assert torch.equal(mined.neg_index, expected.neg_index)


def test_a_negative_as_far_as_the_positive_is_not_semihard(backend):
    """Right angles: all distances are √2, and no negative of the last row is farther than its positive."""
    x, y = torch.tensor([[-1.0, 0, -1], [1, 0, 0], [-1, 0, -1], [0, 1, 0]]), torch.tensor([0, 0, 1, 1])
    assert F.mine(x, y, negative="semihard").neg_index.tolist() == [-1, -1, 1, -1]


@pytest.mark.parametrize("m, n", [(130, 300), (5, 300)])
def test_ties_across_tiles_and_parts(backend, m, n):
    """A gallery of four points, each many times, over several tiles: the first copy of a class wins."""
    points = torch.tensor([[1.0, 0], [0, 1], [-1, 0], [0, -1]])
    x, gallery = points[torch.arange(m) % 4], points[torch.arange(n) * 3 % 4]
    y, h = torch.arange(m) % 2, torch.arange(n) // 7 % 2
    squared = (x[:, None] - gallery[None, :]).square().sum(2).to(torch.int64)
    same = y[:, None] == h[None, :]
    nearest = first_of_nearest(squared, same)
    beyond = ~same & (squared > squared.gather(1, nearest[:, None]))
    mined = F.mine(x, y, gallery, h, negative="semihard")
    assert torch.equal(mined.pos_index, nearest)
    assert torch.equal(mined.neg_index, first_of_nearest(squared, beyond))


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("seed", thinned(range(40), 0, 1))
def test_semihard_triplets_of_all_positives(backend, seed, normalize):
    """Of each positive of each anchor: what the triplets of a grid cost, where one more or less would show."""
    grid, margin = make_grid(torch.Generator().manual_seed(2000 + seed), normalize, rows=24), 10.0
    squared, (own, others) = grid.squared(), grid.pairs()
    anchor, positive = own.nonzero(as_tuple=True)
    limit = squared[anchor, positive]
    index = first_of_nearest(squared[anchor], others[anchor] & (squared[anchor] > limit[:, None]))
    d_p, d_n = (d.double().sqrt() / 2 for d in (limit, squared[anchor, index.clamp_min(0)]))
    cost = torch.where(index >= 0, d_p - d_n + margin, 0).sum()
    options = {"positive": "all", "negative": "semihard", "margin": margin, "reduction": "sum"}
    loss = F.triplet_loss(grid.x.to(FLOATS[seed % 2]), grid.y, **options, **grid.options)
    assert float(loss) == pytest.approx(float(cost), rel=1e-5, abs=1e-4)


@pytest.mark.parametrize("near", [False, True])
def test_a_zero_row_lies_at_distance_1(backend, near):
    """On the edge of the hinge of the negatives, which it does not cross; also if others of its tile are near."""
    x, y = torch.randn(40, 16, generator=torch.Generator().manual_seed(0)), torch.arange(40) // 4
    x[7] = 0
    if near:
        x[20] = x[3]
    assert torch.equal(F.pairwise_distance(x[7:8], x[8:], normalize=True), torch.ones(1, 32))
    f = torch.nn.functional.normalize(x.double(), dim=1)
    d = torch.cdist(f, f)
    d[7, :] = d[:, 7] = 1
    same, off = y[:, None] == y[None, :], ~torch.eye(40, dtype=torch.bool)
    pos, neg = d[same & off], (1 - d[~same]).relu()
    assert float(F.contrastive_loss(x, y)) == pytest.approx(float(pos.mean() + neg[neg > 0].mean()), rel=1e-5)


@pytest.mark.parametrize("length", [1e-20, 1e-13, 1e-3, 1e8])
@pytest.mark.parametrize("dtype", FLOATS, ids=FLOAT_IDS)
def test_short_and_long_rows(backend, dtype, length):
    """A row shorter than 1e-12 is divided by 1e-12, and its norm does not underflow."""
    x = torch.tensor([[3.0, 4.0], [0.0, 0.0]], dtype=dtype) * (length / 5)
    squared = F.pairwise_distance(x[:1], x[1:], squared=True, normalize=True)
    assert float(squared) == pytest.approx(min(length / 1e-12, 1.0) ** 2, rel=1e-5)


@pytest.mark.parametrize("d", [1, 15, 16, 17, 40, 100])
@pytest.mark.parametrize("dtype", FLOATS, ids=FLOAT_IDS)
def test_bits_of_norms_and_difference_forms(kernel, d, dtype):
    """One order of summation on every backend: squared norms, as distances of a zero row, and near-duplicates."""
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(20, d, generator=generator, dtype=dtype)
    near = x * (1 + 1e-3 * torch.randn(20, d, generator=generator, dtype=dtype))

    def bits(normalize: bool) -> list[Tensor]:
        norms = F.pairwise_distance(x, torch.zeros_like(x[:1]), squared=True, normalize=normalize)
        return [norms, F.pairwise_distance(x, near, squared=True, normalize=normalize).diagonal()]

    for normalize in (True, False):
        found = bits(normalize)
        with dmlkernels.use_backend("reference"):
            expected = bits(normalize)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


HINGES = {
    "triplet": lambda x, y: F.triplet_loss(x, y, margin=1.0, normalize=False),
    "triplet_hard": lambda x, y: F.triplet_loss(x, y, margin=1.0, positive="hard", negative="hard", normalize=False),
    "triplet_all": lambda x, y: F.triplet_loss(
        x, y, margin=1.0, positive="all", negative="all", normalize=False, reduction="sum"
    ),
    "contrastive": lambda x, y: F.contrastive_loss(x, y, pos_margin=1.0, neg_margin=2.0, normalize=False),
    "margin": lambda x, y: F.margin_loss(x, y, beta=1.5, margin=0.5, normalize=False),
}


@pytest.mark.parametrize("name", HINGES)
@pytest.mark.parametrize("dtype", FLOATS, ids=FLOAT_IDS)
def test_a_hinge_at_0_has_slope_0(backend, name, dtype):
    """A positive at distance 1 and a negative at distance 2 make every hinge of the first row exactly 0."""
    x = torch.tensor([[0, 0], [1, 0], [0, 2]], dtype=dtype, requires_grad=True)
    loss = HINGES[name](x, torch.tensor([0, 0, 1]))
    loss.backward()
    assert float(loss.detach()) == 0
    assert torch.equal(x.grad, torch.zeros_like(x))
