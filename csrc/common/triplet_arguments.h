#pragma once
// The options of triplet and what its backward is given, checked.

#include "common/pair_arguments.h"
#include "common/tile_schedule.h"

namespace dml {

struct TripletOptions {
  std::string negative;
  double margin;
  bool soft;

  void check(const char* op) const { check_choice(op, "negative", negative, {"all", "semihard"}); }
  bool semihard() const { return negative == "semihard"; }
  // Shape of tile_active, which only the triplets with all negatives have.
  int64_t tiles(int64_t rows) const { return semihard() ? 0 : (rows + kTile - 1) / kTile; }
};

inline void check_triplet_state(const char* op, const PairArguments& a, const TripletOptions& o, const Tensor& grad,
                                const Tensor& active, bool need_grad_ref) {
  check_vector(op, "grad_loss_sum", grad, a.queries(), compute_type(a.embeddings));
  DML_CHECK(active.dim() == 2 && active.size(0) == o.tiles(a.queries()) && active.size(1) == o.tiles(a.gallery()), op,
            "tile_active", o.semihard() ? "(0, 0)" : "(ceil(M/128), ceil(N/128))", active);
  DML_CHECK(active.scalar_type() == ScalarType::Byte, op, "tile_active", "uint8", active.scalar_type());
  DML_CHECK(!a.self() || !need_grad_ref, op, "need_grad_ref", "false without ref_emb", std::string("true"));
}

}  // namespace dml
