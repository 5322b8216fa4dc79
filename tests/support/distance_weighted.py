"""Draws of negatives, and the check of them against the float64 distribution."""

from __future__ import annotations

import torch

from dmlkernels import _checks, use_backend
from dmlkernels.ops.distance_weighted import sample_negatives
from dmlkernels.reference import distance_weighted as reference
from dmlkernels.reference.pairwise import compute_dtype
from dmlkernels.testing import EAGER, PER_ROW, SHAKE, shaken

CUTOFF, FAR = 0.5, 1.4


def grid(rows, samples, seed=0):
    """(rows, samples) float64 uniforms, one in each of as many equal parts of [0, 1), in a random order."""
    generator = torch.Generator().manual_seed(seed)
    inside = torch.rand(rows, samples, dtype=torch.float64, generator=generator)
    u = (torch.arange(samples) + inside) / samples
    return u[:, torch.randperm(samples, generator=generator)]


def inputs_of(pairs, **options):
    return _checks.pair_inputs("margin_loss", *pairs, **options)


def draw(pairs, u, cutoff=CUTOFF, far=FAR, **options):
    return sample_negatives("margin_loss", inputs_of(pairs, **options), u.to(pairs.labels.device), cutoff, far)


def steps(pairs, cutoff=CUTOFF, far=FAR, **options):
    """(M, N) cumulative probabilities, of the reference in the pairs' dtype; (M,) whether there is a candidate."""
    with use_backend("reference"):
        w = reference.weights(inputs_of(pairs, **options), cutoff, far).double()
    cumulative = w.cumsum(1)
    total = cumulative[:, -1:]
    return torch.where(total > 0, cumulative / total, 0), total[:, 0] > 0


def moved(pairs, tensors):
    x, *g = tensors
    return pairs._replace(embeddings=x, ref_emb=g[0] if g else None)


def check(pairs, u, cutoff=CUTOFF, far=FAR, **options):
    """u lies in the step of the row that was drawn, up to what rounding moves a step by; returns the indices."""
    options |= {"cutoff": cutoff, "far": far}
    index, u = draw(pairs, u, **options), u.to(pairs.labels.device)
    tensors = [t for t in (pairs.embeddings, pairs.ref_emb) if t is not None]
    truth, some = steps(moved(pairs, [t.double() for t in tensors]), **options)
    eager, _ = steps(pairs, **options)
    shifts = [(steps(moved(pairs, shaken(tensors, seed)), **options)[0] - truth).abs().amax(1) for seed in (0, 1)]
    eps = torch.finfo(compute_dtype(pairs.embeddings.dtype)).eps
    band = EAGER * (eager - truth).abs().amax(1) + SHAKE * torch.stack(shifts).amax(0) + 64 * eps
    # Weights that are off by a share move a step by half of it at most: d^(2-D) by D - 2 times what d is off by. Where
    # the cutoff is smaller than 0.05, no pair of a test is nearer than that.
    band += PER_ROW * eps / torch.finfo(torch.float32).eps * pairs.embeddings.shape[1] / max(cutoff, 0.05) / 2
    assert float(band.max()) <= 0.01
    assert index.shape == u.shape
    assert index.dtype == torch.int64
    assert torch.equal(index >= 0, some[:, None].expand_as(index))
    chosen = index.clamp_min(0)
    upper, lower = truth.gather(1, chosen), torch.where(chosen > 0, truth.gather(1, (chosen - 1).clamp_min(0)), 0)
    near = (u >= lower - band[:, None]) & (u < upper + band[:, None])
    assert bool(near[some].all())
    return index
