"""Every operator's schema, once. C++, CUDA and Triton register implementations of exactly these strings.

M queries, N gallery rows (N = M and the pair (i, i) is left out when `ref_emb` is None), D features. A forward returns
what its backward needs; every output but the first of a loss, and the distances of a selection, is non-differentiable.
"""

TILE = 128
"""Side of the tiles of pairs of which `tile_active` keeps one byte each; the same in every backend."""

ROW_STATS = ("log_denom_pos", "log_denom_neg", "loss_pos", "loss_neg")
"""Rows of ranked_list's `row_stats (4, M)`: log of the weights' denominators, and the losses of the two sets."""

TOTALS = ("count_pos", "count_neg", "dist_pos", "dist_neg")
"""Entries of ranked_list's `totals (4,)`: ordered pairs in the non-trivial sets, and their summed distances."""

_PAIR = (
    "Tensor embeddings, "  # (M, D) float64 | float32 | bfloat16 | float16
    "Tensor labels, "  # (M,) int64
    "Tensor? ref_emb, "  # (N, D), dtype of embeddings
    "Tensor? ref_labels, "  # (N,) int64
    "Tensor? ids, "  # (M,) int64; pairs of equal ids are excluded
    "Tensor? ref_ids, "  # (N,) int64
    "int? ignore_index, "
    "bool normalize"
)

_RANKED_LIST = (
    "float alpha, float margin, float pos_temperature, float neg_temperature, float pos_weight, float neg_weight, "
    "bool weight_grad, str grad, str positive, str eps_mode, str precision, bool deterministic"
)

# x = scale * (v - base) of a pair's value v, with bounds scale * (v - bounds[side, i]); ramp, origin: of term "exp".
_PAIR_LOSS = (
    "Tensor? bounds, "  # (2, M): of the positives and of the negatives of each query
    "str value, str term, str sides, "
    "float pos_scale, float pos_base, float pos_ramp, float pos_origin, "
    "float neg_scale, float neg_base, float neg_ramp, float neg_origin, str precision, bool deterministic"
)

# Of every positive: with all negatives, or with the nearest one that is farther.
_TRIPLET = "str negative, float margin, bool soft, str precision, bool deterministic"

