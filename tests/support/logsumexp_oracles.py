"""The losses made of log-sum-exps as loops over float64 numbers: value, and its derivative by every pair's value."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from support import hinge_oracles
from support.brute_force import Problem
from support.hinge_oracles import chosen_positives, similarity

Slopes = dict[int, float]  # ∂cost/∂v_ij of one query
Row = tuple[float, Slopes]


def _add(slopes: Slopes, j: int, slope: float) -> None:
    slopes[j] = slopes.get(j, 0.0) + slope


def _log_sum(scores: dict[int, float], slopes: dict[int, float]) -> Row:
    """log Σ e^score, and its derivatives, from those of the scores."""
    total = math.fsum(math.exp(s) for s in scores.values())
    return math.log(total), {j: slopes[j] * math.exp(s) / total for j, s in scores.items()}


def multi_similarity(p: Problem, *, alpha=2.0, beta=50.0, base=0.5, epsilon=None, positive="all"):
    rows, size = [], 0
    for i in range(len(p.y)):
        pos, neg = chosen_positives(p, i, positive), p.negatives(i)
        s = {j: similarity(p, i, j) for j in [*pos, *neg]}
        if p.ignore is not None and p.y[i] == p.ignore:
            rows.append((0.0, {}))
            continue
        size += 1 if positive == "all" or pos else 0
        if epsilon is not None:
            least, largest = min((s[j] for j in pos), default=math.inf), max((s[j] for j in neg), default=-math.inf)
            neg = [j for j in neg if s[j] + epsilon > least]
            pos = pos if positive == "easy" else [j for j in pos if s[j] - epsilon < largest]
        if positive == "easy" and not pos:
            rows.append((0.0, {}))
            continue
        cost, slopes = 0.0, {}
        for members, scale in ((pos, -alpha), (neg, beta)):
            terms = {j: math.exp(scale * (s[j] - base)) for j in members}
            total = 1 + math.fsum(terms.values())
            cost += math.log(total) / abs(scale)
            for j, term in terms.items():
                _add(slopes, j, math.copysign(term / total, scale))
        rows.append((cost, slopes))
    return rows, size, "cosine"


def ntxent(p: Problem, *, temperature=0.07, positive="all"):
    rows, size = [], 0
    for i in range(len(p.y)):
        cost, slopes = 0.0, {}
        for j in chosen_positives(p, i, positive):
            size += 1
            terms = {n: math.exp((similarity(p, i, n) - similarity(p, i, j)) / temperature) for n in p.negatives(i)}
            total = 1 + math.fsum(terms.values())
            cost += math.log1p(math.fsum(terms.values()))
            _add(slopes, j, -(1 - 1 / total) / temperature)
            for n, term in terms.items():
                _add(slopes, n, term / total / temperature)
        rows.append((cost, slopes))
    return rows, size, "cosine"


def supcon(p: Problem, *, temperature=0.1, positive="all"):
    chosen = [chosen_positives(p, i, positive) for i in range(len(p.y))]
    if not any(chosen) or not any(p.negatives(i) for i in range(len(p.y))):
        return [(0.0, {})] * len(p.y), 0, "cosine"
    rows = []
    for i, pos in enumerate(chosen):
        if not pos:
            rows.append((0.0, {}))
            continue
        scores = {j: similarity(p, i, j) / temperature for j in [*pos, *p.negatives(i)]}
        cost, slopes = _log_sum(scores, dict.fromkeys(scores, 1 / temperature))
        if len(scores) == 1:
            rows.append((0.0, {}))
            continue
        for j in pos:
            cost -= scores[j] / len(pos)
            slopes[j] -= 1 / (temperature * len(pos))
        rows.append((cost, slopes))
    return rows, sum(cost > 0 for cost, _ in rows), "cosine"


def circle(p: Problem, *, m=0.4, gamma=80.0, positive="all"):
    rows = []
    for i in range(len(p.y)):
        pos, neg = chosen_positives(p, i, positive), p.negatives(i)
        if not pos or not neg:
            rows.append((0.0, {}))
            continue
        sides = []
        for members, optimum, boundary, sign in ((pos, 1 + m, 1 - m, -1), (neg, -m, m, 1)):
            s = {j: similarity(p, i, j) for j in members}
            factor = {j: sign * gamma * max(sign * (v - optimum), 0) for j, v in s.items()}
            sides.append(_log_sum({j: factor[j] * (v - boundary) for j, v in s.items()}, factor))
        x = sides[0][0] + sides[1][0]
        share = 1 / (1 + math.exp(-x))
        rows.append(
            (max(x, 0) + math.log1p(math.exp(-abs(x))), {j: share * c for _, side in sides for j, c in side.items()})
        )
    return rows, sum(cost > 0 for cost, _ in rows), "cosine"


def lifted(p: Problem, *, neg_margin=1.0, pos_margin=0.0, positive="all"):
    rows, size = [], 0
    for i in range(len(p.y)):
        if p.ignore is not None and p.y[i] == p.ignore:
            rows.append((0.0, {}))
            continue
        pos, total, slopes = chosen_positives(p, i, positive), 0.0, {}
        if positive == "easy" and not pos:
            rows.append((0.0, {}))
            continue
        size += 1
        for members, sign, margin in ((pos, 1, pos_margin), (p.negatives(i), -1, neg_margin)):
            if members:
                scores = {j: sign * (p.d[i][j] - margin) for j in members}
                value, side = _log_sum(scores, dict.fromkeys(scores, float(sign)))
                total += value
                slopes.update(side)
        rows.append((total, slopes) if total > 0 else (0.0, {}))
    return rows, size, "euclidean"


def nca(p: Problem, *, temperature=0.1, positive="easy", negative="all"):
    rows, size = [], 0
    for i in range(len(p.y)):
        pos, neg = chosen_positives(p, i, positive), p.negatives(i)
        if negative == "hard":
            neg = [p.nearest(i, neg)] if neg else []
        elif negative == "semihard":
            neg = [j for j in neg if pos and p.d[i][j] > p.d[i][pos[0]]]
            neg = [p.nearest(i, neg)] if neg else []
        if not pos or (negative != "all" and not neg):
            rows.append((0.0, {}))
            continue
        size += 1
        factor = -1 / (2 * temperature)
        scores = {j: factor * p.d[i][j] ** 2 for j in [*pos, *neg]}
        slopes = {j: factor * 2 * p.d[i][j] for j in scores}
        near, by_near = _log_sum({j: scores[j] for j in pos}, slopes)
        everything, by_all = _log_sum(scores, slopes)
        if not neg:
            everything, by_all = near, by_near
        rows.append((everything - near, {j: by_all[j] - by_near.get(j, 0.0) for j in scores}))
    return rows, size, "euclidean"


def value_and_gradients(p: Problem, oracle: Callable, **options) -> tuple[float, list[np.ndarray]]:
    """The loss, and its gradients by x and, with a gallery, by g."""
    rows, size, metric = oracle(p, **options)
    slopes = {(i, j): c / max(size, 1) for i, (_, row) in enumerate(rows) for j, c in row.items()}
    grads = hinge_oracles.scatter(p, slopes, metric)
    return math.fsum(cost for cost, _ in rows) / max(size, 1), [g for g in grads if g is not None]
