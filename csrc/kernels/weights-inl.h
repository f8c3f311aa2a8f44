// What the weight formats share: the weights of a group, and what a row of groups has lost.
#pragma once

#include <bit>
#include <cmath>
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

// The value with the largest magnitude; of two opposite ones, the negative.
inline float Extreme(const float* x) {
  uint32_t best = 0;
  for (int i = 0; i < kWeightGroup; ++i) {
    const uint32_t key = std::rotl(std::bit_cast<uint32_t>(x[i]), 1);
    best = key > best ? key : best;
  }
  return std::bit_cast<float>(std::rotr(best, 1));
}

// A group's weights, each rounded once to a float: where they are, or made in `room`.
inline const float* WeightsOf(const ExactRow& row, int group, float* room) {
  const float* values = row.values + group * kWeightGroup;
  if (row.plain) return values;
  for (int i = 0; i < kWeightGroup; i += Simd::kLanes) {
    const Simd::F factor = Simd::Set1(row.factors[(group * kWeightGroup + i) / kFactorGroup]);
    Simd::Store(room + i, Simd::Mul(Simd::Load(values + i), factor));
  }
  return room;
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

// Groups that take a step together. A group's scale waits for its largest weight and for a
// division; with the steps apart, those of other groups go on meanwhile.
constexpr int kGroupsAtOnce = 16;

// scale_of(group, weights, extreme): what a group is scaled with, in a type of the caller's;
// `extreme` is the weight of largest magnitude. encode(weights, scale, codes, stored): its codes
// and what they are worth.
template <typename Code, typename ScaleOf, typename Encode>
RowError QuantizeGroups(const ExactRow& row, const QuantizedRow& out, ScaleOf&& scale_of,
                        Encode&& encode) {
  RowError total;
  for (int begin = 0; begin < row.groups; begin += kGroupsAtOnce) {
    const int count = row.groups - begin < kGroupsAtOnce ? row.groups - begin : kGroupsAtOnce;
    float room[kGroupsAtOnce][kWeightGroup], extremes[kGroupsAtOnce];
    const float* weights[kGroupsAtOnce];
    decltype(scale_of(0, room[0], 0.0f)) scales[kGroupsAtOnce];
    for (int i = 0; i < count; ++i) {
      weights[i] = WeightsOf(row, begin + i, room[i]);
      extremes[i] = Extreme(weights[i]);
    }
    for (int i = 0; i < count; ++i) scales[i] = scale_of(begin + i, weights[i], extremes[i]);
    for (int i = 0; i < count; ++i) {
      float stored[kWeightGroup];
      Code codes[kWeightGroup];
      encode(weights[i], scales[i], codes, stored);
      AddError(row, begin + i, weights[i], stored, UnitOf(std::fabs(extremes[i])), total);
      const int first = (begin + i) * kWeightGroup;
      auto* to = reinterpret_cast<Code*>(out.codes) + first;
      const int left = out.cols - first;
      if (left >= kWeightGroup) {
        std::memcpy(to, codes, sizeof codes);
      } else {
        std::memcpy(to, codes, left * sizeof(Code));
      }
    }
  }
  return total;
}

// A group's scale, and what its weights are multiplied with.
struct GroupScale {
  float value, inverse;
};

inline void StoreScale(const QuantizedRow& out, int group, uint16_t bits) {
  std::memcpy(out.scales + 2 * group, &bits, sizeof bits);
}

}  // namespace
}  // namespace lsg
