"""The coding rates, and their formula from eigenvalues and an explicit inverse."""

from __future__ import annotations

import numpy as np

from dmlkernels import functional as F
from dmlkernels.testing import assert_matches

RATES = {
    "total": lambda x, y: F.coding_rate(x),
    "gain": lambda x, y: F.coding_rate(x, gain=3.0, eps_squared=0.2),
    "official": lambda x, y: F.coding_rate(x, scale="official_proxy", gain=2.0),
    "raw": lambda x, y: F.coding_rate(x, eps_squared=2.0, normalize=False),
    "class": lambda x, y: F.class_coding_rate(x, y),
    "class_raw": lambda x, y: F.class_coding_rate(x, y, eps_squared=2.0, normalize=False),
    "reduction": lambda x, y: F.coding_rate_reduction(x, y, gain=1.5),
    "exponential": lambda x, y: F.anti_collapse_loss(x, form="exp_neg_rate", rate_weight=0.02),
}
RAW = ("raw", "class_raw")


def rate(name, labels):
    return lambda x: RATES[name](x, labels)


def unit_rows(x, normalize):
    norm = np.sqrt((x * x).sum(1, keepdims=True))
    return np.divide(x, norm, out=np.zeros_like(x), where=norm > 0) if normalize else x


def by_formula(x, a, normalize):
    """½ logdet(I + a Z Zᵀ) and its gradient in x, from the eigenvalues and an explicit inverse."""
    z = unit_rows(x, normalize)
    primal = np.eye(len(z)) + a * z @ z.T
    grad = a * np.linalg.inv(primal) @ z
    if normalize:
        norm = np.sqrt((x * x).sum(1, keepdims=True))
        grad = np.divide(grad - (grad * z).sum(1, keepdims=True) * z, norm, out=np.zeros_like(x), where=norm > 0)
    return 0.5 * np.log(np.linalg.eigvalsh(primal)).sum(), grad


def match(name, pairs, **rule):
    rule = {"normalize": name not in RAW, "max_quiet": 1.0, **rule}
    return assert_matches(rate(name, pairs.labels), [pairs.embeddings], **rule)
