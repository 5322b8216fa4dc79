"""Retrieval metrics against loops over float64 numbers, at many sizes, blocks and data types."""

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dmlkernels.metrics import neighbors, retrieval, singular_values

KS = (1, 2, 4, 8)


def ranking(query, items, own=None):
    """Item numbers by distance, then by number; `own` is left out."""
    distances = ((items - query) ** 2).sum(1).tolist()
    return [item for _, item in sorted((distance, item) for item, distance in enumerate(distances) if item != own)]


def brute_force(embeddings, labels, gallery=None, gallery_labels=None, ks=KS, normalize=True):
    queries = embeddings.double()
    items = queries if gallery is None else gallery.double()
    if normalize:
        queries, items = (torch.nn.functional.normalize(x) for x in (queries, items))
    item_labels = (labels if gallery is None else gallery_labels).tolist()
    hits_at, precisions, counted = dict.fromkeys(ks, 0), 0.0, 0
    for row, label in enumerate(labels.tolist()):
        order = ranking(queries[row], items, row if gallery is None else None)
        relevant = [item_labels[item] == label for item in order]
        r = sum(relevant)
        if not r:
            continue
        counted += 1
        for k in ks:
            hits_at[k] += any(relevant[:k])
        precisions += sum(sum(relevant[: i + 1]) / (i + 1) for i in range(r) if relevant[i]) / r
    return {**{f"recall_at_{k}": hits_at[k] / counted for k in ks}, "map_at_r": precisions / counted}


