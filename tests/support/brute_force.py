"""The definitions as loops over float64 numbers, written from the formulae and sharing nothing with the package.

The references are judged against these on a dozen rows, and the kernels against the references on hundreds.
"""

from __future__ import annotations

import math

import numpy as np

PML_EPS = 1e-5


class Problem:
    """Unit rows, distances and who may pair with whom."""

    def __init__(self, x, y, g=None, h=None, *, ids=None, ref_ids=None, ignore_index=None, normalize=True):
        self.x, self.y = np.asarray(x, np.float64), [int(v) for v in y]
        self.self_mode = g is None
        self.g = self.x if g is None else np.asarray(g, np.float64)
        self.h = self.y if h is None else [int(v) for v in h]
        self.ids = None if ids is None else [int(v) for v in ids]
        self.ref_ids = self.ids if ref_ids is None else [int(v) for v in ref_ids]
        self.ignore, self.normalize = ignore_index, normalize
        self.f, self.e = self._unit(self.x), self._unit(self.g)
        self.d = [[math.dist(a, b) for b in self.e] for a in self.f]

    def _unit(self, rows):
        if not self.normalize:
            return rows
        return np.array([r / math.sqrt(sum(v * v for v in r)) if any(r) else r for r in rows]).reshape(rows.shape)

    def allowed(self, i, j):
        if self.self_mode and i == j:
            return False
        if self.ignore is not None and self.ignore in (self.y[i], self.h[j]):
            return False
        return self.ids is None or self.ids[i] != self.ref_ids[j]

    def positives(self, i):
        return [j for j in range(len(self.h)) if self.allowed(i, j) and self.h[j] == self.y[i]]

    def negatives(self, i):
        return [j for j in range(len(self.h)) if self.allowed(i, j) and self.h[j] != self.y[i]]

    def nearest(self, i, candidates):
        return min(candidates, key=lambda j: (self.d[i][j], j), default=-1)

    def farthest(self, i, candidates):
        return min(candidates, key=lambda j: (-self.d[i][j], j), default=-1)

    def scatter(self, coefficients, both_ends=True):
        """Gradients of x and g from c[i, j] = ∂L/∂d_ij, by the chain rule written out."""
        to_f, to_e = np.zeros_like(self.f), np.zeros_like(self.e)
        for (i, j), c in coefficients.items():
            if self.d[i][j] <= 1e-14:
                continue
            direction = (self.f[i] - self.e[j]) / self.d[i][j]
            to_f[i] += c * direction
            if both_ends:
                to_e[j] -= c * direction
        if self.self_mode:
            return self._through_normalisation(to_f + to_e, self.x, self.f), None
        return self._through_normalisation(to_f, self.x, self.f), self._through_normalisation(to_e, self.g, self.e)

    def _through_normalisation(self, grads, rows, units):
        if not self.normalize:
            return grads
        out = np.zeros_like(grads)
        for k, (p, row, unit) in enumerate(zip(grads, rows, units, strict=True)):
            length = math.sqrt(sum(v * v for v in row))
            if length > 0:
                out[k] = (p - (p @ unit) * unit) / length
        return out


