// Many tokens through one panel, int8 inputs: a block's weights are unpacked once, then stay in
// registers, 16 outputs by 32 inputs at a time, while every token passes. The same bits as
// panel_int8-inl.h gives.
#pragma once

#include "kernels/panel_int8-inl.h"
#include "kernels/quantize-inl.h"

namespace lsg {
namespace {

// What a packed row has for each tile beside its 32 codes: a multiple of 4 bytes.
template <int kGroups>
struct Int8Meta {
  float scale;
  float minus_sum[kGroups];
};

// A block's 64 × 32 weights, unpacked: operands by tile, scales and zero points by group.
template <int kGroups>
struct Int8Weights {
  uint8_t operands[kTilesPerBlock][kTileOperands][kLineBytes];
  float scale[kGroups][kBlockN];
  float zero_point[kGroups][kBlockN];
};

template <int kGroups>
void PackInt8(const float* x, int tiles, const PackedRows& rows, int first_tile, int row) {
  for (int tile = 0; tile < tiles; ++tile) {
    const int64_t at = int64_t{first_tile + tile} * rows.rows + row;
    float scale;
    int16_t half_sums[2];
    QuantizeRow(x + tile * kTileK, 1, reinterpret_cast<int8_t*>(rows.codes) + at * kTileK, &scale,
                half_sums);
    Int8Meta<kGroups> meta{scale, {}};
    if constexpr (kGroups == 1) {
      meta.minus_sum[0] = static_cast<float>(-(half_sums[0] + half_sums[1]));
    } else {
      for (int g = 0; g < kGroups; ++g) meta.minus_sum[g] = static_cast<float>(-half_sums[g]);
    }
    std::memcpy(rows.metas + at * sizeof meta, &meta, sizeof meta);
  }
}

template <class Weight, int kGroups>
void UnpackInt8(const Panel& panel, int block, int k_tile, int k_tiles, uint8_t* weights) {
  constexpr size_t kTileBytes = TileBytes(Weight::kBits);
  constexpr int kPerLine = kOperands<Weight>;
  const uint8_t* codes =
      panel.codes + (int64_t{block} * panel.k_tiles + k_tile) * kTilesPerBlock * kTileBytes;
  auto* out = reinterpret_cast<Int8Weights<kGroups>*>(weights);
  for (int k = k_tile; k < k_tile + k_tiles; ++k, ++out) {
    for (int g = 0; g < kGroups; ++g) {
      GroupScales group;
      const int at = kGroups > 1 ? k * kGroups + g : k / panel.tiles_per_scale;
      group.Load(panel, block, at, Weight::kScale);
      group.LoadZeroPoints(panel, block, at, Weight::kDefaultZeroPoint, Weight::kZeroPointShift);
      std::memcpy(out->scale[g], group.scale, sizeof group.scale);
      std::memcpy(out->zero_point[g], group.zero_point, sizeof group.zero_point);
    }
    for (int t = 0; t < kTilesPerBlock; ++t, codes += kTileBytes) {
      PrefetchTile(codes, kTileBytes);
      for (int line = 0; line < kTileOperands / kPerLine; ++line) {
        for (int part = 0; part < kParts; ++part) {
          const int at = part * Simd::kLanes * 4;
          Simd::I w[kPerLine];
          Weight::Unpack(Simd::LoadBits(codes + line * kLineBytes + at), w);
          for (int i = 0; i < kPerLine; ++i) {
            Simd::StoreBits(out->operands[t][line * kPerLine + i] + at, w[i]);
          }
        }
      }
    }
  }
}

template <class Weight, int kGroups>
void MultiplyInt8(const uint8_t* weights, int k_tiles, int, const PackedRows& x, int first_tile,
                  float* y, ptrdiff_t y_stride, Upcoming next) {
  constexpr int kPerGroup = kTileOperands / kGroups;
  const auto* in = reinterpret_cast<const Int8Weights<kGroups>*>(weights);
  const int lines = next.PerStep(int64_t{k_tiles} * kBlockN / Simd::kLanes);
  for (int k = 0; k < k_tiles; ++k, ++in) {
    const int64_t at = int64_t{first_tile + k} * x.rows;
    const auto* codes = reinterpret_cast<const int8_t*>(x.codes) + at * kTileK;
    const auto* metas = reinterpret_cast<const Int8Meta<kGroups>*>(x.metas) + at;
    for (int n = 0; n < kBlockN; n += Simd::kLanes) {
      next.Fetch(lines);
      const uint8_t* operands = in->operands[n / kTileN][0] + n % kTileN * 4;
      for (int g = 0; g < kGroups; ++g) {
        Simd::I w[kPerGroup];
        for (int i = 0; i < kPerGroup; ++i) {
          w[i] = Simd::LoadBits(operands + (g * kPerGroup + i) * kLineBytes);
        }
        const Simd::F scale = Simd::Load(in->scale[g] + n);
        const Simd::F zero_point = Simd::Load(in->zero_point[g] + n);
        for (int token = 0; token < x.rows; ++token) {
          const int8_t* inputs = codes + token * kTileK + g * kPerGroup * 4;
          const Int8Meta<kGroups>& meta = metas[token];
          Simd::I dot = Simd::ZeroBits();
          for (int i = 0; i < kPerGroup; ++i) {
            dot = Weight::Dot(dot, w[i], Simd::Broadcast4(inputs + 4 * i));
          }
          const Simd::F value = Simd::Fma(zero_point, Simd::Set1(meta.minus_sum[g]),
                                          Simd::FromInt(Weight::Finish(dot)));
          const Simd::F both_scales = Simd::Mul(scale, Simd::Set1(meta.scale));
          float* sum = y + token * y_stride + n;
          Simd::Store(sum, Simd::Fma(value, both_scales, Simd::Load(sum)));
        }
      }
    }
  }
}

template <class Weight, int kGroups>
constexpr SweepKernels kInt8Sweep = {
    .code_bytes = kTileK,
    .meta_bytes = sizeof(Int8Meta<kGroups>),
    .weight_bytes = sizeof(Int8Weights<kGroups>),
    .pack = &PackInt8<kGroups>,
    .unpack = &UnpackInt8<Weight, kGroups>,
    .multiply = &MultiplyInt8<Weight, kGroups>,
};

}  // namespace
}  // namespace lsg
