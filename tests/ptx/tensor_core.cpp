// mma and ldmatrix. Tensor cores add exact products, cut off at a few bits beyond those of float32: "Numerical behavior
// of NVIDIA tensor cores", Fasi, Higham, Mikaitis, Pranesh, 2021.

#include <algorithm>
#include <cmath>

#include "ptx/block.h"
#include "ptx/half.h"
#include "ptx/lanes.h"

namespace ptx {
namespace {

constexpr int kRows = 16, kColumns = 8, kMostDepth = 16, kFloatBits = 24;

float toward_zero(double x) {
  const auto nearest = static_cast<float>(x);
  return std::fabs(static_cast<double>(nearest)) > std::fabs(x) ? std::nextafterf(nearest, 0.0f) : nearest;
}

// The sum of numbers that are cut off where the last bits of the largest are.
float aligned_sum(const double* products, int count, float accumulator, int extra_bits) {
  double largest = std::fabs(accumulator), plain = accumulator;
  for (int k = 0; k < count; ++k) {
    largest = std::max(largest, std::fabs(products[k]));
    plain += products[k];
  }
  if (!std::isfinite(plain) || largest == 0) return static_cast<float>(plain);
  const int last_bit = std::ilogb(largest) - (kFloatBits - 1) - extra_bits;
  const double unit = std::ldexp(1.0, -last_bit);
  double sum = std::trunc(accumulator * unit);
  for (int k = 0; k < count; ++k) sum += std::trunc(products[k] * unit);
  return toward_zero(std::ldexp(sum, last_bit));
}

enum class Element : int64_t { half, brain, tf32 };

float element(uint32_t word, int part, Element kind) {
  if (kind == Element::tf32) return __builtin_bit_cast(float, word & 0xffffe000u);
  const auto bits = static_cast<uint16_t>(word >> 16 * part);
  return kind == Element::brain ? brain_float(bits) : half_float(bits);
}

struct Fragments {
  double a[kRows][kMostDepth], b[kColumns][kMostDepth];
  float c[kRows][kColumns];
};

// Lane 4g + t holds, of a register, rows (of a) or columns (of b) g and the elements from t * per_word on; every second
// register of a is for rows 8 further down, the next ones for elements further on.
void read_operands(const Warp& warp, const Instruction& in, Element kind, size_t a_words, Fragments& f) {
  const int per_word = kind == Element::tf32 ? 1 : 2;
  for (size_t r = 0; r < a_words * 3 / 2; ++r) {
    const bool is_a = r < a_words;
    const int word = static_cast<int>(is_a ? r : r - a_words);
    uint32_t buffer[kLanes];
    const uint32_t* words = warp.get(in.from[r], buffer);
    for (int l = 0; l < kLanes; ++l)
      for (int part = 0; part < per_word; ++part) {
        const int k = l % 4 * per_word + part + 4 * per_word * (is_a ? word / 2 : word);
        (is_a ? f.a[l / 4 + 8 * (word % 2)] : f.b[l / 4])[k] = element(words[l], part, kind);
      }
  }
}

// Lane 4g + t has rows g and g + 8, columns 2t and 2t + 1.
template <class Act>
void for_accumulators(Act&& act) {
  for (int i = 0; i < 4; ++i)
    for (int l = 0; l < kLanes; ++l) act(i, l, l / 4 + 8 * (i / 2), l % 4 * 2 + i % 2);
}

void multiply(Warp& warp, const Instruction& in, Mask active) {
  if (!warp.together(active, kAllLanes)) return;
  const auto kind = static_cast<Element>(in.number);
  const size_t a_words = (in.from.size() - 4) * 2 / 3;
  const int depth = static_cast<int>(a_words / 2) * (kind == Element::tf32 ? 4 : 8);
  Fragments f;
  read_operands(warp, in, kind, a_words, f);
  float sums[4][kLanes], buffer[kLanes];
  for (size_t i = 0; i < 4; ++i) memcpy(sums[i], warp.get(in.from[a_words * 3 / 2 + i], buffer), sizeof(buffer));
  for_accumulators([&](int i, int l, int row, int column) { f.c[row][column] = sums[i][l]; });
  const TensorCores& cores = warp.block().launch().tensor_cores;
  for (int row = 0; row < kRows; ++row)
    for (int column = 0; column < kColumns; ++column)
      for (int k = 0; k < depth; k += cores.together) {
        const int count = std::min(cores.together, depth - k);
        double products[kMostDepth];
        for (int j = 0; j < count; ++j) products[j] = f.a[row][k + j] * f.b[column][k + j];
        f.c[row][column] = aligned_sum(products, count, f.c[row][column], cores.extra_bits);
      }
  for_accumulators([&](int i, int l, int row, int column) { sums[i][l] = f.c[row][column]; });
  for (size_t i = 0; i < 4; ++i) warp.put(in.to[i], sums[i], active);
}

// Of float64, (8, 4) by (4, 8): each product and sum is rounded as a multiply-add is.
void multiply_doubles(Warp& warp, const Instruction& in, Mask active) {
  if (!warp.together(active, kAllLanes)) return;
  double buffer[4][kLanes], sums[2][kLanes];
  const double *a = warp.get(in.from[0], buffer[0]), *b = warp.get(in.from[1], buffer[1]);
  for (size_t i = 0; i < 2; ++i) {
    const double* c = warp.get(in.from[2 + i], buffer[2 + i]);
    for (size_t l = 0; l < kLanes; ++l) {
      sums[i][l] = c[l];
      for (size_t k = 0; k < 4; ++k) sums[i][l] = std::fma(a[l / 4 * 4 + k], b[(l % 4 * 2 + i) * 4 + k], sums[i][l]);
    }
  }
  for (size_t i = 0; i < 2; ++i) warp.put(in.to[i], sums[i], active);
}

// {%d...}, {%a...}, {%b...}, {%c...}
void take_fragments(Assembler& a, const Statement& s, Instruction& in, size_t a_words, size_t b_words, size_t c_words,
                    uint8_t bytes) {
  s.expect_operands(4, 4);
  for (const std::string& name : a.items(s.operand(0))) in.to.push_back(a.result(s, name));
  const size_t wanted[] = {a_words, b_words, c_words};
  for (size_t k = 0; k < 3; ++k) {
    const auto names = a.items(s.operand(k + 1));
    if (names.size() != wanted[k]) s.unknown();
    for (const std::string& name : names) in.from.push_back(a.value(s, name, bytes));
  }
  if (in.to.size() != c_words) s.unknown();
}

void decode_multiply(Assembler& a, Statement& s, Instruction& in) {
  for (const char* expected : {"sync", "aligned", "row", "col"})
    if (!s.take(expected)) s.unknown();
  const std::string shape = s.take_one({"m16n8k4", "m16n8k8", "m16n8k16", "m8n8k4"});
  if (s.modifiers.size() != 4 || s.modifiers[1] != s.modifiers[2] || s.modifiers[0] != s.modifiers[3]) s.unknown();
  const std::string result = s.modifiers[0], type = s.modifiers[1];
  s.modifiers.clear();
  if (shape == "m8n8k4" && result == "f64" && type == "f64") {
    take_fragments(a, s, in, 1, 1, 2, 8);
    in.run = multiply_doubles;
    return;
  }
  if (!shape.starts_with("m16") || result != "f32" || (type != "f16" && type != "bf16" && type != "tf32")) s.unknown();
  const Element kind = type == "f16" ? Element::half : type == "bf16" ? Element::brain : Element::tf32;
  in.number = static_cast<int64_t>(kind);
  const size_t a_words = std::stoul(shape.substr(shape.find('k') + 1)) / (kind == Element::tf32 ? 2 : 4);
  take_fragments(a, s, in, a_words, a_words / 2, 4, 4);
  in.run = multiply;
}

// 8 x 8 matrices of 16 bits: lane 8m + r brings the address of row r of matrix m, and takes two neighbours of each; of
// a transposed one, of a column.
template <bool transposed>
void load(Warp& warp, const Instruction& in, Mask active) {
  if (!warp.together(active, kAllLanes)) return;
  uint64_t buffer[kLanes];
  const uint64_t* addresses = warp.get(in.from[0], buffer);
  for (size_t m = 0; m < in.to.size(); ++m) {
    uint16_t rows[8][8];
    for (size_t r = 0; r < 8; ++r) {
      const int lane = static_cast<int>(m * 8 + r);
      memcpy(rows[r], warp.memory(in.space, addresses[lane] + static_cast<uint64_t>(in.offsets[0]), 16, lane), 16);
    }
    uint32_t result[kLanes];
    for (int l = 0; l < kLanes; ++l) {
      const int k = l / 4, pair = l % 4 * 2;
      const uint32_t low = transposed ? rows[pair][k] : rows[k][pair],
                     high = transposed ? rows[pair + 1][k] : rows[k][pair + 1];
      result[l] = high << 16 | low;
    }
    warp.put(in.to[m], result, active);
  }
}

void decode_load(Assembler& a, Statement& s, Instruction& in) {
  for (const char* expected : {"sync", "aligned", "m8n8", "b16"})
    if (!s.take(expected)) s.unknown();
  const std::string count = s.take_one({"x1", "x2", "x4"});
  const bool transposed = s.take("trans");
  in.space = take_shared(s) ? Space::shared : Space::generic;
  s.expect_operands(2, 2);
  for (const std::string& name : a.items(s.operand(0))) in.to.push_back(a.result(s, name));
  if (count.empty() || in.to.size() != static_cast<size_t>(count[1] - '0')) s.unknown();
  in.from = {a.address(s, s.operand(1), in.space, in.offsets[0])};
  in.run = transposed ? load<true> : load<false>;
}

}  // namespace

void add_tensor_core_decoders(Decoders& all) {
  all["mma"] = decode_multiply;
  all["ldmatrix"] = decode_load;
}

}  // namespace ptx
