"""Faults that the tests have to catch, one at a time: what stands in a file, and what is wrong in its place.

Plausible slips in what a loss computes, not in how it is called: a factor, a sign, a side of a pair, a bound, the last
element, a tie, a merge of partial sums. `right` stands once in its file. In C++ and CUDA it is an expression, or
a statement with its semicolon; mutants.py compiles all of those at once and chooses one when a test runs.
"""

from __future__ import annotations

from typing import NamedTuple


class Fault(NamedTuple):
    file: str
    right: str
    wrong: str
    tests: str  # patterns of the files in tests/ that should catch it
    missed: str = ""  # why the default tier may miss it

    @property
    def layer(self) -> str:
        return next(name for prefix, name in LAYERS.items() if self.file.startswith(prefix))

    @property
    def compiled(self) -> bool:
        return self.file.startswith("csrc/")


LAYERS = {
    "csrc/common/": "common",
    "csrc/cpu/": "cpu",
    "csrc/cuda/": "cuda",
    "triton_kernels/": "triton",
    "dmlkernels/reference/": "reference",
    "dmlkernels/": "python",
}
# The tests of a layer, by the backend in their names. Only the host's model of CUDA can run that one's kernels here.
BACKENDS = {
    "common": "native-cpu",
    "cpu": "native-cpu",
    "cuda": "cuda-host-cpu",
    "triton": "triton-cpu",
    "reference": "reference-cpu",
    "python": "native-cpu",
}

PAIRWISE = "ops/test_pairwise*"
PAIR_LOSS = "ops/test_pair_loss*"
TRIPLET = "ops/test_triplet*"
NEAREST = "ops/test_nearest_positive*"
TIES = "ops/test_ties*"
SOFT_TRIPLE = "ops/test_soft_triple*"
DRAWS = "ops/test_distance_weighted*"
RATES = "ops/test_c*_rate* ops/test_coding_rate* ops/test_cholesky*"
EXPANSION = "ops/test_spherical_expansion*"

