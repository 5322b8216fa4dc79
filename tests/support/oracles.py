"""Each loss as its formula, row by row in float64: independent of the package, which is judged by it.

An oracle has the name of its row in `dmlkernels._losses.TABLE`, and takes every option of the loss. Only its value is
written down: the gradient is that of the formula, and what the papers hold constant is detached.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Batch(NamedTuple):
    x: Tensor  # (M, D) float64
    y: Tensor
    g: Tensor | None = None  # (N, D)
    h: Tensor | None = None
    ids: Tensor | None = None
    ref_ids: Tensor | None = None


class Pairs:
    """Similarities and distances of a batch, and who may pair with whom."""

    def __init__(self, batch: Batch, normalize=True, ignore_index=None, check_finite=False, query_only=False):
        x, y, g, h, ids, ref_ids = batch
        f = unit(x) if normalize else x
        e = f if g is None else unit(g) if normalize else g
        e = e.detach() if query_only else e
        self.s = torch.stack([torch.stack([a.dot(b) for b in e]) for a in f])
        self.d = torch.stack([torch.stack([length(a - b) for b in e]) for a in f])
        self.y, self.h = y.tolist(), (y if h is None else h).tolist()
        self.ids = None if ids is None else (ids.tolist(), (ids if ref_ids is None else ref_ids).tolist())
        self.own, self.ignored = g is None, ignore_index

    def queries(self) -> list[int]:
        return [i for i, label in enumerate(self.y) if label != self.ignored]

    def of(self, i: int, same: bool) -> list[int]:
        excluded = {j for j, label in enumerate(self.h) if label == self.ignored} | ({i} if self.own else set())
        if self.ids is not None:
            excluded |= {j for j, other in enumerate(self.ids[1]) if other == self.ids[0][i]}
        return [j for j, label in enumerate(self.h) if (label == self.y[i]) == same and j not in excluded]

    def positives(self, i: int, word: str = "all") -> list[int]:
        return self.chosen(i, self.of(i, True), word)

    def negatives(self, i: int) -> list[int]:
        return self.of(i, False)

    def chosen(self, i: int, found: list[int], word: str) -> list[int]:
        """The nearest of those found ("easy" of positives, "hard" of negatives), the farthest, or all."""
        if word == "all" or not found:
            return found
        pick = max if word == "farthest" else min
        return [pick(found, key=lambda j: float(self.d[i, j]))]


def unit(rows: Tensor) -> Tensor:
    return torch.stack([row / length(row) for row in rows])


def length(row: Tensor) -> Tensor:
    squared = row.dot(row)
    return squared.sqrt() if squared > 0 else squared * 0


def log_sum(terms: Tensor) -> Tensor:
    return terms.logsumexp(0)


def log1p_exp(x: Tensor) -> Tensor:
    return torch.logaddexp(x, torch.zeros_like(x))


def hinge(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, 0)


def mean(terms: list[Tensor], count: int, like: Tensor) -> Tensor:
    return sum(terms, like.sum() * 0) / max(count, 1)


def nonzero_mean(terms: list[Tensor], like: Tensor) -> Tensor:
    return mean(terms, sum(float(t) != 0 for t in terms), like)


def ranked_list(
    batch, *, alpha, margin, pos_temperature, neg_temperature, neg_weight, form, weight_grad, grad, positive, eps_mode,
    reduction, **rows,
):  # fmt: skip
    p = Pairs(batch, query_only=grad == "query", **rows)
    alpha = 1 + margin / 2 if alpha is None else alpha
    share = {"tpami": 0.5, "cvpr": 1.0}[form] if neg_weight is None else neg_weight
    kept = sum(label != p.ignored for label in p.h)
    losses, weights = [batch.x.sum() * 0 for _ in p.y], [0.0] * len(p.y)
    for i in p.queries():
        for factor, members, sign, boundary, temperature in (
            (1 - share if form == "tpami" else 1.0, p.positives(i, positive), 1, alpha - margin, pos_temperature),
            (share, p.negatives(i), -1, alpha, neg_temperature),
        ):
            inside = [j for j in members if sign * (p.d[i, j] - boundary) > 0 and (eps_mode == "none" or p.d[i, j] > 0)]
            if inside:
                v = sign * (p.d[i, inside] - boundary)
                w = (temperature * v).exp()
                weights[i] += float(w.sum())
                w = w / (w.sum() + (1e-5 * kept if eps_mode == "pml" else 0))
                losses[i] = losses[i] + factor * ((w if weight_grad else w.detach()) * v).sum()
    if reduction == "none":
        return torch.stack(losses)
    if reduction == "share":
        return sum(loss * w for loss, w in zip(losses, weights)) / (sum(weights) or 1.0)
    return mean(losses, 1 if reduction == "sum" else len(p.queries()), batch.x)


def contrastive(batch, *, pos_margin, neg_margin, metric, positive, reduction, **rows):
    p = Pairs(batch, **rows)
    v, sign = (p.d, 1) if metric == "euclidean" else (p.s, -1)
    nothing = batch.x.sum() * 0
    pos = [[hinge(sign * (v[i, j] - pos_margin)) for j in p.positives(i, positive)] for i in range(len(p.y))]
    neg = [[hinge(sign * (neg_margin - v[i, j])) for j in p.negatives(i)] for i in range(len(p.y))]
    skip = [label == p.ignored for label in p.y]
    pos, neg = ([[] if out else row for row, out in zip(side, skip)] for side in (pos, neg))
    if reduction == "none":
        return torch.stack([sum(a + b, nothing) for a, b in zip(pos, neg)])
    pos, neg = ([cost for row in side for cost in row] for side in (pos, neg))
    if reduction == "nonzero_mean":
        return nonzero_mean(pos, batch.x) + nonzero_mean(neg, batch.x)
    return sum(mean(side, 1 if reduction == "sum" else len(side), batch.x) for side in (pos, neg))


def margin(
    batch, beta, *, margin, nu, learn_beta, positive, negative, count, cutoff, nonzero_loss_cutoff,
    num_classes=None, generator=None, **rows,
):  # fmt: skip
    p = Pairs(batch, **rows)
    nothing = batch.x.sum() * 0
    drawn = negative == "distance_weighted"
    count = "pairs" if drawn else count or ("pairs" if positive == "easy" else "triplets")
    most = max([len(p.positives(i, positive)) for i in p.queries()], default=0)
    uniforms = torch.rand(len(p.y), most, dtype=torch.float64) if drawn else None
    total, size, triplets, their_beta = nothing, 0.0, 0, nothing
    for i in p.queries():
        b = beta if not isinstance(beta, Tensor) else beta[p.y[i] if len(beta) > 1 else 0]
        pos, neg = p.positives(i, positive), p.negatives(i)
        if drawn:
            far = nonzero_loss_cutoff
            neg = [draw(p, i, float(u), cutoff, far, batch.x.shape[1]) for u in uniforms[i, : len(pos)]]
            neg = [j for j in neg if j is not None]
        if not pos or not neg:
            continue
        of_pos, of_neg = (len(neg), len(pos)) if count == "triplets" else (1, 1)
        for members, weight, sign in ((pos, of_pos, 1), (neg, of_neg, -1)):
            costs = [hinge(margin + sign * (p.d[i, j] - b)) for j in members]
            total = total + weight * sum(costs, nothing)
            size += weight * sum(float(c) > 0 for c in costs)
        their_beta = their_beta + len(pos) * of_pos * b
        triplets += len(pos) * of_pos
    loss = total / max(size, 1)
    if not learn_beta or not triplets:
        return loss
    return loss + nu * (their_beta / max(size, 1) if len(beta) > 1 else beta[0])


def draw(p: Pairs, i: int, u: float, cutoff: float, far: float, width: int) -> int | None:
    """The negative at u of the inverse CDF, as probable as its distance is rare among random directions."""
    weights = {}
    for j in p.negatives(i):
        if p.d[i, j] < far:
            d = max(float(p.d[i, j]), cutoff)
            weights[j] = math.exp(-(width - 2) * math.log(d) - (width - 3) / 2 * math.log(1 - d * d / 4))
    left = u * sum(weights.values())
    for j, weight in weights.items():
        left -= weight
        if left < 0:
            return j
    return max(weights, default=None)


def triplet(batch, *, margin, swap, positive, negative, soft, reduction, **rows):
    p = Pairs(batch, **rows)
    f = p
    if swap:
        gallery = batch if batch.g is None else Batch(batch.g, batch.h)
        f = Pairs(gallery, rows.get("normalize", True))
    terms = []
    for i in p.queries():
        for a in p.positives(i, {"easy": "nearest", "hard": "farthest", "all": "all"}[positive]):
            neg = p.negatives(i)
            if negative == "semihard":
                neg = [n for n in neg if p.d[i, n] > p.d[i, a]]
            for n in p.chosen(i, neg, "all" if negative == "all" else "nearest"):
                d_an = torch.minimum(p.d[i, n], f.d[a, n]) if swap else p.d[i, n]
                gap = p.d[i, a] - d_an + margin
                terms.append(log1p_exp(gap) if soft else hinge(gap))
    if reduction == "nonzero_mean":
        return nonzero_mean(terms, batch.x)
    return mean(terms, 1 if reduction == "sum" else len(terms), batch.x)


def multi_similarity(batch, *, alpha, beta, base, epsilon, positive, **rows):
    p = Pairs(batch, **rows)
    losses = []
    for i in p.queries():
        pos, neg = p.positives(i, positive), p.negatives(i)
        if positive == "easy" and not pos:
            continue
        if epsilon is not None:
            least = min([float(p.s[i, j]) for j in pos], default=math.inf)
            most = max([float(p.s[i, j]) for j in neg], default=-math.inf)
            neg = [j for j in neg if p.s[i, j] + epsilon > least]
            pos = pos if positive == "easy" else [j for j in pos if p.s[i, j] - epsilon < most]
        total = p.s.sum() * 0
        if pos:
            total = total + log1p_exp(log_sum(-alpha * (p.s[i, pos] - base))) / alpha
        if neg:
            total = total + log1p_exp(log_sum(beta * (p.s[i, neg] - base))) / beta
        losses.append(total)
    return mean(losses, len(losses), batch.x)


def ntxent(batch, *, temperature, positive, **rows):
    p = Pairs(batch, **rows)
    losses = []
    for i in p.queries():
        for j in p.positives(i, positive):
            s = p.s[i, [j, *p.negatives(i)]] / temperature
            losses.append(log_sum(s) - s[0])
    return mean(losses, len(losses), batch.x)


def supcon(batch, *, temperature, positive, **rows):
    p = Pairs(batch, **rows)
    losses = []
    for i in p.queries():
        pos = p.positives(i, positive)
        if pos:
            s = p.s[i, [*pos, *p.negatives(i)]] / temperature
            losses.append(log_sum(s) - s[: len(pos)].mean())
    return nonzero_mean(losses, batch.x)


def circle(batch, *, m, gamma, positive, **rows):
    p = Pairs(batch, **rows)
    losses = []
    for i in p.queries():
        pos, neg = p.positives(i, positive), p.negatives(i)
        if pos and neg:
            s_p, s_n = p.s[i, pos], p.s[i, neg]
            of_pos = log_sum(-gamma * hinge(1 + m - s_p).detach() * (s_p - 1 + m))
            of_neg = log_sum(gamma * hinge(s_n + m).detach() * (s_n - m))
            losses.append(log1p_exp(of_pos + of_neg))
    return nonzero_mean(losses, batch.x)


def lifted(batch, *, neg_margin, pos_margin, positive, **rows):
    p = Pairs(batch, **rows)
    losses = []
    for i in p.queries():
        pos, neg = p.positives(i, positive), p.negatives(i)
        if positive == "easy" and not pos:
            continue
        total = p.s.sum() * 0
        if pos:
            total = total + log_sum(p.d[i, pos] - pos_margin)
        if neg:
            total = total + log_sum(neg_margin - p.d[i, neg])
        losses.append(hinge(total))
    return mean(losses, len(losses), batch.x)


def nca(batch, *, softmax_scale, positive, negative, **rows):
    p = Pairs(batch, **rows)
    losses = []
    for i in p.queries():
        pos, neg = p.positives(i, positive), p.negatives(i)
        if negative == "semihard":
            neg = [j for j in neg if pos and p.d[i, j] > p.d[i, pos[0]]]
        neg = p.chosen(i, neg, "all" if negative == "all" else "nearest")
        if pos and (neg or negative == "all"):
            scores = -softmax_scale * p.d[i].square()
            losses.append(log_sum(scores[[*pos, *neg]]) - log_sum(scores[pos]))
    return mean(losses, len(losses), batch.x)


def _with_proxies(batch: Batch, proxies: Tensor, normalize: bool) -> tuple[Tensor, Tensor]:
    """Similarities and squared distances (M, C)."""
    p = Pairs(Batch(batch.x, batch.y, proxies, torch.arange(len(proxies))), normalize)
    return p.s, p.d.square()


def proxy_nca(batch, proxies, *, softmax_scale, normalize):
    scores = -softmax_scale * _with_proxies(batch, proxies, normalize)[1]
    losses = [log_sum(row) - row[label] for row, label in zip(scores, batch.y.tolist())]
    return mean(losses, len(losses), batch.x)


def proxy_anchor(batch, proxies, *, margin, alpha, normalize):
    s, _ = _with_proxies(batch, proxies, normalize)
    pulls, pushes = [], []
    for c in range(len(proxies)):
        own = batch.y == c
        if own.any():
            pulls.append(torch.log(1 + (-alpha * (s[own, c] - margin)).exp().sum()))
        pushes.append(torch.log(1 + (alpha * (s[~own, c] + margin)).exp().sum()))
    return mean(pulls, len(pulls), batch.x) + mean(pushes, len(pushes), batch.x)


def soft_triple(batch, centers, *, centers_per_class, la, gamma, margin, normalize):
    s, _ = _with_proxies(batch, centers, normalize)
    losses = []
    for row, label in zip(s, batch.y.tolist()):
        logits = []
        for c, of_class in enumerate(row.split(centers_per_class)):
            near = (torch.softmax(of_class / gamma, 0) * of_class).sum()
            logits.append(la * (near - margin if c == label else near))
        losses.append(log_sum(torch.stack(logits)) - logits[label])
    return mean(losses, len(losses), batch.x)


def mcr2(batch, *, gain, rate_weight, eps_squared, normalize):
    z = unit(batch.x) if normalize else batch.x
    n, width = z.shape

    def half_logdet(rows: Tensor, a: float) -> Tensor:
        return torch.logdet(torch.eye(width, dtype=z.dtype) + a * rows.T @ rows) / 2

    of_classes = z.sum() * 0
    for label in set(batch.y.tolist()):
        own = z[batch.y == label]
        of_classes = of_classes + len(own) / n * half_logdet(own, width / (len(own) * eps_squared))
    return of_classes - rate_weight * half_logdet(z, gain * width / (n * eps_squared))
