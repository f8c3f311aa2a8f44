// Quantising activations to int8, over the Simd of the including level.
//
// One order of the same operations, fused ones included, so every level gives the same bits.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>

#include "kernels/kernels.h"

namespace lsg {
namespace {

constexpr int kGroup = 32;
constexpr uint32_t kInfinityBits = 0x7f800000;
// Below this a group is zero: its reciprocal scale would overflow, and it is noise to any sum it
// joins.
constexpr float kSmallestGroup = 0x1p-100f;

// Int8 codes of `count` inputs that share the scale which it returns, and each_code(i, codes) for
// the lanes from input i on.
template <typename EachCode>
float QuantizeGroup(const float* x, int count, int8_t* codes, EachCode&& each_code) {
  // As integers, so a NaN wins over everything on every level.
  Simd::I largest_bits = Simd::ZeroBits();
  for (int i = 0; i < count; i += Simd::kLanes) {
    const Simd::I bits = Simd::And(Simd::LoadBits(x + i), Simd::Set1Bits(0x7fffffff));
    largest_bits = Simd::MaxInt(largest_bits, bits);
  }
  const auto magnitude = static_cast<uint32_t>(Simd::LargestInt(largest_bits));
  const float largest = std::bit_cast<float>(magnitude);
  const bool finite = magnitude < kInfinityBits;
  if (!finite || largest < kSmallestGroup) {
    // Codes that mean nothing; the scale carries the NaN.
    std::memset(codes, 0, count);
    return finite ? 0.0f : std::bit_cast<float>(0x7fc00000);
  }
  const Simd::F to_code = Simd::Set1(127.0f / largest);
  for (int i = 0; i < count; i += Simd::kLanes) {
    const Simd::I code = Simd::ToInt(Simd::Round(Simd::Mul(Simd::Load(x + i), to_code)));
    Simd::StoreBytes(codes + i, code);
    each_code(i, code);
  }
  return largest / 127.0f;
}

void QuantizeRow(const float* x, int k_tiles, int8_t* codes, float* scales, int16_t* half_sums) {
  for (int tile = 0; tile < k_tiles; ++tile, x += kGroup, codes += kGroup, half_sums += 2) {
    Simd::I sums[2] = {Simd::ZeroBits(), Simd::ZeroBits()};
    scales[tile] = QuantizeGroup(x, kGroup, codes, [&](int i, Simd::I code) {
      Simd::I& sum = sums[i / (kGroup / 2)];
      sum = Simd::AddInt(sum, code);
    });
    for (int half = 0; half < 2; ++half) {
      half_sums[half] = static_cast<int16_t>(Simd::SumInt(sums[half]));
    }
  }
}

}  // namespace
}  // namespace lsg
