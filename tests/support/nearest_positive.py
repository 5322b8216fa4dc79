"""What nearest_positive and mine select, and the check of a selection."""

from __future__ import annotations

import torch
from support.pairs import tensors

from dmlkernels import functional as F
from dmlkernels import use_backend
from dmlkernels.reference.pairwise import compute_dtype
from dmlkernels.testing import (
    BAND,
    assert_matches,
)

CHOICES = {
    "nearest": None,
    "easy_hard": ("easy", "hard"),
    "easy_semihard": ("easy", "semihard"),
    "hard_hard": ("hard", "hard"),
    "hard_semihard": ("hard", "semihard"),
}


def select(choice, pairs, *rows, **options):
    """distance (L, M) and index (L, M) of the L = 1 or 2 lists that a choice selects."""
    x, g = (*rows, None)[:2] if rows else (pairs.embeddings, pairs.ref_emb)
    if CHOICES[choice] is None:
        found = F.nearest_positive(x, pairs.labels, g, pairs.ref_labels, **options)
        return found.distance[None], found.index[None]
    positive, negative = CHOICES[choice]
    found = F.mine(x, pairs.labels, g, pairs.ref_labels, positive=positive, negative=negative, **options)
    return torch.stack(found[::2]), torch.stack(found[1::2])


def distances(choice, pairs, **options):
    """Distances as a function of the embeddings, and of the gallery if there is one."""
    return lambda *rows: select(choice, pairs, *rows, **options)[0].flatten()


def masks(pairs, ids=None, ref_ids=None, ignore_index=None):
    """(M, N) positives and negatives."""
    y, h = pairs.labels.long(), (pairs.labels if pairs.ref_labels is None else pairs.ref_labels).long()
    allowed = torch.ones(len(y), len(h), dtype=torch.bool, device=y.device)
    if pairs.ref_emb is None:
        allowed.fill_diagonal_(False)
    if ids is not None:
        allowed &= ids[:, None] != (ids if ref_ids is None else ref_ids)[None, :]
    if ignore_index is not None:
        allowed &= (y != ignore_index)[:, None] & (h != ignore_index)[None, :]
    same = y[:, None] == h[None, :]
    return allowed & same, allowed & ~same


def exact_distances(pairs, normalize=True):
    with use_backend("reference"):
        rows = [t.double() for t in tensors(pairs)]
        return F.pairwise_distance(*rows, normalize=normalize)


def check_selection(choice, pairs, normalize=True, **options):
    """Each chosen row is a best one up to rounding, and nothing is chosen exactly where there is no candidate."""
    _, index = select(choice, pairs, normalize=normalize, **options)
    d = exact_distances(pairs, normalize)
    band = BAND * torch.finfo(compute_dtype(pairs.embeddings.dtype)).eps * d.max().clamp_min(1)
    positive, negative = masks(pairs, **options)
    words = CHOICES[choice] or ("easy", None)
    for row, (word, mask) in enumerate(zip(words, (positive, negative), strict=True)):
        if word is None:
            continue
        chosen = d.gather(1, index[row].clamp_min(0)[:, None])
        some = index[row] >= 0
        assert bool(mask.gather(1, index[row].clamp_min(0)[:, None])[some].all())
        certain = mask
        if word == "semihard":
            of_positive = torch.where(index[0] >= 0, d.gather(1, index[0].clamp_min(0)[:, None])[:, 0], torch.inf)
            assert bool((chosen[:, 0] > of_positive - band)[some].all())
            certain = mask & (d > of_positive[:, None] + band)
            assert torch.equal(some | certain.any(1), some)
        else:
            assert torch.equal(some, mask.any(1))
        better = d > chosen + band if (word, row) == ("hard", 0) else d < chosen - band
        assert not bool((better & certain)[some].any())
    return index


def match(choice, pairs, normalize=True, ids=None, ref_ids=None, ignore_index=None, **rule):
    """The selection is right, and distances and gradients are those of the chosen pairs."""
    options = {"ids": ids, "ref_ids": ref_ids, "ignore_index": ignore_index}
    index = check_selection(choice, pairs, normalize, **options)

    def listed(*rows):
        d = F.pairwise_distance(*(r.to(compute_dtype(r.dtype)) for r in rows), normalize=normalize)
        chosen = d.gather(1, index.clamp_min(0).T).T
        return torch.where(index >= 0, chosen, torch.inf).flatten()

    function = distances(choice, pairs, normalize=normalize, **options)
    return assert_matches(function, tensors(pairs), reference=listed, normalize=normalize, **rule)
