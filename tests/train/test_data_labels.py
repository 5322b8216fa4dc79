"""Merging classes to coarser labels."""

from itertools import chain

import pytest
import torch

from dmlkernels.data import merge_classes


class TestMergeClasses:
    labels = torch.tensor([7, 3, 3, 9, -1, 7, 20, 9, 20, 31, 31])

    @pytest.mark.parametrize("group, merged", [(2, 3), (3, 2), (4, 2), (6, 1), (50, 1)])
    def test_merges_whole_classes(self, group, merged):
        coarse = merge_classes(self.labels, group, seed=0)
        assert coarse.dtype == torch.int64
        assert coarse.unique().tolist() == list(range(merged))
        members = [self.labels[coarse == cls].unique().tolist() for cls in range(merged)]
        assert sorted(chain(*members)) == self.labels.unique().tolist()
        assert all(len(classes) == group for classes in members[:-1])
        assert len(members[-1]) <= group

    def test_group_of_one_changes_nothing(self):
        assert torch.equal(merge_classes(self.labels, 1, seed=0), self.labels)

    def test_seed(self):
        labels = torch.arange(100)
        assert torch.equal(merge_classes(labels, 4, 3), merge_classes(labels, 4, 3))
        assert not torch.equal(merge_classes(labels, 4, 3), merge_classes(labels, 4, 4))

    def test_at_random(self):
        assert not torch.equal(merge_classes(torch.arange(100), 4, 0), torch.arange(100) // 4)

    @pytest.mark.parametrize("group", [0, -2])
    def test_group_below_one(self, group):
        with pytest.raises(ValueError, match=f"merge_classes: group must be at least 1, got {group}"):
            merge_classes(self.labels, group, 0)
