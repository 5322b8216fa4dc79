"""One tile of pairs: products, distances and weighted sums of rows. The formulae are those of csrc/common, by name."""

import triton
import triton.language as tl

from . import _configs

FLOAT32 = tl.constexpr(_configs.dot_precision("ieee"))
INTERPRETED = tl.constexpr(_configs.INTERPRETED)

# State of a row: it takes part, ignore_index takes it out, or its norm is not finite.
KEPT = tl.constexpr(1)
IGNORED = tl.constexpr(0)
NON_FINITE = tl.constexpr(-1)

# csrc/common/pairwise.h

NEAR = tl.constexpr(0.005)  # share of ||f||^2 + ||g||^2 up to which a squared distance is recomputed: there it cancels


@triton.jit
def product_form(dot, norms):
    """norms = ||f||^2 + ||g||^2. A NaN stays one."""
    squared = norms - 2.0 * dot
    return tl.where(squared < 0.0, 0.0, squared)


@triton.jit
def is_near(squared, norms):
    return squared <= norms * NEAR


# ||x||^2 and the difference form are added up in one order on every backend: 16 partial sums, and their halves.


@triton.jit
def add_squares(sums, x):
    """Partial sums (rows, 16) and the squares of 16 more columns."""
    return sums + x * x


@triton.jit
def add_halves(sums):
    """(rows,) of the partial sums (rows, 16)."""
    ROWS: tl.constexpr = sums.shape[0]
    sums = tl.sum(tl.reshape(sums, (ROWS, 2, 8)), 1)
    sums = tl.sum(tl.reshape(sums, (ROWS, 2, 4)), 1)
    sums = tl.sum(tl.reshape(sums, (ROWS, 2, 2)), 1)
    return tl.sum(sums, 1)


@triton.jit
def gradient_scale(squared, norms, EPS: tl.constexpr):
    """1/d as the weight of a gradient; coincident points, up to 4 eps of the rows' norm, get none."""
    apart = squared > norms * (8.0 * EPS * EPS)
    return tl.where(apart, 1.0 / tl.sqrt(tl.where(apart, squared, 1.0)), 0.0)


# Numbers as tensor cores take them.


@triton.jit
def scalar(value, DTYPE: tl.constexpr):
    """A float argument, which arrives as float64, in the type that the kernel computes in."""
    return tl.full([], value, DTYPE)


@triton.jit
def keep_bits(x, DROPPED: tl.constexpr):
    """float32 rounded to nearest even, without its last DROPPED bits: 13 for TF32, 16 for bfloat16."""
    bits = x.to(tl.int32, bitcast=True)
    bits = bits + ((1 << (DROPPED - 1)) - 1) + ((bits >> DROPPED) & 1)
    return ((bits >> DROPPED) << DROPPED).to(tl.float32, bitcast=True)


@triton.jit
def store_as(pointer, value, mask):
    """Store in the pointer's type. The interpreter truncates bfloat16, and is given what needs no rounding."""
    if INTERPRETED and pointer.dtype.element_ty == tl.bfloat16:
        value = tl.where(value == value, keep_bits(value.to(tl.float32), 16), value)
    tl.store(pointer, value.to(pointer.dtype.element_ty), mask=mask)


@triton.jit
def dot(a, b, acc, PRECISION: tl.constexpr):
    """acc + a @ b. The interpreter, which has no bfloat16, gets exact float32."""
    if INTERPRETED and a.dtype == tl.bfloat16:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision=PRECISION, out_dtype=acc.dtype)


@triton.jit
def log_one_plus(x):
    """log(1 + x), x >= 0. The error of 1 + x stands in both factors and cancels. The interpreter has no libdevice."""
    y = 1.0 + x
    return tl.where(y == 1.0, x, tl.log(y) * (x / tl.where(y == 1.0, 1.0, y - 1.0)))


@triton.jit
def any_of(mask):
    """Whether a mask holds anywhere."""
    return tl.max(mask.to(tl.int32)) > 0


# Tiles. Rows are int64 row numbers; a row that does not take part is read as zeros.


@triton.jit
def load_rows(x, rows, ok, k, D: tl.constexpr, BLOCK_K: tl.constexpr):
    """Columns k .. k + BLOCK_K of the listed rows of x (rows, D)."""
    columns = k + tl.arange(0, BLOCK_K)
    mask = ok[:, None] if D % BLOCK_K == 0 else ok[:, None] & (columns < D)[None, :]
    return tl.load(x + rows[:, None] * D + columns[None, :], mask=mask, other=0.0)


