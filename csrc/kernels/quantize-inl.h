// Quantising activations (int8, groups of 32) and weights (int4, groups of 32), over the Simd of
// the including level.
//
// One order of the same operations, fused ones included, so every level, and every machine that
// converts a model, gives the same bits.
#pragma once

#include <bit>
#include <cstdint>

#include "base/float16.h"
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

// The value with the largest magnitude; of two opposite ones, the negative.
inline float Extreme(const float* x) {
  uint32_t best = 0;
  for (int i = 0; i < kGroup; ++i) {
    const uint32_t key = std::rotl(std::bit_cast<uint32_t>(x[i]), 1);
    best = key > best ? key : best;
  }
  return std::bit_cast<float>(std::rotr(best, 1));
}

void QuantizeRow(const float* x, int k_tiles, int8_t* codes, float* scales, int32_t* sums) {
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
    int32_t sum = 0;
    for (int i = 0; i < kGroup; ++i) {
      // Non-finite inputs become code 0; the scale carries the NaN.
      const int32_t code = finite ? static_cast<int32_t>(rounded[i]) : 0;
      codes[i] = static_cast<int8_t>(code);
      sum += code;
    }
    sums[tile] = sum;
    scales[tile] = zero ? 0.0f : finite ? largest / 127.0f : std::bit_cast<float>(0x7fc00000);
  }
}

// Candidate scales map the extreme weight to -(6 + c / 4), c = 0 … 15: from "a quarter of the range
// unused" to "the extreme clipped by a fifth". -8 itself is candidate 8.
constexpr int kCandidates = 16;

// The least-squares scale over all candidate roundings: codes q fixed, sum (w - s q)² is least at s
// = Σwq / Σq², where it is Σw² - (Σwq)² / Σq²; so the best candidate is the one with the largest
// (Σwq)² / Σq². Lanes are candidates.
inline float SearchScale(const float* weights, float extreme) {
  constexpr int kVectors = kCandidates / Simd::kLanes;
  float inverse[kCandidates];
  const float unit = -1.0f / extreme;
  for (int c = 0; c < kCandidates; ++c) inverse[c] = (6.0f + 0.25f * static_cast<float>(c)) * unit;
  Simd::F inv[kVectors], wq[kVectors], qq[kVectors];
  for (int v = 0; v < kVectors; ++v) {
    inv[v] = Simd::Load(inverse + v * Simd::kLanes);
    wq[v] = qq[v] = Simd::Zero();
  }
  const Simd::F least = Simd::Set1(-8.0f), most = Simd::Set1(7.0f);
  for (int i = 0; i < kGroup; ++i) {
    const Simd::F w = Simd::Set1(weights[i]);
    for (int v = 0; v < kVectors; ++v) {
      const Simd::F q = Simd::Max(least, Simd::Min(most, Simd::Round(Simd::Mul(w, inv[v]))));
      wq[v] = Simd::Fma(w, q, wq[v]);
      qq[v] = Simd::Fma(q, q, qq[v]);
    }
  }
  float gains[kCandidates], scales[kCandidates];
  for (int v = 0; v < kVectors; ++v) {
    const Simd::F least_squares = Simd::Div(wq[v], qq[v]);
    Simd::Store(scales + v * Simd::kLanes, least_squares);
    Simd::Store(gains + v * Simd::kLanes, Simd::Mul(least_squares, wq[v]));
  }
  int best = 0;
  for (int c = 1; c < kCandidates; ++c) best = gains[c] > gains[best] ? c : best;
  return scales[best];
}

// Four interleaved sums, the same four on every level, so the additions need not wait for each
// other; as a vector of four, which every x86-64 has.
inline float SumOf(const float* x) {
  typedef float Four __attribute__((vector_size(16), aligned(4)));
  Four sums = {};
  for (int i = 0; i < kGroup; i += 4) sums += *reinterpret_cast<const Four*>(x + i);
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

// Returns the squared error; NaN when a weight is not finite.
inline float QuantizeInt4Group(const float* weights, bool search, uint8_t* codes,
                               uint16_t* scale_bits) {
  const float extreme = Extreme(weights);
  const uint32_t magnitude = std::bit_cast<uint32_t>(extreme) & 0x7fffffff;
  const bool zero = std::bit_cast<float>(magnitude) < kSmallestGroup;
  if (magnitude >= kInfinityBits) return std::bit_cast<float>(0x7fc00000);
  const float wanted = zero ? 0.0f : search ? SearchScale(weights, extreme) : extreme * -0.125f;
  *scale_bits = F32ToBf16(wanted);
  const float scale = Bf16ToF32(*scale_bits);
  const Simd::F inverse = Simd::Set1(zero ? 0.0f : 1.0f / scale);
  const Simd::F scales = Simd::Set1(scale);
  const Simd::F least = Simd::Set1(-8.0f), most = Simd::Set1(7.0f);
  int32_t q[kGroup];
  float squares[kGroup];
  for (int at = 0; at < kGroup; at += Simd::kLanes) {
    const Simd::F w = Simd::Load(weights + at);
    const Simd::F code = Simd::Max(least, Simd::Min(most, Simd::Round(Simd::Mul(w, inverse))));
    Simd::StoreBits(q + at, Simd::AddInt(Simd::ToInt(code), Simd::Set1Bits(8)));
    const Simd::F error = Simd::Sub(w, Simd::Mul(code, scales));
    Simd::Store(squares + at, Simd::Mul(error, error));
  }
  for (int i = 0; i < kGroup; ++i) codes[i] = static_cast<uint8_t>(q[i]);
  return SumOf(squares);
}

RowError QuantizeInt4Row(const uint16_t* bits, bool is_f16, int cols, bool search, uint8_t* codes,
                         uint16_t* scales) {
  RowError total;
  for (int at = 0; at < cols; at += kGroup, ++scales) {
    const int count = cols - at < kGroup ? cols - at : kGroup;
    uint16_t tail[kGroup] = {};
    const uint16_t* group = bits + at;
    if (count < kGroup) {
      for (int i = 0; i < count; ++i) tail[i] = group[i];
      group = tail;
    }
    float weights[kGroup], squares[kGroup];
    if (is_f16) {
      // Infinities and NaN do not survive LoadF16 on every level.
      for (int i = 0; i < kGroup; ++i) weights[i] = F16ToF32(group[i]);
    } else {
      for (int i = 0; i < kGroup; i += Simd::kLanes) {
        Simd::Store(weights + i, Simd::FromBits(Simd::ShiftLeft<16>(Simd::LoadU16(group + i))));
      }
    }
    for (int i = 0; i < kGroup; i += Simd::kLanes) {
      const Simd::F w = Simd::Load(weights + i);
      Simd::Store(squares + i, Simd::Mul(w, w));
    }
    total.squared_norm += SumOf(squares);
    uint8_t tail_codes[kGroup];
    total.squared_error +=
        QuantizeInt4Group(weights, search, count < kGroup ? tail_codes : codes + at, scales);
    if (count < kGroup) {
      for (int i = 0; i < count; ++i) codes[at + i] = tail_codes[i];
    }
  }
  return total;
}

}  // namespace
}  // namespace lsg