def clustered(n, d, classes, seed=0, spread=1.0):
    """Embeddings around class centres, and labels that leave some classes with a single row."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (n,), generator=generator)
    labels[:2] = 0
    centres = torch.randn(classes, d, generator=generator)
    return centres[labels] + spread * torch.randn(n, d, generator=generator), labels


def integral(n, d, seed=0):
    """Small integers: every distance is exact in float32, and many are equal."""
    return torch.randint(-2, 3, (n, d), generator=torch.Generator().manual_seed(seed)).float()


def check(found, expected):
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("n", [2, 3, 5, 8, 17, 64, 129, 200])
@pytest.mark.parametrize("d, classes", [(1, 1), (2, 3), (8, 7), (16, 40)])
@pytest.mark.parametrize("block", [1, 7, 64, 1024])
def test_leave_one_out(n, d, classes, block):
    embeddings, labels = clustered(n, d, classes, seed=n)
    embeddings = embeddings.double()
    if d == 1:
        # On a line, unit vectors are ±1 and all that a tie-break leaves to chance is rounding: compare unscaled.
        check(
            retrieval(embeddings, labels, normalize=False, block=block),
            brute_force(embeddings, labels, normalize=False),
        )
    else:
        check(retrieval(embeddings, labels, block=block), brute_force(embeddings, labels))


@pytest.mark.parametrize("m, n", [(1, 1), (1, 9), (9, 1), (12, 50), (50, 12), (65, 130)])
@pytest.mark.parametrize("block", [1, 16, 1024])
@pytest.mark.parametrize("normalize", [True, False])
def test_gallery(m, n, block, normalize):
    gallery, gallery_labels = clustered(n, 6, 5, seed=1)
    queries, labels = clustered(m, 6, 5, seed=2)
    queries, gallery = queries.double(), gallery.double()
    expected = brute_force(queries, labels, gallery, gallery_labels, normalize=normalize)
    check(retrieval(queries, labels, gallery, gallery_labels, normalize=normalize, block=block), expected)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("block", [3, 1024])
def test_ties_go_to_the_lowest_index(seed, block):
    embeddings = integral(90, 3, seed)
    labels = torch.randint(6, (90,), generator=torch.Generator().manual_seed(seed))
    expected = brute_force(embeddings, labels, normalize=False)
    check(retrieval(embeddings, labels, normalize=False, block=block), expected)
    gallery, gallery_labels = integral(70, 3, seed + 50), labels[:70].flip(0)
    expected = brute_force(embeddings, labels, gallery, gallery_labels, normalize=False)
    check(retrieval(embeddings, labels, gallery, gallery_labels, normalize=False, block=block), expected)


def test_all_rows_equal():
    labels = torch.tensor([0, 1, 1, 0, 2])
    found = retrieval(torch.ones(5, 4), labels, ks=(1, 2, 3))
    # By index: row 0 sees 1 2 3 4, row 1 sees 0 2 3 4, row 2 sees 0 1 3 4, row 3 sees 0 1 2 4; row 4 is alone.
    assert found["recall_at_1"] == 1 / 4
    assert found["recall_at_2"] == 3 / 4
    assert found["recall_at_3"] == 4 / 4
    assert found["map_at_r"] == 1 / 4
    assert found["effective_rank"] == 0


def test_worked_example():
    # On a line at 0, 1, 3, 7: neighbours of 0: 1 2 3; of 1: 0 2 3; of 2: 1 0 3; of 3: 2 1 0.
    line = torch.tensor([[0.0], [1.0], [3.0], [7.0]])
    found = retrieval(line, torch.tensor([5, 6, 5, 5]), ks=(1, 2, 3), normalize=False)
    assert found["recall_at_1"] == pytest.approx(1 / 3)
    assert found["recall_at_2"] == found["recall_at_3"] == 1
    # R = 2. Row 0 finds its first at place 2: 1/2 · 1/2; row 2 the same; row 3 at place 1: 1/2 · 1.
    assert found["map_at_r"] == pytest.approx((0.25 + 0.25 + 0.5) / 3)


@pytest.mark.parametrize("ks", [(1,), (3, 1), (2, 50, 1000)])
def test_ks(ks):
    embeddings, labels = clustered(40, 8, 4)
    embeddings = embeddings.double()
    found = retrieval(embeddings, labels, ks=ks)
    assert list(found) == [*(f"recall_at_{k}" for k in ks), "map_at_r", "effective_rank"]
    check(found, brute_force(embeddings, labels, ks=ks))


def test_class_sizes_decide_the_depth_of_each_block():
    """R from 1 to 59: with one block of rows at a time, each class is ranked to its own depth."""
    labels = torch.cat([torch.zeros(60), torch.ones(2), torch.full((20,), 2)]).long()
    embeddings, _ = clustered(82, 5, 4)
    embeddings = embeddings.double()
    for block in (1, 10, 82):
        check(retrieval(embeddings, labels, ks=(1, 2), block=block), brute_force(embeddings, labels, ks=(1, 2)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_data_types(dtype):
    embeddings = integral(80, 6).to(dtype)
    labels = torch.arange(80) % 9
    check(retrieval(embeddings, labels, normalize=False), brute_force(embeddings, labels, normalize=False))
    assert retrieval(embeddings, labels) == retrieval(embeddings.to(torch.promote_types(dtype, torch.float32)), labels)


def test_float64_is_kept():
    x = torch.tensor([[0.0], [1.0], [1.0 - 1e-10]], dtype=torch.float64)
    assert neighbors(x, 1, normalize=False).squeeze(1).tolist() == [2, 2, 1]
    assert neighbors(x.float(), 1, x, normalize=False)[0] == 0


@pytest.mark.parametrize("dtype", [torch.int8, torch.int16, torch.int32, torch.uint8, torch.bool])
def test_label_types(dtype):
    embeddings, labels = clustered(30, 4, 2)
    assert retrieval(embeddings, labels.to(dtype)) == retrieval(embeddings, labels)


def test_labels_are_only_names():
    embeddings, labels = clustered(60, 4, 5)
    names = torch.tensor([7, -1, 2**40, 0, -(2**40)])
    assert retrieval(embeddings, names[labels]) == retrieval(embeddings, labels)


@pytest.mark.filterwarnings("error")
def test_strided_and_expanded_inputs_are_left_alone():
    embeddings, labels = clustered(60, 4, 5)
    wide = torch.stack([embeddings, -embeddings], dim=2).requires_grad_()
    before = wide.detach().clone()
    found = retrieval(wide[:, :, 0], labels.repeat_interleave(2)[::2])
    assert found == retrieval(embeddings, labels)
    assert torch.equal(wide, before)
    assert all(type(value) is float for value in found.values())
    assert math.isfinite(retrieval(embeddings[:1].expand(60, 4), labels)["map_at_r"])


def test_scale_of_rows_matters_only_unnormalised():
    embeddings, labels = clustered(60, 4, 5)
    scaled = embeddings * (2.0 ** torch.arange(-3, 3).repeat(10))[:, None]
    assert retrieval(scaled, labels) == retrieval(embeddings, labels)
    assert retrieval(scaled, labels, normalize=False) != retrieval(embeddings, labels, normalize=False)


class TestNeighbors:
    @pytest.mark.parametrize("n, k", [(2, 1), (9, 8), (60, 1), (60, 10), (130, 129)])
    @pytest.mark.parametrize("block", [1, 13, 1024])
    @pytest.mark.parametrize("ties", [False, True])
    def test_among_the_others(self, n, k, block, ties):
        x = integral(n, 3) if ties else clustered(n, 5, 4)[0].double()
        expected = [ranking(x[row], x, row)[:k] for row in range(n)]
        found = neighbors(x, k, normalize=False, block=block)
        assert found.dtype == torch.int64
        assert found.tolist() == expected

    @pytest.mark.parametrize("m, n, k", [(1, 1, 1), (20, 7, 7), (7, 90, 12)])
    @pytest.mark.parametrize("ties", [False, True])
    def test_in_a_gallery(self, m, n, k, ties):
        make = integral if ties else lambda rows, d, seed: clustered(rows, d, 4, seed)[0].double()
        x, y = make(m, 4, 1), make(n, 4, 2)
        expected = [ranking(x[row], y)[:k] for row in range(m)]
        assert neighbors(x, k, y, normalize=False, block=5).tolist() == expected

    def test_normalised(self):
        x = torch.tensor([[1.0, 0.0], [9.0, 1.0], [1.0, 1.0], [0.0, 5.0]])
        assert neighbors(x, 1).squeeze(1).tolist() == [1, 0, 1, 2]
        assert neighbors(x, 1, normalize=False).squeeze(1).tolist() == [2, 2, 0, 2]

    @pytest.mark.parametrize("n", [64, 1000])
    def test_copies_come_in_order(self, n):
        assert neighbors(torch.ones(n, 3), 5)[7:].eq(torch.arange(5)).all()


class TestSpectrum:
    @pytest.mark.parametrize("n, d", [(1, 3), (3, 8), (8, 3), (50, 50), (300, 16)])
    @pytest.mark.parametrize("block", [1, 64, 1024])
    def test_singular_values(self, n, d, block):
        x = clustered(n, d, 3)[0] if n > 1 else torch.ones(1, d)
        x = x + 5
        expected = torch.linalg.svdvals(x.double() - x.double().mean(0))
        found = singular_values(x, block=block)
        assert found.dtype == torch.float64
        assert found.shape == (min(n, d),)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)

    @pytest.mark.parametrize("rank", [1, 2, 5, 16])
    def test_effective_rank_counts_equal_directions(self, rank):
        # Plus and minus each of `rank` axes: centred, and all non-zero singular values are equal.
        axes = torch.eye(16)[:rank]
        found = retrieval(torch.cat([axes, -axes]).repeat(3, 1), torch.arange(6 * rank) % 3, normalize=False)
        assert found["effective_rank"] == pytest.approx(rank)

    def test_effective_rank_is_the_exponential_of_the_entropy(self):
        x, labels = clustered(100, 8, 4)
        unit = torch.nn.functional.normalize(x.double())
        squares = torch.linalg.svdvals(unit - unit.mean(0)) ** 2
        shares = squares / squares.sum()
        expected = torch.exp(-(shares * shares.log()).sum()).item()
        assert retrieval(x, labels)["effective_rank"] == pytest.approx(expected, rel=1e-5)
        assert 1 < expected < 8

    def test_effective_rank_ignores_the_mean(self):
        x, labels = clustered(100, 8, 4)
        ranks = [retrieval(x + shift, labels, normalize=False)["effective_rank"] for shift in (0, 100)]
        assert ranks[0] == pytest.approx(ranks[1], rel=1e-3)

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
    def test_collapsed_embeddings_have_rank_zero(self, dtype):
        x = torch.full((40, 8), 0.3, dtype=dtype)
        assert retrieval(x, torch.zeros(40, dtype=torch.int64))["effective_rank"] == 0


class Largest(TorchDispatchMode):
    """Records the largest number of elements that any operation gives back."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return out


