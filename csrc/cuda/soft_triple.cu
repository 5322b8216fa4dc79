#include "cuda/number.cuh"

#include "cuda/pair_engine.cuh"
#include "cuda/soft_triple.h"

namespace dml {
namespace {

static_assert(kMaxCentersPerClass == kTile);

// Threads of a warp read one column of neighbouring rows: an odd stride spreads them over the banks.
constexpr int kClassStride = kTile + 1;
constexpr int kSharers = kThreads / kHalf;  // threads of one embedding, which share the classes of a tile

// A tile of embeddings and of whole classes of centers.
template <Product P>
struct ClassBlock : PairBlock<P> {
  using T = typename ProductTypes<P>::Value;
  const SoftTriple& loss;
  // Classes in all and of a tile; the first of this tile, and how many it has.
  int classes, per_tile, first_class, count;

  DML_DEVICE ClassBlock(const PairProblem<P>& p, unsigned char* shared, const SoftTriple& loss)
      : PairBlock<P>(p, shared, 0),
        loss(loss),
        classes(static_cast<int>(p.b.count / loss.per_class)),
        per_tile(kTile / static_cast<int>(loss.per_class)) {}

  DML_DEVICE int64_t class_tiles() const { return (int64_t{classes} + per_tile - 1) / per_tile; }
  DML_DEVICE int centers() const { return count * static_cast<int>(loss.per_class); }

  DML_DEVICE void enter(int64_t row_tile, int64_t class_tile) {
    __syncthreads();  // everybody is done with the last tile
    first_class = static_cast<int>(class_tile) * per_tile;
    count = classes - first_class < per_tile ? classes - first_class : per_tile;
    this->row0 = row_tile * kTile;
    this->col0 = first_class * loss.per_class;
    this->facts.rows.load(this->p.a_facts, this->p.a.order, this->row0, this->p.a.count);
    this->facts.cols.load(this->p.b_facts, this->p.b.order, this->col0, this->p.b.count);
    this->tile.multiply(this->p.a, this->row0, this->p.b, this->col0, this->chunks(), this->shared);
  }

  // Similarities of rows half * 64.. of the tile, (64, kClassStride); every thread calls this.
  DML_DEVICE T* similarities(int half) {
    T* const out = reinterpret_cast<T*>(this->shared);
    __syncthreads();  // the other half has been read, or the stages of the product
    if (warp_index() / 4 == half) {
#pragma unroll
      for (int r = 0; r < kRowSlots; ++r)
#pragma unroll
        for (int c = 0; c < kColSlots; ++c) {
          const int row = PairTile<P>::row(r), col = PairTile<P>::col(c);
          out[row % kHalf * kClassStride + col] = this->similarity(this->tile.at(r, c), row, col);
        }
    }
    __syncthreads();
    return out;
  }
};

template <class T>
struct ClassRow {
  T* s;
  DML_DEVICE T operator()(int64_t k) const { return s[k]; }
};

template <Product P>
DML_KERNEL(kThreads, kBlocks<P>)
logits_kernel(PairProblem<P> p, SoftTriple loss, typename ProductTypes<P>::Value* sums) {
  using T = typename ProductTypes<P>::Value;
  DML_SHARED(shared);
  ClassBlock<P> block(p, shared, loss);
  const TileWalk walk(block.class_tiles(), false);
  const int thread = static_cast<int>(threadIdx.x), own_row = thread % kHalf, sharer = thread / kHalf;
  T sum[2] = {T(0), T(0)}, top[2] = {kNoLogit<T>, kNoLogit<T>}, own_logit[2] = {T(0), T(0)};
  for (int step = walk.begin; step < walk.end; ++step) {
    block.enter(walk.row_tile, step);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      T* const scores = block.similarities(half);
      const int64_t label = block.facts.rows.label[half * kHalf + own_row];
#pragma unroll 1
      for (int k = sharer; k < block.count; k += kSharers) {
        const ClassRow<T> row{scores + own_row * kClassStride + k * loss.per_class};
        const bool own = label == block.first_class + k;
        const T similarity = class_sums<T>(loss, row).similarity();
        const T logit = T(loss.la) * (similarity - (own ? T(loss.margin) : T(0)));
        add_logit(sum[half], top[half], !own, logit);
        if (own) own_logit[half] = logit;
      }
    }
  }

