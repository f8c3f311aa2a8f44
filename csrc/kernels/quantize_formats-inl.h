// Weights to int8, fp8, mxfp4, nvfp4, bf16 and f16, over the Simd of the including level.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "base/float16.h"
#include "kernels/small_floats-inl.h"
#include "kernels/weights-inl.h"

namespace lsg {
namespace {

RowError QuantizeInt8(const ExactRow& row, const QuantizedRow& out) {
  const auto scale_of = [&](int group, const float*, float extreme) -> GroupScale {
    const float largest = std::fabs(extreme);
    const bool zero = largest < kSmallestWeight;
    const uint16_t bits = zero ? 0 : F32ToBf16(largest / 127.0f);
    StoreScale(out, group, bits);
    const float scale = Bf16ToF32(bits);
    return {scale, zero ? 0.0f : 1.0f / scale};
  };
  const auto encode = [](const float* weights, GroupScale scale, int8_t* codes, float* stored) {
    for (int i = 0; i < kWeightGroup; i += Simd::kLanes) {
      const Simd::F code =
          Simd::Round(Simd::Mul(Simd::Load(weights + i), Simd::Set1(scale.inverse)));
      Simd::StoreBytes(codes + i, Simd::ToInt(code));
      Simd::Store(stored + i, Simd::Mul(code, Simd::Set1(scale.value)));
    }
  };
  return QuantizeGroups<int8_t>(row, out, scale_of, encode);
}

void LargestOfRow(const ExactRow& row, float* largest) {
  for (int group = 0; group < row.groups; ++group) {
    float room[kWeightGroup];
    const float found = LargestMagnitudeOf<kWeightGroup>(WeightsOf(row, group, room));
    float& best = largest[group * kWeightGroup / 128];
    best = found > best ? found : best;
  }
}

// e4m3 or e2m1 codes of scaled weights; `stored` is what they are worth with that scale.
template <typename Format, int kCount>
void Encode(const float* weights, GroupScale scale, uint8_t* codes, float* stored) {
  for (int i = 0; i < kCount; i += Simd::kLanes) {
    const Simd::F scaled = Simd::Mul(Simd::Load(weights + i), Simd::Set1(scale.inverse));
    const Simd::I sign = SignOf(scaled);
    const Simd::F rounded =
        Format::Rounded(Simd::Min(Magnitude(scaled), Simd::Set1(Format::kLargest)));
    Simd::StoreBytes(codes + i, Simd::Or(Format::CodeOf(rounded),
                                         Simd::ShiftRight<31 - Format::kSignBit>(sign)));
    const Simd::F value = Simd::FromBits(Simd::Or(Simd::Bits(rounded), sign));
    Simd::Store(stored + i, Simd::Mul(value, Simd::Set1(scale.value)));
  }
}

RowError QuantizeFp8(const ExactRow& row, const int* exponents, const QuantizedRow& out) {
  const auto scale_of = [&](int group, const float*, float) -> GroupScale {
    const int exponent = exponents[group * kWeightGroup / 128];
    return {PowerOfTwo(exponent), PowerOfTwo(-exponent)};
  };
  return QuantizeGroups<uint8_t>(row, out, scale_of, Encode<E4m3, kWeightGroup>);
}

// Halves are added until one term is left.
template <int kCount>
float SumOfHalves(float* terms) {
  typedef float Four __attribute__((vector_size(16), aligned(4)));
  for (int half = kCount / 2; half >= 4; half /= 2) {
    for (int i = 0; i < half; i += 4) {
      *reinterpret_cast<Four*>(terms + i) += *reinterpret_cast<const Four*>(terms + i + half);
    }
  }
  return (terms[0] + terms[2]) + (terms[1] + terms[3]);
}

// Squared error of the group with this scale, in squares of `unit`: the square of a tiny scale
// would underflow.
template <int kCount>
float Fp4Error(const float* weights, float scale, float unit) {
  const Simd::F inverse = Simd::Set1(1.0f / scale);
  float terms[kCount];
  for (int i = 0; i < kCount; i += Simd::kLanes) {
    const Simd::F scaled = Simd::Mul(Magnitude(Simd::Load(weights + i)), inverse);
    const Simd::F error =
        Simd::Sub(scaled, E2m1::Rounded(Simd::Min(scaled, Simd::Set1(E2m1::kLargest))));
    Simd::Store(terms + i, Simd::Mul(error, error));
  }
  const float relative = scale / unit;
  return SumOfHalves<kCount>(terms) * (relative * relative);
}

// Of the codes first + steps[…], which `scale_of` gives a value, the one with the least squared
// error; the first of equally good ones. Without `search` the first.
template <int kCount, int kSteps, typename CodeOf, typename ScaleOf>
uint8_t BestScale(const float* weights, bool search, const int (&steps)[kSteps], CodeOf&& code_of,
                  ScaleOf&& scale_of) {
  const uint8_t first = code_of(steps[0]);
  if (!search) return first;
  uint8_t best = first;
  const float unit = scale_of(first);
  float least = Fp4Error<kCount>(weights, unit, unit);
  for (int s = 1; s < kSteps; ++s) {
    const uint8_t code = code_of(steps[s]);
    const float error = Fp4Error<kCount>(weights, scale_of(code), unit);
    if (error < least) {
      least = error;
      best = code;
    }
  }
  return best;
}

// From the standard's exponent (OCP Microscaling Formats 1.0, §6.3), which clips what is above 6 of
// the 8 that the exponent reaches: one higher never clips, one lower is finer for all but the
// largest. Further ones are never better: higher halves the resolution for nothing, lower clips
// more than it can gain.
constexpr int kMxfp4Steps[] = {0, 1, -1};

RowError QuantizeMxfp4(const ExactRow& row, bool search, const QuantizedRow& out) {
  const auto scale_of = [&](int group, const float* weights, float extreme) -> GroupScale {
    const float largest = std::fabs(extreme);
    const float counted = largest < kSmallestWeight ? kSmallestWeight : largest;
    const auto exponent = static_cast<int>(std::bit_cast<uint32_t>(counted) >> 23) - 2;
    const uint8_t code = BestScale<kWeightGroup>(
        weights, search, kMxfp4Steps,
        [&](int step) { return static_cast<uint8_t>(exponent + step); }, E8m0ToF32);
    out.scales[group] = code;
    const float scale = E8m0ToF32(code);
    return {scale, 1.0f / scale};
  };
  return QuantizeGroups<uint8_t>(row, out, scale_of, Encode<E2m1, kWeightGroup>);
}

// In codes, 8 of which are a factor of two, from the scale that maps the largest magnitude to 6: up
// to 4 (a finer grid for weights between 2 and 4), and a little clipping.
constexpr int kNvfp4Steps[] = {0, 1, 2, 3, 4, 5, 6, -1, -2};

// The code of the e4m3 number nearest to one that is not negative.
inline int NearestE4m3(float x) {
  int32_t codes[Simd::kLanes];
  const Simd::F rounded = E4m3::Rounded(Simd::Min(Simd::Set1(x), Simd::Set1(E4m3::kLargest)));
  Simd::StoreBits(codes, E4m3::CodeOf(rounded));
  return codes[0];
}

RowError QuantizeNvfp4(const ExactRow& row, bool search, float global_scale,
                       const QuantizedRow& out) {
  constexpr int kGroup16 = 16;
  struct TwoScales {
    GroupScale of[2];
  };
  const auto value_of = [&](uint8_t code) { return E4m3::Value(code) * global_scale; };
  const auto most = static_cast<float>(6.0 * static_cast<double>(global_scale));
  const auto scale_of = [&](int group, const float* weights, float) {
    TwoScales scales;
    for (int half = 0; half < 2; ++half) {
      const float* mine = weights + half * kGroup16;
      const int nearest = NearestE4m3(LargestMagnitudeOf<kGroup16>(mine) / most);
      const uint8_t code = BestScale<kGroup16>(
          mine, search, kNvfp4Steps,
          [&](int step) {
            const int c = nearest + step;
            return static_cast<uint8_t>(c < 1 ? 1 : c > 0x7e ? 0x7e : c);
          },
          value_of);
      const int at = group * 2 + half;
      if (at * kGroup16 < out.cols) out.scales[at] = code;
      const float scale = value_of(code);
      scales.of[half] = {scale, 1.0f / scale};
    }
    return scales;
  };
  const auto encode = [](const float* weights, const TwoScales& scales, uint8_t* codes,
                         float* stored) {
    for (int half = 0; half < 2; ++half) {
      const int at = half * kGroup16;
      Encode<E2m1, kGroup16>(weights + at, scales.of[half], codes + at, stored + at);
    }
  };
  return QuantizeGroups<uint8_t>(row, out, scale_of, encode);
}

typedef double Doubles __attribute__((vector_size(32)));

// Rounds to the nearest doubles with so many bits after the leading one, as SmallFloat::Rounded. By
// reference: how vectors are returned depends on the level's instructions.
inline void RoundTo(Doubles& magnitude, int mantissa_bits, double smallest_normal) {
  typedef int64_t Bits __attribute__((vector_size(32)));
  const Doubles power = (Doubles)((Bits)magnitude & 0x7ff0000000000000);
  const Doubles least = Doubles{} + smallest_normal;
  const Doubles push = (power > least ? power : least) *
                       (1.5 * static_cast<double>(uint64_t{1} << (52 - mantissa_bits)));
  magnitude = (magnitude + push) - push;
}

// A float that is a number of the 16-bit format already.
inline uint16_t HalfBits(float exact, bool is_f16) {
  return is_f16 ? F32ToF16(exact) : static_cast<uint16_t>(std::bit_cast<uint32_t>(exact) >> 16);
}

RowError RoundToHalf(const ExactRow& row, bool is_f16, double* largest, const QuantizedRow& out) {
  // In double the product is exact, so there is one rounding.
  typedef float Floats __attribute__((vector_size(16), aligned(4)));
  const double smallest_normal = is_f16 ? 0x1p-14 : 0x1p-126;
  const int mantissa_bits = is_f16 ? 10 : 7;
  Doubles errors = {}, norms = {}, most = {};
  for (int at = 0; at < row.groups * kWeightGroup; at += 4) {
    const auto values =
        __builtin_convertvector(*reinterpret_cast<const Floats*>(row.values + at), Doubles);
    const Doubles exact = values * static_cast<double>(row.factors[at / kFactorGroup]);
    const Doubles magnitude = exact < 0 ? -exact : exact;
    Doubles rounded = magnitude;
    RoundTo(rounded, mantissa_bits, smallest_normal);
    const Doubles error = rounded - magnitude;
    errors += error * error;
    norms += magnitude * magnitude;
    most = magnitude > most ? magnitude : most;
    for (int i = 0; i < 4 && at + i < out.cols; ++i) {
      const auto stored = static_cast<float>(std::copysign(rounded[i], exact[i]));
      const uint16_t bits = HalfBits(stored, is_f16);
      std::memcpy(out.codes + 2 * (at + i), &bits, sizeof bits);
    }
  }
  for (int i = 0; i < 4; ++i) *largest = most[i] > *largest ? most[i] : *largest;
  return {(errors[0] + errors[1]) + (errors[2] + errors[3]),
          (norms[0] + norms[1]) + (norms[2] + norms[3])};
}

}  // namespace
}  // namespace lsg
