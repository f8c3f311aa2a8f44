// Quantising activations (int8, groups of 32), over the Simd of the including level.
//
// One order of the same operations, fused ones included, so every level gives the same bits.
#pragma once

#include <bit>
#include <cstdint>

#include "kernels/kernels.h"

namespace lsg {
namespace {

constexpr int kGroup = 32;
constexpr int kVectorsPerGroup = kGroup / Simd::kLanes;
constexpr uint32_t kInfinityBits = 0x7f800000;
// Below this a group is zero: its reciprocal scale would overflow, and it is noise to any sum it
// joins.
constexpr float kSmallestGroup = 0x1p-100f;

// Bits of the largest magnitude; as integers, so a NaN wins over everything on every level.
inline uint32_t LargestMagnitude(const float* x) {
  uint32_t largest = 0;
  for (int i = 0; i < kGroup; ++i) {
    const uint32_t magnitude = std::bit_cast<uint32_t>(x[i]) & 0x7fffffff;
    largest = magnitude > largest ? magnitude : largest;
  }
  return largest;
}

void QuantizeRow(const float* x, int k_tiles, int8_t* codes, float* scales, int16_t* half_sums) {
  for (int tile = 0; tile < k_tiles; ++tile, x += kGroup, codes += kGroup) {
    const uint32_t magnitude = LargestMagnitude(x);
    const float largest = std::bit_cast<float>(magnitude);
    const bool zero = largest < kSmallestGroup;
    const bool finite = magnitude < kInfinityBits;
    const Simd::F to_code = Simd::Set1(zero || !finite ? 0.0f : 127.0f / largest);
    float rounded[kGroup];
    for (int v = 0; v < kVectorsPerGroup; ++v) {
      Simd::Store(rounded + v * Simd::kLanes,
                  Simd::Round(Simd::Mul(Simd::Load(x + v * Simd::kLanes), to_code)));
    }
    int32_t sums[2] = {0, 0};
    for (int i = 0; i < kGroup; ++i) {
      // Non-finite inputs become code 0; the scale carries the NaN.
      const int32_t code = finite ? static_cast<int32_t>(rounded[i]) : 0;
      codes[i] = static_cast<int8_t>(code);
      sums[i / (kGroup / 2)] += code;
    }
    half_sums[2 * tile] = static_cast<int16_t>(sums[0]);
    half_sums[2 * tile + 1] = static_cast<int16_t>(sums[1]);
    scales[tile] = zero ? 0.0f : finite ? largest / 127.0f : std::bit_cast<float>(0x7fc00000);
  }
}

}  // namespace
}  // namespace lsg
