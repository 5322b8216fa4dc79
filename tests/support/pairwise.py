"""The pairwise functions, and rows for them."""

from __future__ import annotations

import torch

from dmlkernels import functional as F
from dmlkernels.testing import assert_matches, make_pairs

FUNCTIONS = {
    "cosine": (F.pairwise_similarity, {}),
    "dot": (F.pairwise_similarity, {"metric": "dot"}),
    "euclidean": (F.pairwise_distance, {}),
    "squared": (F.pairwise_distance, {"squared": True}),
    "unit_euclidean": (F.pairwise_distance, {"normalize": True}),
    "unit_squared": (F.pairwise_distance, {"normalize": True, "squared": True}),
}
NORMALIZED = ("cosine", "unit_euclidean", "unit_squared")


def bound(name):
    function, options = FUNCTIONS[name]
    return lambda x, y=None: function(x, y, **options)


def rows(kind, m, n, d, dtype=torch.float32, seed=0, device="cpu"):
    pairs = make_pairs(kind, m, n, d, dtype=dtype, seed=seed, device=device)
    return [t for t in (pairs.embeddings, pairs.ref_emb) if t is not None]


def match(name, tensors, **rule):
    """With the magnitude of the values: the largest norm (squared for products), 1 for unit rows."""
    size = max([float(torch.linalg.vector_norm(t.double(), dim=1).max()) for t in tensors if t.numel()], default=1.0)
    scale = 1.0 if name in NORMALIZED else size if name == "euclidean" else size**2
    # A few hundred products are summed into a gradient row: magnitudes of the values are those of its terms.
    return assert_matches(bound(name), tensors, scale=max(scale, 1.0), normalize=name in NORMALIZED, **rule)