  __syncthreads();  // the similarities have been read
  T(*const found)[kSharers][kTile] = reinterpret_cast<T(*)[kSharers][kTile]>(shared);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int r = half * kHalf + own_row;
    found[0][sharer][r] = sum[half];
    found[1][sharer][r] = top[half];
    found[2][sharer][r] = own_logit[half];
  }
  __syncthreads();
  const int64_t row = static_cast<int64_t>(walk.row_tile) * kTile + thread;
  if (thread >= kTile || row >= p.a.count) return;
  T total = T(0), highest = kNoLogit<T>, own = T(0);
  for (int s = 0; s < kSharers; ++s) highest = max(highest, found[1][s][thread]);
  for (int s = 0; s < kSharers; ++s) {
    total = fma(found[0][s][thread], exp(found[1][s][thread] - highest), total);
    own += found[2][s][thread];
  }
  const int64_t at = blockIdx.y * p.a.count + row, length = gridDim.y * p.a.count;
  sums[at] = total;
  sums[length + at] = highest;
  sums[2 * length + at] = own;
}

template <class T>
DML_KERNEL(kThreads)
finish_kernel(const T* sums, int64_t splits, int64_t count, const RowState* state, const int32_t* centers_non_finite,
              T* losses, T* row_stats) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= count) return;
  LogSumExp others{0, kNoLogit<double>};
  double own = 0;  // one split has the own class, the others 0
  const int64_t length = splits * count;
  for (int64_t at = i; at < length; at += count) {
    others.add(sums[at], sums[length + at]);
    own += sums[2 * length + at];
  }
  const SoftTripleRow row = soft_triple_row(others, own);
  const bool good = state[i] == RowState::kept && *centers_non_finite == 0;
  losses[i] = good ? static_cast<T>(row.loss) : not_a_number<T>();
  row_stats[i] = good ? static_cast<T>(row.log_sum) : not_a_number<T>();
  row_stats[count + i] = good ? static_cast<T>(row.miss) : not_a_number<T>();
}

// The similarities of half a tile become weights times 1/||x|| of the other side; 0 for an embedding that is not there.
template <bool kOfCenters, Product P>
DML_DEVICE void weigh(const ClassBlock<P>& block, int half, typename ProductTypes<P>::Value* scores,
                      const typename ProductTypes<P>::Value* grad_loss,
                      const typename ProductTypes<P>::Value* row_stats) {
  using T = typename ProductTypes<P>::Value;
  const SoftTriple& loss = block.loss;
  const int thread = static_cast<int>(threadIdx.x), slot = thread % kHalf, r = half * kHalf + slot;
  const int64_t row = block.row0 + r, rows = block.p.a.count;
  const bool there = row < rows;
  const T scale = there ? T(loss.la) * grad_loss[row] : T(0), log_sum = there ? row_stats[row] : T(0);
  const T own_slope = there ? -scale * row_stats[rows + row] : T(0);
#pragma unroll 1
  for (int k = thread / kHalf; k < block.count; k += kSharers) {
    const int first = k * static_cast<int>(loss.per_class);
    const ClassRow<T> read{scores + slot * kClassStride + first};
    const ClassSums<T> sums = class_sums<T>(loss, read);
    const T similarity = sums.similarity();
    const bool own = block.facts.rows.label[r] == block.first_class + k;
    const T slope = own ? own_slope : other_slope(T(loss.la) * similarity, log_sum, scale);
    for (int c = 0; c < loss.per_class; ++c) {
      const T weight = center_gradient(read(c), slope, similarity, sums, loss);
      const T inverse = kOfCenters ? block.facts.rows.inverse[r] : block.facts.cols.inverse[first + c];
      read.s[c] = there ? weight * inverse : T(0);
    }
  }
  __syncthreads();
}

// One TF32 product spills beside the sums of classes, too, in the registers of half a multiprocessor.
template <Product P>
DML_KERNEL(kThreads, P == Product::tf32 ? 1 : kChoosingBlocks<P>)
embedding_weights_kernel(PairProblem<P> p, SoftTriple loss, const typename ProductTypes<P>::Value* grad_loss,
                         const typename ProductTypes<P>::Value* row_stats, Stripe stripe) {
  using T = typename ProductTypes<P>::Value;
  DML_SHARED(shared);
  ClassBlock<P> block(p, shared, loss);
  const int64_t tiles = block.class_tiles();
  const TileWalk walk(tiles, false);
  const int64_t stripe_row = static_cast<int64_t>(walk.row_tile) * kTile;
  for (int step = walk.begin; step < walk.end; ++step) {
    block.enter(stripe.first / kTile + walk.row_tile, step);
    for (int half = 0; half < 2; ++half) {
      T* const scores = block.similarities(half);
      weigh<false>(block, half, scores, grad_loss, row_stats);
      // A warp takes an embedding, so that neighbouring lanes write neighbouring weights.
      for (int r = warp_index(); r < kHalf; r += kWarps)
        for (int c = lane_index(); c < block.centers(); c += kWarp)
          store_weight(scores[r * kClassStride + c], stripe, stripe_row + half * kHalf + r, block.col0 + c);
    }
  }
  if (walk.begin >= walk.end || walk.end < tiles) return;
  for (int r = warp_index(); r < kTile; r += kWarps)
    for (int64_t at = p.b.count + lane_index(); at < stripe.padded; at += kWarp)
      store_weight(T(0), stripe, stripe_row + r, at);
}