FAULTS = [
    # Formulae that the CPU and CUDA share.
    Fault("csrc/common/pairwise.h", "fma(V(-2), dot, norms)", "fma(V(-2.0001), dot, norms)", PAIRWISE),
    Fault("csrc/common/pairwise.h", "V(8 * eps * eps)", "V(8 * eps)", PAIRWISE),
    Fault("csrc/common/pair_loss.h", "V(side.scale) * (v - base)", "V(side.scale) * (v - base) + V(0.001)", PAIR_LOSS),
    Fault("csrc/common/pair_loss.h", "V(2) * grad", "grad", PAIR_LOSS),
    Fault(
        "csrc/common/pair_loss.h",
        "max(V(side.ramp) * (v - V(side.origin)), V(0))",
        "V(side.ramp) * (v - V(side.origin))",
        PAIR_LOSS,
    ),
    Fault("csrc/common/pair_hinge.h", "x > V(0)", "x > V(-0.01)", PAIR_LOSS),
    Fault("csrc/common/pair_softplus.h", "e * share", "share", PAIR_LOSS),
    Fault("csrc/common/pair_softplus.h", "V(2) * z * series", "z * series", PAIR_LOSS),
    Fault("csrc/common/triplet.h", "select(term > V(0), V(1), V(0))", "V(1)", TRIPLET),
    Fault("csrc/common/tile_schedule.h", "(r - task + last) % last", "(r - task + last + 1) % last", "ops/test_tile*"),
    Fault("csrc/common/tile_schedule.h", "within < part_tiles", "within + 1 < part_tiles", PAIR_LOSS),
    Fault("csrc/common/soft_triple.h", "V(loss.inverse_gamma) * under", "under", SOFT_TRIPLE),
    Fault("csrc/common/soft_triple.h", "fma(V(loss.inverse_gamma), s - similarity, V(1))", "V(1)", SOFT_TRIPLE),
    Fault("csrc/common/soft_triple.h", "-::expm1(-loss)", "::exp(-loss)", SOFT_TRIPLE),
    Fault("csrc/common/coding_rate.h", "s * inverse_root", "s", RATES),
    Fault(
        "csrc/common/coding_rate.h",
        "official ? rows / width : width / rows",
        "official ? width / rows : rows / width",
        RATES,
    ),
    Fault("csrc/common/distance_weighted.h", "V(-0.25)", "V(-0.2)", DRAWS),
    Fault("csrc/common/distance_weighted.h", "squared < V(density.far)", "squared < V(0.9 * density.far)", DRAWS),
    Fault("csrc/common/spherical_expansion.h", "-own / (vertices - 1 - j)", "own / (vertices - 1 - j)", EXPANSION),
    # Kernels of the CPU.
    Fault("csrc/cpu/pair_terms.h", "sums.total + more.total", "sums.total", PAIR_LOSS),
    Fault("csrc/cpu/pair_terms.h", "exp(more.max - top)", "V(1)", PAIR_LOSS),
    Fault("csrc/cpu/pair_terms.h", "sums.slope + more.slope", "sums.slope", PAIR_LOSS),
    Fault("csrc/cpu/kernels/pair_loss.cpp", "sum(row_weight)", "T(0)", PAIR_LOSS),
    Fault("csrc/cpu/kernels/pairwise.cpp", "weight = weight + weight;", ";", PAIRWISE),
    Fault(
        "csrc/cpu/kernels/pairwise.cpp", "p.metric == Metric::squared ? squared : sqrt(squared)", "squared", PAIRWISE
    ),
    Fault(
        "csrc/cpu/contest.h",
        "beyond_positive(exact(i, j, squared), exact(i, to, limit))",
        "true",
        TIES,
    ),
    Fault(
        "csrc/cpu/kernels/nearest_positive.cpp",
        "either(tile.same_class(i, j), tile.excluded(i, j))",
        "tile.same_class(i, j)",
        NEAREST,
    ),
    Fault("csrc/cpu/nearest_positive.cpp", "grad[i] / std::sqrt(squared)", "grad[i]", NEAREST),
    Fault("csrc/cpu/kernels/triplet.cpp", "load<V>(at) + slopes[u]", "load<V>(at)", TRIPLET),
    Fault("csrc/cpu/kernels/triplet.cpp", "lower = upper = lower + upper;", "lower = upper;", TRIPLET),
    Fault(
        "csrc/cpu/kernels/triplet_selection.cpp",
        "without(pairs.same_class(row, j), pairs.excluded(row, j))",
        "pairs.same_class(row, j)",
        TRIPLET,
    ),
    Fault(
        "csrc/cpu/kernels/triplet_selection.cpp",
        "contest.beyond(i, j, squared, p.class_begin[i] + p.first_slot + slot, positive * positive)",
        "true",
        TRIPLET,
    ),
    Fault("csrc/cpu/rows.cpp", "norm / norm", "kernel.sum_squares(rows + r * stride, d)", TIES),
    Fault("csrc/cpu/kernels/soft_triple.cpp", "select(own, V(p.loss.margin), V(0))", "V(p.loss.margin)", SOFT_TRIPLE),
    Fault("csrc/cpu/kernels/soft_triple.cpp", "scale * load<V>(p.miss + col)", "scale", SOFT_TRIPLE),
    Fault(
        "csrc/cpu/kernels/distance_weighted.cpp",
        "exp(weight.score - V(top)) * weight.root",
        "exp(weight.score - V(top))",
        DRAWS,
    ),
    Fault(
        "csrc/cpu/kernels/distance_weighted.cpp",
        "either(pairs.same_class(i, j), pairs.excluded(i, j))",
        "pairs.same_class(i, j)",
        DRAWS,
    ),
    Fault("csrc/cpu/kernels/rows.cpp", "out[k] += a * x[k];", "out[k] += 0;", EXPANSION),
    Fault("csrc/cpu/spherical_expansion.cpp", "pass < 2", "pass < 1", EXPANSION),
    Fault("csrc/cpu/coding_rate.cpp", "-kernel.dot(g, f, view.d)", "T(0)", RATES),
    # Kernels of CUDA.
    Fault("csrc/cuda/pair_engine.cuh", "block.tile.at(r, c) * inverse[c]", "block.tile.at(r, c)", PAIR_LOSS),
    Fault("csrc/cuda/pair_engine.cuh", "if (!loss.normalize) total[r] += weight[c];", "total[r] += 0;", PAIR_LOSS),
    Fault("csrc/cuda/pair_engine.cuh", "sum += sums[w][thread]", "sum = sums[w][thread]", PAIR_LOSS),
    Fault("csrc/cuda/slot_tile.cuh", "(positive ? 0 : loss.queries) + row", "row", PAIR_LOSS),
    Fault("csrc/cuda/slot_tile.cuh", "lane / 4 % 4 == c", "lane / 4 % 4 == 3 - c", PAIR_LOSS),
    Fault("csrc/cuda/pair_sums.cuh", "(lane_index() & bit) != 0", "(lane_index() & bit) == 0", PAIR_LOSS),
    Fault(
        "csrc/cuda/pair_values.cuh",
        "upper && PairTile<P>::row(r) >= col",
        "upper && PairTile<P>::row(r) > col + 1",
        PAIR_LOSS,
    ),
    Fault("csrc/cuda/pair_values.cuh", "rows.full && cols.full", "rows.full", PAIR_LOSS),
    Fault("csrc/cuda/pair_values.cuh", "rows.unit && cols.unit", "true", PAIR_LOSS),
    Fault("csrc/cuda/plain_tile.cuh", "half * 4", "half * 2", PAIR_LOSS),
    Fault("csrc/cuda/plain_tile.cuh", "weight * reciprocal_of(v)", "weight", PAIR_LOSS),
    Fault("csrc/cuda/pair_values.cuh", "__syncthreads_or(too_near) != 0", "__syncthreads_or(0) != 0", PAIR_LOSS),
    Fault("csrc/cuda/row_facts.cu", "counts ? ~labels.last : kNone", "counts ? ~labels.first + 1 : kNone", PAIR_LOSS),
    Fault("csrc/cuda/pairs.h", "own | flags[col_tile * row_stride + row_tile * col_stride]", "own", PAIR_LOSS),
    Fault("csrc/cuda/tile.cuh", "row / 8 % kPieces", "row / 4 % kPieces", PAIR_LOSS),
    Fault("csrc/cuda/pairs.cuh", "is_near(product, both) ? difference_form(r, c) : product", "product", PAIRWISE),
    Fault("csrc/cuda/pairs.cuh", "row_tile < tiles / 2 ? 1 : 0", "row_tile < tiles / 2 ? 0 : 0", PAIR_LOSS),
    Fault("csrc/cuda/pair_rows.cu", "radial * (static_cast<T>(x[k]) * inverse)", "T(0)", PAIRWISE),
    Fault("csrc/cuda/pair_rows.cu", "p.sign * sum", "sum", PAIRWISE),
    Fault("csrc/cuda/nearest_positive.cu", "bits < 4", "bits < 2", NEAREST),
    Fault("csrc/cuda/nearest_positive.cu", "T(2 * kNear)", "T(0)", NEAREST),
    Fault("csrc/cuda/nearest_positive.cu", "T(8) * contest.share", "T(0)", NEAREST),
    Fault(
        "csrc/cuda/candidates.cuh",
        "sign * squared - block.facts.rows.norm[row] * of_norm",
        "squared - block.facts.rows.norm[row] * of_norm",
        NEAREST,
    ),
    Fault("csrc/cuda/candidates.cuh", "0x01010101u", "0x00010101u", NEAREST),
    Fault("csrc/cuda/candidates.cuh", "found |= 1u << r", "found |= r == 5 ? 0u : 1u << r", NEAREST),
    Fault("csrc/cuda/contest.cuh", "beyond_positive(exact(i, j), exact(i, to))", "true", TIES),
    Fault("csrc/cuda/row_facts.cu", "length / length", "squares * r * r", TIES),
    Fault("csrc/cuda/triplet.cu", "signbit(d) ? -d : -kNoPair<T>", "fabs(d)", TRIPLET),
    Fault("csrc/cuda/triplet.cu", "contest.beyond(anchor.row, c, squared, s.order[at], limit)", "true", TRIPLET),
    Fault("csrc/cuda/triplet.cu", "positives * negatives", "negatives", TRIPLET),
    Fault("csrc/cuda/pair_engine.cuh", "stripe.adds ? there + sum : sum", "sum", PAIR_LOSS),
    Fault("csrc/cuda/pair_engine.cuh", "static_cast<T>(before[c])", "T(0)", PAIR_LOSS),
    Fault("csrc/cuda/soft_triple.cu", "own ? T(loss.margin) : T(0)", "T(loss.margin)", SOFT_TRIPLE),
    Fault("csrc/cuda/soft_triple.cu", "exp(found[1][s][thread] - highest)", "T(1)", SOFT_TRIPLE),
    Fault("csrc/cuda/distance_weighted.cu", "other_sum * exp(other - top)", "other_sum", DRAWS),
    Fault("csrc/cuda/distance_weighted.cu", "lane_index() >= by", "lane_index() > by", DRAWS),
    Fault("csrc/cuda/coding_rate.cu", "k % (side + 1) == 0 ? 1 : 0", "k % (side + 1) == 0 ? 0 : 0", RATES),
    Fault("csrc/cuda/class_rate.cu", "n * own.factor()", "own.factor()", RATES),
    Fault("csrc/cuda/cholesky.cuh", "T(1) / sqrt(pivot)", "T(1) / pivot", RATES),
    Fault("csrc/cuda/spherical_expansion.cu", "along * (T(1) + share)", "along", EXPANSION),
    # Triton.
    Fault("triton_kernels/_pair_terms.py", "tl.where(x > 0.0, share, e * share)", "share", PAIR_LOSS),
    Fault("triton_kernels/_rows.py", "(p - along[:, None] * f) * to_norm[:, None]", "p * to_norm[:, None]", PAIRWISE),
    Fault("triton_kernels/pairwise.py", "weight = weight + weight", "weight = weight", PAIRWISE),
    Fault("triton_kernels/pairwise.py", "if i != j:", "if i > j:", PAIRWISE),
    Fault(
        "triton_kernels/_pair.py",
        "nearer | ((own == other) & (index < best_index))",
        "nearer | (own == other)",
        TIES,
    ),
    Fault("triton_kernels/nearest_positive.py", "squared = -best if FARTHEST else best", "squared = best", NEAREST),
    Fault("triton_kernels/_triplet_kernels.py", "0.5 * slope * scale", "slope * scale", TRIPLET),
    Fault("triton_kernels/_triplet_kernels.py", "nonzero += costing", "nonzero += costing + 1", TRIPLET),
    Fault("triton_kernels/soft_triple.py", "(1.0 + inverse_gamma * above)", "1.0", SOFT_TRIPLE),
    Fault("triton_kernels/soft_triple.py", "tl.where(own, similarity - margin, similarity)", "similarity", SOFT_TRIPLE),
    Fault("triton_kernels/distance_weighted.py", "0.25 * clamped", "0.2 * clamped", DRAWS),
    Fault("triton_kernels/coding_rate.py", "0.5 * size.to(T) / M.to(T) * logdet", "0.5 / M.to(T) * logdet", RATES),
    Fault("triton_kernels/spherical_expansion.py", "(1.0 + share) * tl.sum(p * total", "tl.sum(p * total", EXPANSION),
    # The reference.
    Fault("dmlkernels/reference/triplet.py", "contest.beyond(anchor, chosen, members)", "members", TRIPLET),
    Fault("dmlkernels/reference/soft_triple.py", "similarity - margin", "similarity + margin", SOFT_TRIPLE),
    Fault("dmlkernels/reference/distance_weighted.py", "(width - 3) / 2", "(width - 2) / 2", DRAWS),
    Fault("dmlkernels/reference/coding_rate.py", "eye + a * gram", "eye + gram", RATES),
    Fault("dmlkernels/reference/spherical_expansion.py", "along - r / n", "along - r", EXPANSION),
    Fault(
        "dmlkernels/reference/nearest_positive.py",
        "self._exact(anchor[row], j) > self._exact(anchor, chosen)[row]",
        "self._exact(anchor[row], j) >= self._exact(anchor, chosen)[row]",
        TIES,
    ),
    # Operators and losses.
    Fault("dmlkernels/_library.py", "_Once.apply(self.operation, grad, *given)", "grad", "ops/test_modes*"),
    Fault("dmlkernels/losses/circle.py", "softplus(stats.pos + stats.neg)", "softplus(stats.pos)", "losses/*"),
    Fault(
        "dmlkernels/losses/multi_similarity.py", "softplus(stats.neg) / self.beta", "softplus(stats.neg)", "losses/*"
    ),
    Fault("dmlkernels/losses/lifted.py", "torch.where(some(stats.neg), stats.neg, 0)", "0.5 * stats.neg", "losses/*"),
    Fault("dmlkernels/losses/supcon.py", "terms + spread", "terms", "losses/*"),
    Fault("dmlkernels/losses/ntxent.py", "self.temperature * negatives.neg", "negatives.neg", "losses/*"),
    Fault(
        "dmlkernels/losses/nca.py",
        "torch.where(there, distance, 0).square()",
        "torch.where(there, distance, 0)",
        "losses/*",
    ),
    Fault(
        "dmlkernels/losses/anti_collapse.py",
        "(-rate_weight * rate).exp()",
        "(-rate).exp()",
        "losses/test_anti_collapse*",
    ),
    Fault(
        "dmlkernels/losses/cross_batch_memory.py",
        "(self.position + count) % size",
        "self.position + 0 * size",
        "losses/*",
    ),
    Fault("dmlkernels/losses/spherical_expansion.py", "base + self.weight * synthetic", "base + synthetic", "losses/*"),
    Fault(
        "dmlkernels/ops/coding_rate.py", "return rate - class_rate", "return rate", "ops/test_coding* losses/test_mcr2*"
    ),
]
