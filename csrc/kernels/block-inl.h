// What all panel kernels share: a block's running sums, its scales, and prefetching.
#pragma once

#include <bit>
#include <cstring>

#include "kernels/kernels.h"
#include "layout/tile.h"

namespace lsg {
namespace {

constexpr int kParts = kTileN / Simd::kLanes;  // vectors that hold a tile's outputs
inline void PrefetchTile(const uint8_t* codes, size_t bytes) {
  for (size_t at = 0; at < bytes; at += kLineBytes) {
    __builtin_prefetch(codes + kPrefetchBytes + at, 0, 1);
  }
}

// A block's sums for M tokens, [token][tile][part].
template <int M>
struct BlockSums {
  Simd::F at[M][kTilesPerBlock][kParts];

  void Begin(const Panel& panel, int block, float* const* y, bool accumulate) {
    for (int m = 0; m < M; ++m) {
      for (int n = 0; n < kBlockN; n += Simd::kLanes) {
        const int out = block * kBlockN + n;
        Simd::F sum = accumulate ? Simd::Load(y[m] + out) : Simd::Zero();
        if (panel.bias != nullptr) sum = Simd::Add(sum, Simd::Load(panel.bias + out));
        at[m][n / kTileN][n % kTileN / Simd::kLanes] = sum;
      }
    }
  }

  void End(int block, float* const* y) const {
    for (int m = 0; m < M; ++m) {
      for (int n = 0; n < kBlockN; n += Simd::kLanes) {
        Simd::Store(y[m] + block * kBlockN + n, at[m][n / kTileN][n % kTileN / Simd::kLanes]);
      }
    }
  }
};

// A block's scales and zero points for one group of inputs, as floats, [64].
struct GroupScales {
  alignas(64) float scale[kBlockN];
  alignas(64) float zero_point[kBlockN];

  // `factor`, a power of two, is what the codes are off by.
  void Load(const Panel& panel, int block, int group, float factor = 1.0f) {
    const int per_group = kBlockN / panel.scale_rows;
    const int64_t first = (int64_t{block} * panel.scale_groups + group) * per_group;
    for (int n = 0; n < kBlockN; n += Simd::kLanes) {
      const Simd::F global = Simd::Set1(panel.global_scale[n / 32] * factor);
      const Simd::F value =
          panel.scale_rows == 1 ? Vector(panel, first + n) : Shared(panel, first + n / 32);
      Simd::Store(scale + n, Simd::Mul(value, global));
    }
  }

  // Integer codes are stored with an offset: their zero point, or `otherwise` (8 for int4) in
  // panels without, which then need it once. `shift`: how much more the kernel's operands are off.
  void LoadZeroPoints(const Panel& panel, int block, int group, float otherwise,
                      float shift = 0.0f) {
    const int per_group = kBlockN / panel.scale_rows;
    const int64_t first = (int64_t{block} * panel.scale_groups + group) * per_group;
    for (int n = 0; n < kBlockN; n += Simd::kLanes) {
      Simd::F value = Simd::Set1(otherwise);
      if (panel.zero_points != nullptr) {
        value = panel.scale_rows == 1
                    ? Simd::FromInt(Simd::LoadU8(panel.zero_points + first + n))
                    : Simd::Set1(static_cast<float>(panel.zero_points[first + n / 32]));
        value = Simd::Add(value, Simd::Set1(shift));
      }
      Simd::Store(zero_point + n, value);
    }
  }

 private:
  // e4m3 in f32's places reads 2^120 too small; exact for subnormals as well.
  static Simd::F FromE4m3(Simd::I code) {
    const Simd::I magnitude = Simd::ShiftLeft<20>(Simd::And(code, Simd::Set1Bits(0x7f)));
    const Simd::I sign = Simd::ShiftLeft<24>(Simd::And(code, Simd::Set1Bits(0x80)));
    const Simd::F scaled = Simd::Mul(Simd::FromBits(magnitude), Simd::Set1(0x1p120f));
    return Simd::Mul(scaled, Simd::FromBits(Simd::Or(sign, Simd::Set1Bits(0x3f800000))));
  }
  // 2^(code - 127); 2^-127 (code 0) reads as 0.
  static Simd::F FromE8m0(Simd::I code) { return Simd::FromBits(Simd::ShiftLeft<23>(code)); }

  static Simd::F Vector(const Panel& panel, int64_t at) {
    switch (panel.scale_dtype) {
      case ScaleDtype::kF32:
        return Simd::FromBits(Simd::LoadBits(panel.scales + at * 4));
      case ScaleDtype::kF16:
        return Simd::LoadF16(panel.scales + at * 2);
      case ScaleDtype::kBf16:
        return Simd::FromBits(Simd::ShiftLeft<16>(Simd::LoadU16(panel.scales + at * 2)));
      case ScaleDtype::kFp8E4m3:
        return FromE4m3(Simd::LoadU8(panel.scales + at));
      case ScaleDtype::kE8m0:
        return FromE8m0(Simd::LoadU8(panel.scales + at));
      case ScaleDtype::kNone:
        break;
    }
    return Simd::Set1(1.0f);
  }

  // One scale for a vector of outputs.
  static Simd::F Shared(const Panel& panel, int64_t at) {
    uint32_t wide = 0;
    uint16_t half = 0;
    switch (panel.scale_dtype) {
      case ScaleDtype::kF32:
        std::memcpy(&wide, panel.scales + at * 4, 4);
        return Simd::FromBits(Simd::Set1Bits(wide));
      case ScaleDtype::kF16: {
        // Conversion takes a vector: repeat the scale until one is full.
        uint16_t repeated[kTileN];
        std::memcpy(&half, panel.scales + at * 2, 2);
        for (uint16_t& copy : repeated) copy = half;
        return Simd::LoadF16(repeated);
      }
      case ScaleDtype::kBf16:
        std::memcpy(&half, panel.scales + at * 2, 2);
        return Simd::FromBits(Simd::Set1Bits(uint32_t{half} << 16));
      case ScaleDtype::kFp8E4m3:
        return FromE4m3(Simd::Set1Bits(panel.scales[at]));
      case ScaleDtype::kE8m0:
        return FromE8m0(Simd::Set1Bits(panel.scales[at]));
      case ScaleDtype::kNone:
        break;
    }
    return Simd::Set1(1.0f);
  }
};

}  // namespace
}  // namespace lsg
