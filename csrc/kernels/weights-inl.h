// What the weight formats share: the weights of a group, and what a row of groups has lost.
#pragma once

#include <bit>
#include <cstring>

#include "kernels/expand-inl.h"
#include "kernels/weight_kernels.h"

namespace lsg {
namespace {

// Below this a group is zero: its reciprocal scale would overflow, and it is noise to any sum it
// joins.
constexpr float kSmallestWeight = 0x1p-100f;

// A power of two near the largest magnitude of a group, and its inverse: in units of it no square
// overflows, and none that counts vanishes.
struct Unit {
  float inverse;
  double square;
};

inline Unit UnitOf(float largest) {
  const int exponent = static_cast<int>(std::bit_cast<uint32_t>(largest) >> 23);
  const int clamped = exponent < 1 ? 1 : exponent > 253 ? 253 : exponent;
  const double unit = static_cast<double>(PowerOfTwo(clamped - 127));
  return {PowerOfTwo(127 - clamped), unit * unit};
}

// Σx² of a group. Four interleaved sums, the same four on every level, so the additions need not
// wait for each other; as a vector of four, which every x86-64 has.
inline double SumOfSquares(const float* x, const Unit& unit) {
  typedef float Four __attribute__((vector_size(16), aligned(4)));
  float squares[kWeightGroup];
  for (int i = 0; i < kWeightGroup; i += Simd::kLanes) {
    const Simd::F scaled = Simd::Mul(Simd::Load(x + i), Simd::Set1(unit.inverse));
    Simd::Store(squares + i, Simd::Mul(scaled, scaled));
  }
  Four sums = {};
  for (int i = 0; i < kWeightGroup; i += 4) sums += *reinterpret_cast<const Four*>(squares + i);
  return static_cast<double>((sums[0] + sums[1]) + (sums[2] + sums[3])) * unit.square;
}

// The largest of |x|, by its bits, which compare as integers.
template <int kCount>
float LargestMagnitudeOf(const float* x) {
  uint32_t largest = 0;
  for (int i = 0; i < kCount; ++i) {
    const uint32_t magnitude = std::bit_cast<uint32_t>(x[i]) & 0x7fffffffu;
    largest = magnitude > largest ? magnitude : largest;
  }
  return std::bit_cast<float>(largest);
}

// A group's weights, each rounded once to a float.
inline void WeightsOf(const ExactRow& row, int group, float* weights) {
  for (int i = 0; i < kWeightGroup; i += Simd::kLanes) {
    const int at = group * kWeightGroup + i;
    const Simd::F factor = Simd::Set1(row.factors[at / kFactorGroup]);
    Simd::Store(weights + i, Simd::Mul(Simd::Load(row.values + at), factor));
  }
}

// Adds a group's squares: the fused product is exact until the one rounding of the difference.
inline void AddError(const ExactRow& row, int group, const float* weights, const float* stored,
                     const Unit& unit, RowError& total) {
  float errors[kWeightGroup];
  for (int i = 0; i < kWeightGroup; i += Simd::kLanes) {
    const int at = group * kWeightGroup + i;
    const Simd::F minus = Simd::Set1(-row.factors[at / kFactorGroup]);
    Simd::Store(errors + i, Simd::Fma(Simd::Load(row.values + at), minus, Simd::Load(stored + i)));
  }
  total.squared_error += SumOfSquares(errors, unit);
  total.squared_norm += SumOfSquares(weights, unit);
}

// quantize(group, weights, largest, codes, stored): a group's codes and what they are worth;
// `largest` is the largest magnitude of its weights.
template <typename Code, typename Quantize>
RowError QuantizeGroups(const ExactRow& row, const QuantizedRow& out, Quantize&& quantize) {
  RowError total;
  for (int group = 0; group < row.groups; ++group) {
    float weights[kWeightGroup], stored[kWeightGroup];
    Code codes[kWeightGroup];
    WeightsOf(row, group, weights);
    const float largest = LargestMagnitudeOf<kWeightGroup>(weights);
    quantize(group, weights, largest, codes, stored);
    AddError(row, group, weights, stored, UnitOf(largest), total);
    const int first = group * kWeightGroup;
    auto* to = reinterpret_cast<Code*>(out.codes) + first;
    const int left = out.cols - first;
    if (left >= kWeightGroup) {
      std::memcpy(to, codes, sizeof codes);
    } else {
      std::memcpy(to, codes, left * sizeof(Code));
    }
  }
  return total;
}

inline void StoreScale(const QuantizedRow& out, int group, uint16_t bits) {
  std::memcpy(out.scales + 2 * group, &bits, sizeof bits);
}

}  // namespace
}  // namespace lsg