template <Product P>
DML_KERNEL(kThreads, kBlocks<P>)
center_weights_kernel(PairProblem<P> p, SoftTriple loss, const typename ProductTypes<P>::Value* grad_loss,
                      const typename ProductTypes<P>::Value* row_stats, Stripe stripe) {
  using T = typename ProductTypes<P>::Value;
  DML_SHARED(shared);
  ClassBlock<P> block(p, shared, loss);
  const TileWalk walk((p.a.count + kTile - 1) / kTile, false);
  const int64_t first_tile = stripe.first / (block.per_tile * loss.per_class);
  for (int step = walk.begin; step < walk.end; ++step) {
    block.enter(step, first_tile + blockIdx.x);
    for (int half = 0; half < 2; ++half) {
      T* const scores = block.similarities(half);
      weigh<true>(block, half, scores, grad_loss, row_stats);
      for (int c = warp_index(); c < block.centers(); c += kWarps) {
        const int64_t stripe_row = block.col0 + c - stripe.first;
        if (stripe_row < 0) continue;  // of the stripe before this one
        for (int r = lane_index(); r < kHalf; r += kWarp)
          store_weight(scores[r * kClassStride + c], stripe, stripe_row, block.row0 + half * kHalf + r);
      }
    }
  }
}

}  // namespace

template <class T>
void soft_triple_logits(Precision precision, const PairSides<T>& sides, const SoftTriple& loss, int64_t splits, T* sums,
                        Stream stream) {
  with_product<T>(precision, [&](auto product) {
    constexpr Product P = decltype(product)::value;
    launch(logits_kernel<P>, dim3(blocks_for(sides.a.count, kTile), static_cast<unsigned>(splits)), kThreads,
           kPairShared<P>, stream, make_problem<P>(sides), loss, sums);
  });
}

template <class T>
void soft_triple_finish(const T* sums, int64_t splits, int64_t count, const RowState* state,
                        const int32_t* centers_non_finite, T* losses, T* row_stats, Stream stream) {
  launch(finish_kernel<T>, dim3(blocks_for(count, kThreads)), kThreads, 0, stream, sums, splits, count, state,
         centers_non_finite, losses, row_stats);
}

template <class T>
void soft_triple_weights(Precision precision, const PairSides<T>& sides, const SoftTriple& loss, bool of_centers,
                         const T* grad_loss, const T* row_stats, const Stripe& stripe, int64_t splits, Stream stream) {
  const int64_t per_tile = kTile / loss.per_class * loss.per_class;
  const int64_t class_tiles = (stripe.first + stripe.count + per_tile - 1) / per_tile - stripe.first / per_tile;
  const unsigned blocks = of_centers ? static_cast<unsigned>(class_tiles) : blocks_for(stripe.count, kTile);
  with_product<T>(precision, [&](auto product) {
    constexpr Product P = decltype(product)::value;
    launch(of_centers ? center_weights_kernel<P> : embedding_weights_kernel<P>,
           dim3(blocks, static_cast<unsigned>(splits)), kThreads, kPairShared<P>, stream, make_problem<P>(sides), loss,
           grad_loss, row_stats, stripe);
  });
}

#define DML_INSTANTIATE(T)                                                                                          \
  template void soft_triple_logits<T>(Precision, const PairSides<T>&, const SoftTriple&, int64_t, T*, Stream);      \
  template void soft_triple_finish<T>(const T*, int64_t, int64_t, const RowState*, const int32_t*, T*, T*, Stream); \
  template void soft_triple_weights<T>(Precision, const PairSides<T>&, const SoftTriple&, bool, const T*, const T*, \
                                       const Stripe&, int64_t, Stream);
DML_INSTANTIATE(float)
DML_INSTANTIATE(double)
#undef DML_INSTANTIATE

}  // namespace dml