SCHEMAS = {
    # x (M, D), y (N, D) | None -> out (M, N), dtype of x
    "pairwise_fwd": "(Tensor x, Tensor? y, str metric, bool normalize, str precision) -> Tensor",
    # grad_out (M, N) -> grad_x (M, D), grad_y (N, D) | (0, D) without y
    "pairwise_bwd": (
        "(Tensor grad_out, Tensor x, Tensor? y, str metric, bool normalize, str precision) -> (Tensor, Tensor)"
    ),
    # -> loss (M,), row_stats (4, M), totals (4,), easy_index (M,) | (0,), tile_active uint8 (tiles of M, tiles of N)
    "ranked_list_fwd": f"({_PAIR}, {_RANKED_LIST}, bool check_finite) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    # grad_loss (M,) -> grad_embeddings (M, D), grad_ref (N, D) | (0, D) unless need_grad_ref
    "ranked_list_bwd": (
        f"(Tensor grad_loss, {_PAIR}, Tensor row_stats, Tensor easy_index, Tensor tile_active, {_RANKED_LIST}, "
        "bool need_grad_ref) -> (Tensor, Tensor)"
    ),
    # -> stats, sums, members, slopes, each (2, M): of the positives and of the negatives of each query;
    # tile_active uint8 (tiles of M, tiles of N)
    "pair_loss_fwd": f"({_PAIR}, {_PAIR_LOSS}, bool check_finite) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    # grad_stats, grad_sums (2, M) -> grad_embeddings (M, D), grad_ref (N, D) | (0, D) unless need_grad_ref
    "pair_loss_bwd": (
        f"(Tensor grad_stats, Tensor grad_sums, {_PAIR}, Tensor stats, Tensor tile_active, {_PAIR_LOSS}, "
        "bool need_grad_ref) -> (Tensor, Tensor)"
    ),
    # -> of each query (M,): loss_sum, nonzero int64 and count int64 of its triplets; tile_active uint8
    # (tiles of M, tiles of N) | (0, 0) of "semihard"
    "triplet_fwd": f"({_PAIR}, {_TRIPLET}, bool check_finite) -> (Tensor, Tensor, Tensor, Tensor)",
    # grad_loss_sum (M,) -> grad_embeddings (M, D), grad_ref (N, D) | (0, D) unless need_grad_ref
    "triplet_bwd": (
        f"(Tensor grad_loss_sum, {_PAIR}, Tensor tile_active, {_TRIPLET}, bool need_grad_ref) -> (Tensor, Tensor)"
    ),
    # -> distance (M,), index (M,) int64
    "nearest_positive_fwd": f"({_PAIR}, str precision, bool check_finite) -> (Tensor, Tensor)",
    # grad_distance (M,), index (M,) -> grad_embeddings (M, D), grad_ref (N, D) | (0, D) unless need_grad_ref
    "nearest_positive_bwd": (
        "(Tensor grad_distance, Tensor embeddings, Tensor? ref_emb, Tensor index, bool normalize, bool need_grad_ref)"
        " -> (Tensor, Tensor)"
    ),
    # -> pos_distance (M,), pos_index (M,) int64, neg_distance (M,), neg_index (M,) int64
    "mine_fwd": (
        f"({_PAIR}, str positive, str negative, str precision, bool check_finite) -> (Tensor, Tensor, Tensor, Tensor)"
    ),
    # grad_pos, grad_neg (M,) -> grad_embeddings (M, D), grad_ref (N, D) | (0, D) unless need_grad_ref
    "mine_bwd": (
        "(Tensor grad_pos, Tensor grad_neg, Tensor embeddings, Tensor? ref_emb, Tensor pos_index, Tensor neg_index, "
        "bool normalize, bool need_grad_ref) -> (Tensor, Tensor)"
    ),
    # uniforms (M, S) float64 in [0, 1) -> index (M, S) int64 of drawn negatives; nothing to differentiate
    "distance_weighted_fwd": (
        f"({_PAIR}, Tensor uniforms, float cutoff, float nonzero_loss_cutoff, str precision, bool check_finite)"
        " -> Tensor"
    ),
    # A (B, n, n), lower triangle read -> logdet (B,), inverse (B, n, n) | (0, n, n) unless need_inverse
    "cholesky_fwd": "(Tensor A, bool check, bool need_inverse) -> (Tensor, Tensor)",
    # grad_logdet (B,), inverse (B, n, n) -> grad_A (B, n, n)
    "cholesky_bwd": "(Tensor grad_logdet, Tensor inverse) -> Tensor",
    # z (M, D), labels (M,) int64 | None (the rate of all rows) -> rate (), rate_grad (M, D) | (0, D) unless need_grad
    "coding_rate_fwd": (
        "(Tensor z, Tensor? labels, float eps_squared, float gain, str scale, bool normalize, str precision, "
        "bool need_grad) -> (Tensor, Tensor)"
    ),
    # grad_rate (), rate_grad (M, D) -> grad_z (M, D)
    "coding_rate_bwd": "(Tensor grad_rate, Tensor rate_grad) -> Tensor",
    # z, proxies (k, D), of one dtype: row i of proxies belongs to row i of z; noise (k, n-1, D), of that dtype too
    # -> embeddings (k*n, D), valid (k,) bool
    "spherical_expansion_fwd": "(Tensor z, Tensor proxies, Tensor noise, int n) -> (Tensor, Tensor)",
    # grad (k*n, D) -> grad_z (k, D)
    "spherical_expansion_bwd": "(Tensor grad, Tensor z, Tensor proxies, Tensor noise, int n) -> Tensor",
    # embeddings (M, D), labels (M,) int64 in [0, C), proxies (C, D) -> loss (), proxy_stats (2, C): log(1 + sum) of the
    # positives and of the negatives
    "proxy_anchor_fwd": (
        "(Tensor embeddings, Tensor labels, Tensor proxies, float margin, float alpha, bool normalize, str precision)"
        " -> (Tensor, Tensor)"
    ),
    # grad_loss () -> grad_embeddings (M, D), grad_proxies (C, D)
    "proxy_anchor_bwd": (
        "(Tensor grad_loss, Tensor embeddings, Tensor labels, Tensor proxies, Tensor proxy_stats, float margin, "
        "float alpha, bool normalize, str precision) -> (Tensor, Tensor)"
    ),
    # embeddings (M, D), labels (M,) int64 in [0, C), centers (C*K, D) class by class -> loss (M,), row_stats (2, M):
    # log of the sum of e^logit over the classes, and the probability of those not its own
    "soft_triple_fwd": (
        "(Tensor embeddings, Tensor labels, Tensor centers, int centers_per_class, float la, float gamma, "
        "float margin, bool normalize, str precision) -> (Tensor, Tensor)"
    ),
    # grad_loss (M,) -> grad_embeddings (M, D), grad_centers (C*K, D)
    "soft_triple_bwd": (
        "(Tensor grad_loss, Tensor embeddings, Tensor labels, Tensor centers, Tensor row_stats, int centers_per_class, "
        "float la, float gamma, float margin, bool normalize, str precision) -> (Tensor, Tensor)"
    ),
}
