// Weights to int4 in groups of 32 with a searched bf16 scale, over the Simd of the including level.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

#include "base/float16.h"
#include "kernels/weights-inl.h"

namespace lsg {
namespace {

// Candidate scales map the extreme weight to -(6 + c / 4), c = 0 … 15: from "a quarter of the range
// unused" to "the extreme clipped by a fifth". -8 itself is candidate 8.
constexpr int kCandidates = 16;
// Fixed-point weights: the extreme becomes -2^13, so that (w · (24 + c)) >> 15 is the code of w. An
// error of 2^-14 of the extreme moves a rounding by a thousandth of a code, and a scale by much
// less than its own rounding to bf16.
constexpr int kFixedBits = 13;
// Of the candidates: 24 + c twice, for two weights, and the reverse order.
alignas(64) constexpr uint32_t kMultipliers[kCandidates] = {
    0x180018, 0x190019, 0x1a001a, 0x1b001b, 0x1c001c, 0x1d001d, 0x1e001e, 0x1f001f,
    0x200020, 0x210021, 0x220022, 0x230023, 0x240024, 0x250025, 0x260026, 0x270027};
alignas(64) constexpr uint32_t kOrder[kCandidates] = {15, 14, 13, 12, 11, 10, 9, 8,
                                                      7,  6,  5,  4,  3,  2,  1, 0};

// The least-squares scale over all candidate roundings: codes q fixed, sum (w - s q)² is least at s
// = Σwq / Σq², where it is Σw² - (Σwq)² / Σq²; so the best candidate is the one with the largest
// (Σwq)² / Σq². A lane is a candidate and two weights, in 16-bit integers; the sums are exact.
inline float SearchScale(const float* weights, float extreme) {
  constexpr int kVectors = kCandidates / Simd::kLanes;
  const float unit = -static_cast<float>(1 << kFixedBits) / extreme;
  constexpr int kPairs = kWeightGroup / 2;
  static_assert(kPairs % Simd::kLanes == 0 && kCandidates % Simd::kLanes == 0);
  int32_t pairs[kPairs];
  for (int i = 0; i < kPairs; i += Simd::kLanes) {
    const auto fixed = [&](int at) {
      return Simd::ToInt(Simd::Round(Simd::Mul(Simd::Load(weights + at), Simd::Set1(unit))));
    };
    // Which two weights share a lane does not matter to a sum.
    const Simd::I low = Simd::And(fixed(i), Simd::Set1Bits(0xffff));
    Simd::StoreBits(pairs + i, Simd::Or(low, Simd::ShiftLeft<16>(fixed(kPairs + i))));
  }
  Simd::I factor[kVectors], wq[kVectors], qq[kVectors];
  for (int v = 0; v < kVectors; ++v) {
    factor[v] = Simd::LoadBits(kMultipliers + v * Simd::kLanes);
    wq[v] = qq[v] = Simd::ZeroBits();
  }
  const Simd::I least = Simd::Set1Bits(0xfff8fff8u), most = Simd::Set1Bits(0x00070007u);
// Unrolled, the products would wait in memory for their sums.
#pragma GCC unroll 2
  for (int i = 0; i < kPairs; ++i) {
    const Simd::I w = Simd::Broadcast4(reinterpret_cast<const int8_t*>(pairs + i));
    for (int v = 0; v < kVectors; ++v) {
      const Simd::I q = Simd::Max16(least, Simd::Min16(most, Simd::MulRound16(w, factor[v])));
      wq[v] = Simd::Dot16(wq[v], w, q);
      qq[v] = Simd::Dot16(qq[v], q, q);
    }
  }
  // The last four bits of a gain say whose it is, the first of equal ones winning.
  typedef float Four __attribute__((vector_size(16), aligned(4)));
  float ratios[kCandidates], gains[kCandidates];
  for (int v = 0; v < kVectors; ++v) {
    const Simd::F sum = Simd::FromInt(wq[v]);
    const Simd::F ratio = Simd::Div(sum, Simd::FromInt(qq[v]));
    Simd::Store(ratios + v * Simd::kLanes, ratio);
    const Simd::I gain = Simd::And(Simd::Bits(Simd::Mul(ratio, sum)), Simd::Set1Bits(~15u));
    Simd::Store(gains + v * Simd::kLanes,
                Simd::FromBits(Simd::Or(gain, Simd::LoadBits(kOrder + v * Simd::kLanes))));
  }
  Four best = *reinterpret_cast<const Four*>(gains);
  for (int c = 4; c < kCandidates; c += 4) {
    const Four gain = *reinterpret_cast<const Four*>(gains + c);
    best = gain > best ? gain : best;
  }
  const float left = best[0] > best[1] ? best[0] : best[1];
  const float right = best[2] > best[3] ? best[2] : best[3];
  const uint32_t bits = std::bit_cast<uint32_t>(left > right ? left : right);
  return ratios[15 - (bits & 15)] * (extreme * -PowerOfTwo(-kFixedBits));
}

RowError QuantizeInt4(const ExactRow& row, bool search, const QuantizedRow& out) {
  const auto scale_of = [&](int group, const float* weights, float extreme) -> GroupScale {
    const bool zero = std::fabs(extreme) < kSmallestWeight;
    const float wanted = zero ? 0.0f : search ? SearchScale(weights, extreme) : extreme * -0.125f;
    const uint16_t bits = F32ToBf16(wanted);
    StoreScale(out, group, bits);
    const float scale = Bf16ToF32(bits);
    return {scale, zero ? 0.0f : 1.0f / scale};
  };
  // Codes are q + 8.
  const auto encode = [](const float* weights, GroupScale scale, uint8_t* codes, float* stored) {
    const Simd::F inverse = Simd::Set1(scale.inverse), scales = Simd::Set1(scale.value);
    const Simd::F least = Simd::Set1(-8.0f), most = Simd::Set1(7.0f);
    int32_t q[kWeightGroup];
    for (int at = 0; at < kWeightGroup; at += Simd::kLanes) {
      const Simd::F w = Simd::Load(weights + at);
      const Simd::F code = Simd::Max(least, Simd::Min(most, Simd::Round(Simd::Mul(w, inverse))));
      Simd::StoreBits(q + at, Simd::AddInt(Simd::ToInt(code), Simd::Set1Bits(8)));
      Simd::Store(stored + at, Simd::Mul(code, scales));
    }
    for (int i = 0; i < kWeightGroup; ++i) codes[i] = static_cast<uint8_t>(q[i]);
  };
  return QuantizeGroups<uint8_t>(row, out, scale_of, encode);
}

}  // namespace
}  // namespace lsg