@pytest.mark.parametrize("block", [16, 128])
@pytest.mark.parametrize("ties", [False, True])
def test_no_matrix_of_all_pairs(block, ties):
    n, d = 1500, 8
    x = torch.ones(n, d) if ties else clustered(n, d, 50)[0]
    labels = torch.arange(n) % 300
    with Largest() as largest:
        retrieval(x, labels, block=block)
        neighbors(x, 8, block=block)
        singular_values(x, block=block)
    # The scores themselves must have been seen, or the bound would prove nothing.
    assert block * n <= largest.elements <= max(block * n, n * d)


class TestErrors:
    x, labels = clustered(10, 4, 2)

    @pytest.mark.parametrize(
        "changed, message",
        [
            ({"embeddings": torch.zeros(10)}, r"embeddings must be \(M, D\), got \(10,\)"),
            ({"embeddings": torch.zeros(10, 4, dtype=torch.int64)}, "embeddings must be float64, float32, .*int64"),
            ({"embeddings": torch.zeros(0, 4)}, r"embeddings must be at least one row, got \(0, 4\)"),
            ({"embeddings": torch.full((10, 4), math.nan)}, "embeddings must be finite, got NaN or Inf"),
            ({"embeddings": torch.full((10, 4), math.inf)}, "embeddings must be finite, got NaN or Inf"),
            ({"labels": labels[:9]}, r"labels must be \(M,\) with M=10, got \(9,\)"),
            ({"labels": labels.float()}, r"labels must be a \(M,\) tensor of integers .*float32"),
            ({"labels": torch.arange(10)}, "labels must give at least one query a relevant item, got none"),
            ({"gallery": x}, "gallery_labels must be given exactly when gallery is, got None"),
            ({"gallery_labels": labels}, "gallery_labels must be given exactly when gallery is, got a tensor"),
            ({"gallery": x[:, :3], "gallery_labels": labels}, r"gallery must be \(N, D\) with D=4, got \(10, 3\)"),
            ({"gallery": x * math.nan, "gallery_labels": labels}, "gallery must be finite, got NaN or Inf"),
            ({"gallery": x[:0], "gallery_labels": labels[:0]}, r"gallery must be at least one row, got \(0, 4\)"),
            ({"gallery": x, "gallery_labels": labels[:9]}, r"gallery_labels must be \(N,\) with N=10, got \(9,\)"),
            ({"gallery": x, "gallery_labels": labels + 9}, "labels must give at least one query a relevant item"),
            ({"ks": ()}, r"ks must be positive integers, got \(\)"),
            ({"ks": (1, 0)}, r"ks must be positive integers, got \(1, 0\)"),
            ({"block": 0}, "block must be at least 1, got 0"),
        ],
    )
    def test_retrieval(self, changed, message):
        with pytest.raises(ValueError, match="^retrieval: " + message):
            retrieval(**{"embeddings": self.x, "labels": self.labels, **changed})

    def test_single_row_has_nothing_to_find(self):
        with pytest.raises(
            ValueError, match="retrieval: labels must give at least one query a relevant item, got none"
        ):
            retrieval(self.x[:1], self.labels[:1])

    @pytest.mark.parametrize("k", [0, 10])
    def test_neighbors_k(self, k):
        with pytest.raises(ValueError, match=f"neighbors: k must be from 1 to 9, got {k}"):
            neighbors(self.x, k)

    def test_neighbors_k_in_a_gallery(self):
        with pytest.raises(ValueError, match="neighbors: k must be from 1 to 3, got 4"):
            neighbors(self.x, 4, self.x[:3])

    def test_singular_values(self):
        with pytest.raises(ValueError, match=r"singular_values: embeddings must be \(M, D\), got \(4,\)"):
            singular_values(self.x[0])
