"""Contrastive and margin loss as loops over float64 numbers: value, and its derivative by the value of every pair."""

from __future__ import annotations

import math

import numpy as np
from support.brute_force import Problem


def similarity(p: Problem, i: int, j: int) -> float:
    return math.fsum(a * b for a, b in zip(p.f[i], p.e[j], strict=True))


def scatter(p: Problem, slopes: dict, metric: str = "euclidean"):
    """Gradients of x and g from ∂L/∂v_ij of distances or similarities."""
    if metric == "euclidean":
        return p.scatter(slopes)
    to_f, to_e = np.zeros_like(p.f), np.zeros_like(p.e)
    for (i, j), c in slopes.items():
        to_f[i] += c * p.e[j]
        to_e[j] += c * p.f[i]
    if p.self_mode:
        return p._through_normalisation(to_f + to_e, p.x, p.f), None
    return p._through_normalisation(to_f, p.x, p.f), p._through_normalisation(to_e, p.g, p.e)


def chosen_positives(p: Problem, i: int, positive: str) -> list[int]:
    found = p.positives(i)
    return [p.nearest(i, found)] if positive == "easy" and found else found


def contrastive(p: Problem, incoming, *, pos_margin=0.0, neg_margin=1.0, metric="euclidean", positive="all", reduction):
    """Value, or values of the queries for "none"; slopes for an incoming gradient (of each query for "none")."""
    sign = 1 if metric == "euclidean" else -1
    sides = []
    for margin, direction in ((pos_margin, sign), (neg_margin, -sign)):
        costs = {}
        for i in range(len(p.y)):
            for j in chosen_positives(p, i, positive) if direction == sign else p.negatives(i):
                v = p.d[i][j] if metric == "euclidean" else similarity(p, i, j)
                costs[i, j] = direction * max(direction * (v - margin), 0.0), direction
        sides.append(costs)
    if reduction == "none":
        rows = [0.0] * len(p.y)
        for costs in sides:
            for (i, _), (cost, direction) in costs.items():
                rows[i] += direction * cost
        return rows, {pair: incoming[pair[0]] * s for costs in sides for pair, (c, s) in costs.items() if c != 0}
    total, slopes = 0.0, {}
    for costs in sides:
        size = {"sum": 1, "mean": len(costs), "nonzero_mean": sum(c != 0 for c, _ in costs.values())}[reduction]
        total += math.fsum(s * c for c, s in costs.values()) / max(size, 1)
        slopes.update({pair: incoming * s / max(size, 1) for pair, (c, s) in costs.items() if c != 0})
    return total, slopes


def margin(p: Problem, beta, *, delta=0.2, nu=0.0, per_class=False, positive="all", count="triplets", drawn=None):
    """Value, slopes of pairs, ∂L/∂β of each query, and how many positives and negatives cost something.

    Args:
        beta: of each query.
        drawn: negatives of each query, one for each positive, instead of all.
    """
    costs, size, triplets, active = [], 0, [], [0, 0]
    for i, boundary in enumerate(beta):
        pos = chosen_positives(p, i, positive)
        neg = p.negatives(i) if drawn is None else drawn[i]
        if not pos or not neg:
            triplets.append(0)
            continue
        every = count == "triplets" and drawn is None
        triplets.append(len(pos) * len(neg) if every else len(pos))
        for members, direction, weight in ((pos, 1, len(neg) if every else 1), (neg, -1, len(pos) if every else 1)):
            for j in members:
                cost = delta + direction * (p.d[i][j] - boundary)
                if cost > 0:
                    costs.append((i, j, weight, direction, cost))
                    size += weight
                    active[direction < 0] += 1
    value = math.fsum(w * c for _, _, w, _, c in costs) / max(size, 1)
    slopes, to_beta = {}, [0.0] * len(beta)
    for i, j, w, direction, _ in costs:
        slopes[i, j] = slopes.get((i, j), 0.0) + direction * w / size
        to_beta[i] -= direction * w / size
    if per_class and size:
        value += nu * sum(t * b for t, b in zip(triplets, beta, strict=True)) / size
        to_beta = [g + nu * t / size for g, t in zip(to_beta, triplets, strict=True)]
    elif not per_class and any(triplets):
        value += nu * beta[0]
        to_beta[0] += nu
    return value, slopes, to_beta, active