def ranked_list(
    p: Problem,
    incoming,
    *,
    alpha,
    margin,
    pos_temperature=0.0,
    neg_temperature=10.0,
    pos_weight=0.5,
    neg_weight=0.5,
    weight_grad=False,
    grad="full",
    positive="all",
    eps_mode="none",
):
    """Losses (M,), gradients of x and g for the incoming gradient, sizes and summed distances of the two sets."""
    losses, coefficients = [], {}
    totals = {"count_pos": 0, "count_neg": 0, "dist_pos": 0.0, "dist_neg": 0.0}
    kept = sum(p.ignore is None or label != p.ignore for label in p.h)
    for i in range(len(p.y)):
        candidates = p.positives(i)
        if positive == "easy":
            candidates = [p.nearest(i, candidates)] if candidates else []
        total = 0.0
        for side, members, sign, temperature, share in (
            ("pos", [j for j in candidates if p.d[i][j] > alpha - margin], 1.0, pos_temperature, pos_weight),
            ("neg", [j for j in p.negatives(i) if p.d[i][j] < alpha], -1.0, neg_temperature, neg_weight),
        ):
            if eps_mode == "pml":
                members = [j for j in members if p.d[i][j] > 0]
            boundary = alpha - margin if side == "pos" else alpha
            violation = {j: sign * (p.d[i][j] - boundary) for j in members}
            raw = {j: math.exp(temperature * v) for j, v in violation.items()}
            denominator = sum(raw.values()) + (PML_EPS * kept if eps_mode == "pml" else 0.0)
            weight = {j: r / denominator for j, r in raw.items()}
            loss = sum(weight[j] * violation[j] for j in members)
            for j in members:
                slope = 1 + temperature * (violation[j] - loss) if weight_grad else 1.0
                coefficients[i, j] = sign * incoming[i] * share * weight[j] * slope
            total += share * loss
            totals[f"count_{side}"] += len(members)
            totals[f"dist_{side}"] += sum(p.d[i][j] for j in members)
        losses.append(total)
    return (losses, *p.scatter(coefficients, grad == "full"), totals)


def mine(p: Problem, positive="easy", negative="hard"):
    """(pos_distance, pos_index, neg_distance, neg_index) as lists."""
    chosen = []
    for i in range(len(p.y)):
        pos = (p.nearest if positive == "easy" else p.farthest)(i, p.positives(i))
        pos_distance = p.d[i][pos] if pos >= 0 else math.inf
        candidates = p.negatives(i)
        if negative == "semihard":
            candidates = [j for j in candidates if p.d[i][j] > pos_distance]
        neg = p.nearest(i, candidates)
        chosen.append((pos_distance, pos, p.d[i][neg] if neg >= 0 else math.inf, neg))
    return tuple(list(column) for column in zip(*chosen)) if chosen else ([], [], [], [])


def triplets(p: Problem, positive="easy", negative="hard"):
    """Every (anchor, positive, negative) that the words choose."""
    found = []
    for i in range(len(p.y)):
        pos = p.positives(i)
        if positive != "all":
            pos = [(p.nearest if positive == "easy" else p.farthest)(i, pos)] if pos else []
        for j in pos:
            neg = p.negatives(i)
            if negative == "semihard":
                neg = [k for k in neg if p.d[i][k] > p.d[i][j]]
            if negative != "all":
                neg = [p.nearest(i, neg)] if neg else []
            found += [(i, j, k) for k in neg]
    return found


def triplet_loss(p: Problem, listed, margin, soft=False, swap=False, reduction="nonzero_mean"):
    terms = []
    for a, b, c in listed:
        far = p.d[a][c]
        if swap:
            far = min(far, math.dist(p.e[b], p.e[c]))
        violation = p.d[a][b] - far + margin
        terms.append(math.log1p(math.exp(violation)) if soft else max(violation, 0.0))
    if reduction == "sum":
        return math.fsum(terms)
    count = sum(t != 0 for t in terms) if reduction == "nonzero_mean" else len(terms)
    return math.fsum(terms) / max(count, 1)


def distance_weighted(p: Problem, uniforms, cutoff, far):
    """Drawn negatives of each query, one for each of its uniforms, -1 where there is no candidate."""
    width, drawn = len(p.f[0]), []
    for i, row in enumerate(uniforms):
        weights = {}
        for j in (j for j in p.negatives(i) if p.d[i][j] < far):
            d = max(p.d[i][j], cutoff)
            weights[j] = d ** (2 - width) * (1 - d * d / 4) ** ((3 - width) / 2)
        found = []
        for u in row:
            left, chosen = u * math.fsum(weights.values()), -1
            for j, w in weights.items():
                chosen, left = j, left - w
                if left < 0:
                    break
            found.append(chosen)
        drawn.append(found)
    return drawn
