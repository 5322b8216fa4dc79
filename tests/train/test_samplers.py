"""ClassBalancedSampler: what a batch holds, what a stream of batches covers, and where a resumed run goes on."""

import io
from collections import Counter
from itertools import chain

import pytest
import torch
from torch.utils.data import DataLoader

from dmlkernels.samplers import ClassBalancedSampler


def uneven(classes: int = 10, fewest: int = 4, seed: int = 0) -> torch.Tensor:
    """Shuffled labels 5, 8, 11, ... whose classes hold from `fewest` to `fewest` + 4 samples."""
    labels = torch.cat([torch.full((fewest + cls % 5,), 5 + 3 * cls) for cls in range(classes)])
    return labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))]


def stream(sampler: ClassBalancedSampler, epochs: int) -> list[list[int]]:
    return [batch for _ in range(epochs) for batch in sampler]


SHAPES = [(1, 1), (2, 4), (3, 3), (7, 2), (10, 4), (10, 1), (9, 4)]


@pytest.mark.parametrize("p, k", SHAPES)
class TestBatches:
    def test_p_classes_with_k_distinct_samples_sorted(self, p, k):
        labels = uneven()
        for batch in stream(ClassBalancedSampler(labels, p, k, batches=15), 2):
            assert len(set(batch)) == p * k
            drawn = labels[batch]
            assert torch.equal(drawn, drawn.sort().values)
            assert drawn.unique(return_counts=True)[1].tolist() == [k] * p

    def test_each_class_once_before_any_again(self, p, k):
        labels = uneven()
        counts = Counter(dict.fromkeys(labels.unique().tolist(), 0))
        for batch in stream(ClassBalancedSampler(labels, p, k, batches=5), 8):
            counts.update(labels[batch].unique().tolist())
            assert max(counts.values()) - min(counts.values()) <= 1

    def test_each_sample_of_a_class_once_before_any_again(self, p, k):
        labels = uneven()
        counts = Counter(dict.fromkeys(range(len(labels)), 0))
        members = [torch.nonzero(labels == cls).squeeze(1).tolist() for cls in labels.unique()]
        for batch in stream(ClassBalancedSampler(labels, p, k, batches=7), 8):
            counts.update(batch)
            for rows in members:
                drawn = [counts[row] for row in rows]
                assert max(drawn) - min(drawn) <= 1

    def test_resume_anywhere_gives_the_same_batches(self, p, k):
        labels = uneven()
        expected = stream(ClassBalancedSampler(labels, p, k, batches=4, seed=3), 4)
        for done in (0, 1, 3, 4, 6, 11):
            first = ClassBalancedSampler(labels, p, k, batches=4, seed=3)
            batches = chain.from_iterable(first for _ in range(4))
            assert [next(batches) for _ in range(done)] == expected[:done]
            buffer = io.BytesIO()
            torch.save(first.state_dict(), buffer)
            buffer.seek(0)
            second = ClassBalancedSampler(labels, p, k, batches=4, seed=3)
            second.load_state_dict(torch.load(buffer, weights_only=True))
            resumed = []
            for epoch in range(done // 4, 4):
                second.set_epoch(epoch)
                resumed += list(second)
            assert resumed == expected[done:]


class TestEpochs:
    def sampler(self, **changed):
        return ClassBalancedSampler(
            uneven(), **{"classes_per_batch": 3, "samples_per_class": 4, "batches": 5, **changed}
        )

    def test_length(self):
        labels = uneven()  # 60 samples
        assert len(labels) == 60
        assert len(ClassBalancedSampler(labels, 3, 4)) == 5
        assert len(ClassBalancedSampler(labels, 7, 4)) == 2
        assert len(ClassBalancedSampler(labels, 10, 4)) == 1
        assert len(ClassBalancedSampler(labels, 10, 12, replacement=True)) == 1
        assert len(ClassBalancedSampler(labels, 3, 4, batches=9)) == 9

    @pytest.mark.parametrize("batches", [None, 1, 6])
    def test_an_epoch_yields_as_many_batches_as_its_length(self, batches):
        sampler = self.sampler(batches=batches)
        for _ in range(3):
            assert len(list(sampler)) == len(sampler)

    def test_an_epoch_goes_on_where_the_one_before_ended(self):
        assert stream(self.sampler(batches=4), 3) == stream(self.sampler(batches=12), 1)

    def test_equal_seeds_give_equal_batches(self):
        assert stream(self.sampler(seed=5), 3) == stream(self.sampler(seed=5), 3)

    def test_other_seeds_give_other_batches(self):
        assert stream(self.sampler(seed=5), 1) != stream(self.sampler(seed=6), 1)

    def test_epochs_differ(self):
        first, second = list(sampler := self.sampler()), list(sampler)
        assert first != second

    def test_global_generator_is_left_alone(self):
        torch.manual_seed(1)
        expected = torch.rand(3)
        torch.manual_seed(1)
        stream(self.sampler(), 2)
        assert torch.equal(torch.rand(3), expected)

    @pytest.mark.parametrize("visited", [[2], [0, 1, 2], [3, 2], [4, 0, 2], [2, 1, 0, 2]])
    def test_set_epoch_goes_forth_and_back(self, visited):
        expected = stream(self.sampler(), 5)
        sampler = self.sampler()
        for epoch in visited:
            sampler.set_epoch(epoch)
            assert sampler.epoch == epoch
            assert list(sampler) == expected[5 * epoch : 5 * epoch + 5]

    def test_interrupted_epoch_goes_on(self):
        expected = stream(self.sampler(), 2)
        sampler = self.sampler()
        for batch in sampler:
            if batch == expected[1]:
                break
        sampler.set_epoch(0)
        assert list(sampler) == expected[2:5]
        assert list(sampler) == expected[5:]

    def test_saved_state_stays_as_it_was(self):
        sampler = self.sampler()
        batches = iter(sampler)
        next(batches)
        state = sampler.state_dict()
        expected = list(batches)
        resumed = self.sampler()
        resumed.load_state_dict(state)
        assert list(resumed) == expected
        resumed.load_state_dict(state)
        assert list(resumed) == expected

    def test_samples_of_a_class_come_in_random_order(self):
        labels = torch.zeros(40, dtype=torch.int64)
        batches = stream(ClassBalancedSampler(labels, 1, 20), 2)
        assert any(batch != sorted(batch) for batch in batches)
        assert sorted(batches[0] + batches[1]) == list(range(40))

    def test_every_pair_of_classes_meets(self):
        labels = torch.arange(12).repeat(3)
        met = {
            tuple(sorted((a, b)))
            for batch in stream(ClassBalancedSampler(labels, 4, 2, batches=100), 1)
            for a in labels[batch].tolist()
            for b in labels[batch].tolist()
            if a != b
        }
        assert len(met) == 12 * 11 // 2


class TestReplacement:
    def test_small_classes_repeat_as_little_as_possible(self):
        labels = torch.tensor([0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 2])
        for batch in stream(ClassBalancedSampler(labels, 3, 7, batches=6, replacement=True), 2):
            counts = Counter(batch)
            assert sorted(counts[row] for row in range(3)) == [2, 2, 3]
            assert max(counts[row] for row in range(3, 11)) == 1
            assert counts[11] == 7

    def test_nothing_changes_where_classes_are_large_enough(self):
        labels = uneven()
        plain, replacing = (ClassBalancedSampler(labels, 4, 4, replacement=flag) for flag in (False, True))
        assert stream(plain, 3) == stream(replacing, 3)


@pytest.mark.parametrize("dtype", [torch.int8, torch.int32, torch.int64, torch.bool])
def test_integer_labels_of_any_type(dtype):
    labels = torch.tensor([1, 0, 1, 0, 1, 0])
    expected = stream(ClassBalancedSampler(labels, 2, 2, batches=4), 1)
    assert stream(ClassBalancedSampler(labels.to(dtype), 2, 2, batches=4), 1) == expected


def test_list_of_negative_labels():
    labels = [3, -1, 3, -1]
    for batch in ClassBalancedSampler(labels, 2, 2, batches=3):
        assert [labels[row] for row in batch] == [-1, -1, 3, 3]


@pytest.mark.parametrize("workers", [0, 1])
def test_data_loader(workers):
    labels = uneven()
    sampler = ClassBalancedSampler(labels, 5, 3, seed=2)
    loader = DataLoader(labels.tolist(), batch_sampler=sampler, num_workers=workers)
    assert len(loader) == len(sampler) == 4
    expected = [labels[batch].tolist() for batch in stream(ClassBalancedSampler(labels, 5, 3, seed=2), 2)]
    assert [batch.tolist() for _ in range(2) for batch in loader] == expected


class TestErrors:
    @pytest.mark.parametrize(
        "changed, message",
        [
            ({"labels": torch.zeros(4)}, r"labels must be \(n,\) integers with n >= 1, got torch.float32 \(4,\)"),
            ({"labels": torch.zeros(4, 2, dtype=torch.int64)}, r"labels must be .* got torch.int64 \(4, 2\)"),
            ({"labels": torch.zeros(0, dtype=torch.int64)}, r"labels must be .* got torch.int64 \(0,\)"),
            ({"classes_per_batch": 11}, "classes_per_batch must be at most 10, the number of classes, got 11"),
            ({"classes_per_batch": 0}, "classes_per_batch must be at least 1, got 0"),
            ({"samples_per_class": 0}, "samples_per_class must be at least 1, got 0"),
            ({"samples_per_class": -1, "replacement": True}, "samples_per_class must be at least 1, got -1"),
            ({"batches": 0}, "batches must be at least 1, got 0"),
            (
                {"samples_per_class": 5},
                "samples_per_class must be at most 4, the number of samples of class 5, got 5; pass replacement=True",
            ),
        ],
    )
    def test_arguments(self, changed, message):
        arguments = {"labels": uneven(), "classes_per_batch": 3, "samples_per_class": 4, **changed}
        with pytest.raises(ValueError, match="ClassBalancedSampler: " + message):
            ClassBalancedSampler(**arguments)

    def test_negative_epoch(self):
        with pytest.raises(ValueError, match="ClassBalancedSampler: epoch must be at least 0, got -1"):
            ClassBalancedSampler(uneven(), 3, 4).set_epoch(-1)

    @pytest.mark.parametrize(
        "changed, message",
        [
            ({"labels": uneven()[:-1]}, "samples must be 60 as in the saved state, got 59"),
            ({"labels": torch.arange(15).repeat(4)}, "classes must be 10 as in the saved state, got 15"),
            ({"classes_per_batch": 2}, "classes_per_batch must be 3 as in the saved state, got 2"),
            ({"samples_per_class": 2}, "samples_per_class must be 4 as in the saved state, got 2"),
            ({"batches": 6}, "batches must be 5 as in the saved state, got 6"),
            ({"seed": 1}, "seed must be 0 as in the saved state, got 1"),
        ],
    )
    def test_state_of_another_sampler(self, changed, message):
        arguments = {"labels": uneven(), "classes_per_batch": 3, "samples_per_class": 3, "batches": 5}
        saved = ClassBalancedSampler(**{**arguments, "samples_per_class": 4}).state_dict()
        other = {**arguments, "samples_per_class": 4, **changed}
        if "labels" in changed:
            other["replacement"] = True
        with pytest.raises(ValueError, match="ClassBalancedSampler: " + message):
            ClassBalancedSampler(**other).load_state_dict(saved)
