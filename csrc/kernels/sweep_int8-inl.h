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
  GroupScales<kGroups> scales;
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
  const uint8_t* codes = CodesAt(panel, Weight::kBits, block, k_tile);
  auto* out = reinterpret_cast<Int8Weights<kGroups>*>(weights);
  for (int k = k_tile; k < k_tile + k_tiles; ++k, ++out) {
    const int64_t group = GroupOf<kGroups>(panel, block, k);
    out->scales.Load(panel, group, kGroups, Weight::kScale);
    if constexpr (Weight::kOffset) {
      out->scales.LoadZeroPoints(panel, group, kGroups, Weight::kZeroPointShift,
                                 Weight::kDefaultZeroPoint);
    }
    for (int t = 0; t < kTilesPerBlock; ++t, codes += kTileBytes) {
      if (panel.whole) PrefetchTile(codes, kTileBytes);
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
void MultiplyInt8(const uint8_t* weights, int k_tiles, const PackedRows& x, int first_tile,
                  float* y, ptrdiff_t y_stride, Upcoming next) {
  constexpr int kPerGroup = kTileOperands / kGroups;
  constexpr int kSums = kTileSums<Weight, kGroups> / kGroups;
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
        const Simd::F scale = Simd::Load(in->scales.scale[g] + n);
        for (int token = 0; token < x.rows; ++token) {
          const int8_t* inputs = codes + token * kTileK + g * kPerGroup * 4;
          const Int8Meta<kGroups>& meta = metas[token];
          Simd::I dot[kSums];
          for (int i = 0; i < kSums; ++i) dot[i] = Simd::ZeroBits();
          for (int i = 0; i < kPerGroup; ++i) {
            Simd::I& sum = dot[i * kSums / kPerGroup];
            sum = Weight::Dot(sum, w[i], Simd::Broadcast4(inputs + 4 * i));
          }
          Simd::F value = Simd::FromInt(FinishSums<Weight, kSums>(dot));
          if constexpr (Weight::kOffset) {
            value = Simd::Fma(Simd::Load(in->scales.zero_point[g] + n),
                              Simd::Set1(meta.minus_sum[g]), value);
          }
          const Simd::F both_scales = Simd::Mul(scale, Simd::Set1(meta.scale));
          float* sum = y + token * y_stride + n;
          Simd::Store(sum, Simd::Fma(value, both_scales, Simd::Load(sum)));
        }
      }
    }
  }
}

template <class Weight, int kGroups>
void SweepInt8(const WeightRun* runs, int count, const PackedRows& x, int first_tile,
               uint8_t* scratch, float* y, ptrdiff_t y_stride, Upcoming next) {
  int tiles = 0;
  for (const WeightRun* run = runs; run < runs + count; tiles += run->k_tiles, ++run) {
    UnpackInt8<Weight, kGroups>(run->panel, run->block, run->k_tile, run->k_tiles,
                                scratch + tiles * sizeof(Int8Weights<kGroups>));
  }
  MultiplyInt8<Weight, kGroups>(scratch, tiles, x, first_tile, y, y_stride, next);
}

template <class Weight, int kGroups>
constexpr SweepKernels kInt8Sweep = {
    .code_bytes = kTileK,
    .meta_bytes = sizeof(Int8Meta<kGroups>),
    .max_tiles = kSweepTiles,
    .weight_bytes = sizeof(Int8Weights<kGroups>),
    .pack = &PackInt8<kGroups>,
    .sweep = &SweepInt8<Weight, kGroups>,
};

}  // namespace
}  // namespace lsg
