#pragma once
// Numbers of 16 bits.

#include <stdint.h>

#include <cmath>

#include "ptx/program.h"

namespace ptx {

inline float brain_float(uint16_t bits) { return __builtin_bit_cast(float, static_cast<uint32_t>(bits) << 16); }

inline float half_float(uint16_t bits) {
  const int exponent = bits >> 10 & 31, fraction = bits & 1023;
  const float magnitude = exponent == 31  ? (fraction != 0 ? NAN : INFINITY)
                          : exponent == 0 ? std::ldexp(static_cast<float>(fraction), -24)
                                          : std::ldexp(static_cast<float>(1024 + fraction), exponent - 25);
  return (bits >> 15 & 1) != 0 ? -magnitude : magnitude;
}

// Of |x| in units of the last place: a whole number and what is cut off.
inline double whole_units(double units, bool negative, Rounding rounding) {
  if (rounding == Rounding::nearest) return std::nearbyint(units);
  return rounding == Rounding::zero || (rounding == Rounding::down) != negative ? std::floor(units) : std::ceil(units);
}

// With so many bits of fraction and the exponent of the smallest normal number.
inline uint16_t to_sixteen_bits(float x, Rounding rounding, int fraction_bits, int least_exponent) {
  const auto sign = static_cast<uint16_t>(std::signbit(x) ? 0x8000 : 0);
  const uint16_t infinity = static_cast<uint16_t>(0x7fff >> fraction_bits << fraction_bits);
  if (x != x) return 0x7fff;
  if (std::isinf(x)) return sign | infinity;
  if (x == 0) return sign;
  const double magnitude = std::fabs(static_cast<double>(x));
  const int exponent = std::max(std::ilogb(magnitude), least_exponent);
  const double units = whole_units(std::ldexp(magnitude, fraction_bits - exponent), sign != 0, rounding);
  // A fraction that overflows goes on in the exponent, and at the end of that in infinity.
  const auto bits = static_cast<uint32_t>(units) + (static_cast<uint32_t>(exponent - least_exponent) << fraction_bits);
  const bool toward_zero = rounding == Rounding::zero || (rounding == Rounding::down) != (sign != 0);
  const uint32_t most = rounding != Rounding::nearest && toward_zero ? infinity - 1u : infinity;
  return sign | static_cast<uint16_t>(bits < most ? bits : most);
}
inline uint16_t to_half(float x, Rounding rounding) { return to_sixteen_bits(x, rounding, 10, -14); }
inline uint16_t to_brain(float x, Rounding rounding) { return to_sixteen_bits(x, rounding, 7, -126); }

}  // namespace ptx
