// Stored rows to exact ones: codes of every format as floats, and what multiplies them.
#pragma once

#include <cstring>

#include "base/float16.h"
#include "kernels/small_floats-inl.h"
#include "kernels/weight_kernels.h"

namespace lsg {
namespace {

inline float ScaleValue(const uint8_t* scales, ScaleDtype dtype, int at) {
  switch (dtype) {
    case ScaleDtype::kF32: {
      float value;
      std::memcpy(&value, scales + 4 * at, 4);
      return value;
    }
    case ScaleDtype::kF16:
    case ScaleDtype::kBf16: {
      uint16_t bits;
      std::memcpy(&bits, scales + 2 * at, 2);
      return dtype == ScaleDtype::kF16 ? F16ToF32(bits) : Bf16ToF32(bits);
    }
    case ScaleDtype::kFp8E4m3:
      return E4m3::Value(scales[at]);
    case ScaleDtype::kE8m0:
      return E8m0ToF32(scales[at]);
    case ScaleDtype::kNone:
      break;
  }
  return 1.0f;
}

constexpr float kE2m1Values[16] = {0.0f,  0.5f,  1.0f,  1.5f,  2.0f,  3.0f,  4.0f,  6.0f,
                                   -0.0f, -0.5f, -1.0f, -1.5f, -2.0f, -3.0f, -4.0f, -6.0f};

// Codes without scales; load(p) gives the floats of those from p on.
template <typename Load>
void ExpandPlain(const StoredRow& row, const ExactRow& out, Load&& load) {
  const auto* codes = reinterpret_cast<const uint16_t*>(row.codes);
  const int whole = row.cols / kFactorGroup * kFactorGroup;
  for (int i = 0; i < whole; i += Simd::kLanes) Simd::Store(out.values + i, load(codes + i));
  for (int i = 0; i < 2 * out.groups; ++i) out.factors[i] = 1.0f;
  const int padded = out.groups * kWeightGroup;
  if (whole == padded) return;
  uint16_t rest[kFactorGroup] = {};
  std::memcpy(rest, codes + whole, (row.cols - whole) * sizeof(uint16_t));
  std::memset(out.values + whole, 0, (padded - whole) * sizeof(float));
  for (int i = 0; i < kFactorGroup; i += Simd::kLanes) {
    Simd::Store(out.values + whole + i, load(rest + i));
  }
}

// load(p) gives the floats of the codes from p on; `offset` is what integers are stored with.
template <typename Load>
void ExpandCodes(const StoredRow& row, const ExactRow& out, float offset, Load&& load) {
  for (int chunk = 0; chunk < 2 * out.groups; ++chunk) {
    const int first = chunk * kFactorGroup;
    float* values = out.values + first;
    const int left = row.cols - first;
    if (left <= 0) {
      std::memset(values, 0, kFactorGroup * sizeof(float));
      out.factors[chunk] = 1.0f;
      continue;
    }
    const int group = row.scale_k == 0 ? 0 : first / row.scale_k;
    const float zero = row.zero_points ? static_cast<float>(row.zero_points[group]) : offset;
    const float scale = ScaleValue(row.scales, row.scale_dtype, group);
    // Scales that come with a global one join the codes, 4 bits times 4, so that all stays exact.
    const bool joins = row.scale_dtype == ScaleDtype::kFp8E4m3;
    const Simd::F minus = Simd::Set1(zero), times = Simd::Set1(joins ? scale : 1.0f);
    out.factors[chunk] = joins ? row.global_scale : scale * row.global_scale;
    uint8_t padded[kFactorGroup] = {};
    const uint8_t* from = row.codes + first;
    if (left < kFactorGroup) {
      std::memcpy(padded, from, left);
      from = padded;
    }
    for (int i = 0; i < kFactorGroup; i += Simd::kLanes) {
      Simd::Store(values + i, Simd::Mul(Simd::Sub(load(from + i), minus), times));
    }
    for (int i = left; i < kFactorGroup; ++i) values[i] = 0.0f;
  }
}

void ExpandRow(const StoredRow& row, const ExactRow& out) {
  switch (row.dtype) {
    case Dtype::kInt4:
    case Dtype::kInt8: {
      const auto plain = [](const uint8_t* p) { return Simd::FromInt(Simd::LoadU8(p)); };
      if (row.dtype == Dtype::kInt4) return ExpandCodes(row, out, 8.0f, plain);
      if (row.zero_points) return ExpandCodes(row, out, 0.0f, plain);
      return ExpandCodes(row, out, 0.0f, [](const uint8_t* p) {
        return Simd::FromInt(Simd::ShiftRightSigned<24>(Simd::ShiftLeft<24>(Simd::LoadU8(p))));
      });
    }
    case Dtype::kFp8E4m3:
      return ExpandCodes(row, out, 0.0f,
                         [](const uint8_t* p) { return E4m3::Decode(Simd::LoadU8(p)); });
    case Dtype::kFp8E5m2:
      return ExpandCodes(row, out, 0.0f,
                         [](const uint8_t* p) { return E5m2::Decode(Simd::LoadU8(p)); });
    case Dtype::kFp4E2m1:
      // Not by Decode: a half would be a subnormal on the way, which some processors are slow with.
      return ExpandCodes(row, out, 0.0f, [](const uint8_t* p) {
        return Simd::Lookup16(kE2m1Values, Simd::LoadU8(p));
      });
    case Dtype::kBf16:
      return ExpandPlain(row, out, [](const uint16_t* p) {
        return Simd::FromBits(Simd::ShiftLeft<16>(Simd::LoadU16(p)));
      });
    case Dtype::kF16:
      return ExpandPlain(row, out, [](const uint16_t* p) { return Simd::LoadF16(p); });
  }
}

}  // namespace
}  // namespace lsg