@triton.jit
def tile_product(
    x,
    y,
    rows,
    cols,
    row_ok,
    col_ok,
    D: tl.constexpr,
    PRECISION: tl.constexpr,
    DTYPE: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Dot products of the listed rows of x with those of y."""
    acc = tl.zeros((rows.shape[0], cols.shape[0]), DTYPE)
    for k in range(0, D, BLOCK_K):
        a = load_rows(x, rows, row_ok, k, D, BLOCK_K)
        b = load_rows(y, cols, col_ok, k, D, BLOCK_K)
        acc = dot(a, tl.trans(b), acc, PRECISION)
    return acc


@triton.jit
def difference_form(x, y, rows, others, ok, row_scale, scale, D: tl.constexpr, DTYPE: tl.constexpr):
    """Sums of (f - g)^2 of the pairs (row, other), exact where the product form cancels."""
    sums = tl.zeros((rows.shape[0], 16), DTYPE)
    for k in range(0, D, 16):
        f = load_rows(x, rows, ok, k, D, 16).to(DTYPE) * row_scale[:, None]
        g = load_rows(y, others, ok, k, D, 16).to(DTYPE) * scale[:, None]
        sums = add_squares(sums, f - g)
    return add_halves(sums)


@triton.jit
def product_distances(
    x_operand, y_operand, rows, cols, row_ok, col_ok, row_scale, col_scale, norms, wanted,
    D: tl.constexpr, PRECISION: tl.constexpr, DTYPE: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Squared distances of a tile in product form, and which of the wanted pairs are too near for it."""
    s = tile_product(x_operand, y_operand, rows, cols, row_ok, col_ok, D, PRECISION, DTYPE, BLOCK_K)
    squared = product_form(s * (row_scale[:, None] * col_scale[None, :]), norms)
    return squared, is_near(squared, norms) & wanted


@triton.jit
def squared_distances(
    x, x_operand, y, y_operand, rows, cols, row_ok, col_ok, row_scale, col_scale, norms, wanted,
    D: tl.constexpr, PRECISION: tl.constexpr, DTYPE: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Squared distances of a tile; near-duplicates among the wanted pairs in difference form."""
    squared, near = product_distances(
        x_operand, y_operand, rows, cols, row_ok, col_ok, row_scale, col_scale, norms, wanted,
        D, PRECISION, DTYPE, BLOCK_K,
    )  # fmt: skip
    return nearby_distances(squared, near, x, y, rows, cols, row_scale, col_scale, D, DTYPE)


@triton.jit
def nearby_distances(
    squared, near, x, y, rows, cols, row_scale, col_scale, D: tl.constexpr, DTYPE: tl.constexpr
):  # fmt: skip
    """Squared distances of a tile, those of the near pairs in difference form."""
    left = near
    # Few pairs are near: one of each row at a time.
    place = tl.arange(0, cols.shape[0])
    while any_of(left):
        first = tl.min(tl.where(left, place[None, :], cols.shape[0]), 1)
        here = left & (place[None, :] == first[:, None])
        others = tl.sum(tl.where(here, cols[None, :], 0), 1)
        scale = tl.sum(tl.where(here, col_scale[None, :], 0.0), 1)
        exact = difference_form(x, y, rows, others, first < cols.shape[0], row_scale, scale, D, DTYPE)
        squared = tl.where(here, exact[:, None], squared)
        left = left & (here == 0)
    return squared


@triton.jit
def facts(scale, norms, labels, ids, state, rows, inside, HAS_IDS: tl.constexpr):
    """Of the listed rows: whether they take part, scale, squared norm, label and id."""
    ok = inside & (tl.load(state + rows, mask=inside, other=0) == KEPT)
    # A scale of 1 where there is no row: weights are divided by it.
    of_scale = tl.load(scale + rows, mask=ok, other=1.0)
    norm = tl.load(norms + rows, mask=ok, other=0.0)
    label = tl.load(labels + rows, mask=ok, other=0)
    identity = label
    if HAS_IDS:
        identity = tl.load(ids + rows, mask=ok, other=0)
    return ok, of_scale, norm, label, identity


@triton.jit
def allowed(rows, cols, row_ok, col_ok, row_ids, col_ids, SELF: tl.constexpr, HAS_IDS: tl.constexpr):
    """Pairs that count: not (i, i) of self mode, no equal ids."""
    pairs = row_ok[:, None] & col_ok[None, :]
    if SELF:
        pairs = pairs & (rows[:, None] != cols[None, :])
    if HAS_IDS:
        pairs = pairs & (row_ids[:, None] != col_ids[None, :])
    return pairs


@triton.jit
def upper_tile(program, tiles):
    """The tile (i, j), i <= j, of a program: row r and row tiles - 1 - r of the triangle make one line of tiles + 1."""
    r = program // (tiles + 1)
    c = program % (tiles + 1)
    first = c < tiles - r
    return tl.where(first, r, tiles - 1 - r), tl.where(first, r + c, c - 1)


# csrc/common/nearest_positive.h: a pair is the nearer one. Rows are listed by number; those of y by pointers too, since
# they may lie in another tile.

NO_INDEX = tl.constexpr(2**62)  # above every row: whatever is offered wins


@triton.jit
def exact(
    x, y, y_scale, y_norms, rows, row_scale, row_norms, others, ok, D: tl.constexpr, DTYPE: tl.constexpr
):  # fmt: skip
    """Squared distances of the pairs (row, other) in difference form. To a zero row it is the other's norm, which is 1
    by definition.
    """
    scale = tl.load(y_scale + others, mask=ok, other=0.0)
    norms = tl.load(y_norms + others, mask=ok, other=0.0)
    difference = difference_form(x, y, rows, others, ok, row_scale, scale, D, DTYPE)
    return tl.where((row_norms == 0.0) | (norms == 0.0), row_norms + norms, difference)


@triton.jit
def duel(
    best, best_index, key, index, x, y, y_scale, y_norms, rows, row_scale, row_norms,
    FARTHEST: tl.constexpr, SHARE: tl.constexpr, D: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """The better one of two rows of y, ties to the lower index. Farthest: keys are negative squares."""
    there = index < NO_INDEX
    both = there & (best_index < NO_INDEX)
    band = SHARE * (row_norms + tl.load(y_norms + index, mask=there, other=0.0))
    close = both & (key <= best + band) & (best <= key + band)
    wins = there & (key < best)
    if tl.max(close.to(tl.int32), 0) > 0:
        own = exact(x, y, y_scale, y_norms, rows, row_scale, row_norms, index, close, D, DTYPE)
        other = exact(x, y, y_scale, y_norms, rows, row_scale, row_norms, best_index, close, D, DTYPE)
        nearer = own > other if FARTHEST else own < other
        wins = tl.where(close, nearer | ((own == other) & (index < best_index)), wins)
    return tl.where(wins, key, best), tl.where(wins, index, best_index)


@triton.jit
def offer(
    best, best_index, squared, norms, candidates, cols, x, y, y_scale, y_norms, rows, row_scale, row_norms,
    FARTHEST: tl.constexpr, SHARE: tl.constexpr, D: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """Best of a row and of the candidates of a tile, whose pairs have these squared distances and sums of norms."""
    key = tl.where(candidates, -squared if FARTHEST else squared, float("inf"))
    top = tl.minimum(best, tl.min(key, 1))
    tied = candidates & (key <= top[:, None] + SHARE * norms)
    first = tl.min(tl.where(tied, cols[None, :], NO_INDEX), 1)
    last = tl.max(tl.where(tied, cols[None, :], -1), 1)
    has_best = best_index < NO_INDEX
    band = SHARE * (row_norms + tl.load(y_norms + best_index, mask=has_best, other=0.0))
    contested = (last >= 0) & ((first != last) | (has_best & (best <= top + band)))
    won = (last >= 0) & (contested == 0)
    best, best_index = tl.where(won, top, best), tl.where(won, first, best_index)
    left = tied & contested[:, None]
    while any_of(left):
        index = tl.min(tl.where(left, cols[None, :], NO_INDEX), 1)
        here = left & (cols[None, :] == index[:, None])
        of_index = tl.sum(tl.where(here, key, 0.0), 1)
        best, best_index = duel(
            best, best_index, of_index, index, x, y, y_scale, y_norms, rows, row_scale, row_norms,
            FARTHEST, SHARE, D, DTYPE,
        )  # fmt: skip
        left = left & (here == 0)
    return best, best_index


@triton.jit
def beyond_positive(
    squared, limit, limit_index, best, norms, candidates, cols, x, y, y_scale, y_norms, rows, row_scale, row_norms,
    SHARE: tl.constexpr, D: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """Semi-hard: the candidates that are farther than the chosen positive, strictly; it lies at `limit`, +inf for none.

    Those that cannot win against the best one need not be known.
    """
    band = SHARE * norms
    beyond = candidates & (squared > limit[:, None] + band)
    left = candidates & (beyond == 0) & (squared >= limit[:, None] - band) & (squared <= best[:, None] + band)
    if any_of(left):
        there = limit_index < NO_INDEX
        positive = exact(x, y, y_scale, y_norms, rows, row_scale, row_norms, limit_index, there, D, DTYPE)
        while any_of(left):
            index = tl.min(tl.where(left, cols[None, :], NO_INDEX), 1)
            here = left & (cols[None, :] == index[:, None])
            own = exact(x, y, y_scale, y_norms, rows, row_scale, row_norms, index, index < NO_INDEX, D, DTYPE)
            beyond = beyond | (here & (own > positive)[:, None])
            left = left & (here == 0)
    return beyond


# Sums of weighted rows. A weight meets raw rows, so the other row's scale is folded into it before it is rounded.


@triton.jit
def rounded_weights(weights, scale, ROUNDING: tl.constexpr):
    """weight * scale as the product takes it, in two parts, and the weight that this amounts to.

    ROUNDING: "none"; "tf32"; "bf16" (8 bits of a weight are too few beside float32 results: 16 in two products);
    "bf16x1", where that was asked for.
    """
    high = weights * scale[None, :]
    low = high
    amounts_to = weights
    if ROUNDING == "tf32":
        high = keep_bits(high, 13)
        amounts_to = high / scale[None, :]
    elif ROUNDING == "bf16x1":
        high = keep_bits(high, 16)
        amounts_to = high / scale[None, :]
    elif ROUNDING == "bf16":
        high = keep_bits(low, 16)
        low = keep_bits(low - high, 16)
        amounts_to = (high + low) / scale[None, :]
    return high, low, amounts_to


@triton.jit
def add_weighted_rows(acc, high, low, x, ROUNDING: tl.constexpr, PRECISION: tl.constexpr):
    """acc + (high + low) @ x, for rows x of the operand's type."""
    if ROUNDING == "bf16":
        acc = dot(high.to(tl.bfloat16), x, acc, PRECISION)
        acc = dot(low.to(tl.bfloat16), x, acc, PRECISION)
    elif ROUNDING == "bf16x1":
        acc = dot(high.to(tl.bfloat16), x, acc, PRECISION)
    elif x.dtype == tl.float16:
        # Weights leave float16's range; TF32 holds the rows exactly.
        acc = dot(high, x.to(tl.float32), acc, FLOAT32)
    else:
        acc = dot(high, x, acc, PRECISION)
    return acc


@triton.jit
def add_to_end(
    sums, weights, weight, rows, row_ok, others, cols, col_ok, col_scale, wanted,
    PULL: tl.constexpr, ROUNDING: tl.constexpr, D: tl.constexpr, PRECISION: tl.constexpr, DTYPE: tl.constexpr,
    BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Add a tile's weighted rows, and with PULL the weights, to the sums of its rows, as other programs do too."""
    if wanted:
        high, low, amounts_to = rounded_weights(weight, col_scale, ROUNDING)
        if PULL:
            tl.atomic_add(weights + rows, tl.sum(amounts_to, 1), mask=row_ok, sem="relaxed")
        for k in range(0, D, BLOCK_D):
            acc = tl.zeros((rows.shape[0], BLOCK_D), DTYPE)
            x = load_rows(others, cols, col_ok, k, D, BLOCK_D)
            acc = add_weighted_rows(acc, high, low, x, ROUNDING, PRECISION)
            features = k + tl.arange(0, BLOCK_D)
            at = sums + rows[:, None] * D + features[None, :]
            tl.atomic_add(at, acc, mask=row_ok[:, None] & (features < D)[None, :], sem="relaxed")
