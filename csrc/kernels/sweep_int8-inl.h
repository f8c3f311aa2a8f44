// Many tokens through one panel, int8 inputs: a block's weights are unpacked once, into cache, then
// a few tokens' sums at a time stay in registers. The same bits as panel_int8-inl.h gives.
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
  // minus_sum times the zero point of weights that bring none.
  int32_t minus_offset[kGroups];
};

// A block's 64 × 32 weights, unpacked: operands by tile, scales and zero points by group.
template <int kGroups>
struct Int8Weights {
  uint8_t operands[kTilesPerBlock][kTileOperands][kLineBytes];
  GroupScales<kGroups> scales;
};

template <class Weight, int kGroups>
void PackInt8(const float* x, int tiles, const PackedRows& rows, int first_tile, int row) {
  for (int tile = 0; tile < tiles; ++tile) {
    const int64_t at = int64_t{first_tile + tile} * rows.rows + row;
    float scale;
    int16_t half_sums[2];
    QuantizeRow(x + tile * kTileK, 1, reinterpret_cast<int8_t*>(rows.codes) + at * kTileK, &scale,
                half_sums);
    Int8Meta<kGroups> meta{scale, {}, {}};
    for (int g = 0; g < kGroups; ++g) {
      const int sum = kGroups == 1 ? half_sums[0] + half_sums[1] : half_sums[g];
      meta.minus_sum[g] = static_cast<float>(-sum);
      meta.minus_offset[g] = -sum * static_cast<int>(Weight::kDefaultZeroPoint);
    }
    std::memcpy(rows.metas + at * sizeof meta, &meta, sizeof meta);
  }
}

// Tiles of outputs first … first + tiles - 1 of a block's tile of inputs.
template <class Weight, int kGroups>
void UnpackInt8(const Panel& panel, int block, int k_tile, int first, int tiles,
                Int8Weights<kGroups>* out) {
  constexpr size_t kTileBytes = TileBytes(Weight::kBits);
  constexpr int kPerLine = kOperands<Weight>;
  const int64_t group = GroupOf<kGroups>(panel, block, k_tile);
  out->scales.Load(panel, group, kGroups, Weight::kScale, first * kTileN, (first + tiles) * kTileN);
  if (panel.zero_points != nullptr) {
    out->scales.LoadZeroPoints(panel, group, kGroups, Weight::kZeroPointShift, 0.0f);
  }
  const uint8_t* codes = CodesAt(panel, Weight::kBits, block, k_tile) + first * kTileBytes;
  if (panel.whole) PrefetchTile(codes, tiles * kTileBytes);
  for (int t = first; t < first + tiles; ++t, codes += kTileBytes) {
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

// Vectors of outputs, and tokens, whose sums and dot products fit the registers. With two vectors
// an input is loaded once for both.
constexpr int kInt8SweepVectors = Simd::kLanes == 16 ? 2 : 1;
constexpr int kInt8SweepTokens = Simd::kLanes == 16 ? 6 : 4;

// Some vectors of outputs, from `n` on, of M tokens: sums stay in registers through all inputs.
// `codes` and `metas` are the first token's in the first tile of inputs; `weights(k)` gives a tile
// of inputs' weights.
template <class Weight, int kGroups, bool kZeroPoints, int M, class WeightsOf>
void MultiplyInt8Tokens(int k_tiles, int n, const int8_t* codes, const Int8Meta<kGroups>* metas,
                        int rows, float* y, ptrdiff_t y_stride, const WeightsOf& weights) {
  constexpr int kV = kInt8SweepVectors;
  constexpr int kPerGroup = kTileOperands / kGroups;
  constexpr int kSums = kTileSums<Weight, kGroups> / kGroups;
  // Sums of 32 bits can begin with the offset.
  constexpr bool kInDot = Weight::kOffset && !kZeroPoints && Simd::kDotBits == 32;
  Simd::F sums[M][kV];
  for (int m = 0; m < M; ++m) {
    for (int v = 0; v < kV; ++v) sums[m][v] = Simd::Load(y + m * y_stride + v * Simd::kLanes);
  }
  for (int k = 0; k < k_tiles; ++k, codes += int64_t{rows} * kTileK, metas += rows) {
    const Int8Weights<kGroups>* in = weights(k);
#pragma GCC unroll 2
    for (int g = 0; g < kGroups; ++g) {
      Simd::I dot[M][kV][kSums];
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m) {
        for (int v = 0; v < kV; ++v) {
          for (int i = 0; i < kSums; ++i) dot[m][v][i] = Simd::ZeroBits();
          if constexpr (kInDot) dot[m][v][0] = Offset(metas[m].minus_offset[g]);
        }
      }
#pragma GCC unroll 8
      for (int i = 0; i < kPerGroup; ++i) {
        const int at = g * kPerGroup + i;
        Simd::I w[kV];
        for (int v = 0; v < kV; ++v) {
          const int out = n + v * Simd::kLanes;
          w[v] = Simd::LoadBits(in->operands[out / kTileN][at] + out % kTileN * 4);
        }
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m) {
          const Simd::I x = Simd::Broadcast4(codes + m * kTileK + 4 * at);
          for (int v = 0; v < kV; ++v) {
            Simd::I& sum = dot[m][v][i * kSums / kPerGroup];
            sum = Weight::Dot(sum, w[v], x);
          }
        }
      }
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m) {
        const Simd::F x_scale = Simd::Set1(metas[m].scale);
        for (int v = 0; v < kV; ++v) {
          const int out = n + v * Simd::kLanes;
          Simd::I sum = FinishSums<Weight, kSums>(dot[m][v]);
          if constexpr (Weight::kOffset && !kZeroPoints && !kInDot) {
            sum = Simd::AddInt(sum, Offset(metas[m].minus_offset[g]));
          }
          Simd::F value = Simd::FromInt(sum);
          if constexpr (kZeroPoints) {
            value = Simd::Fma(Simd::Load(in->scales.zero_point[g] + out),
                              Simd::Set1(metas[m].minus_sum[g]), value);
          }
          const Simd::F both_scales = Simd::Mul(Simd::Load(in->scales.scale[g] + out), x_scale);
          sums[m][v] = Simd::Fma(value, both_scales, sums[m][v]);
        }
      }
    }
  }
  for (int m = 0; m < M; ++m) {
    for (int v = 0; v < kV; ++v) Simd::Store(y + m * y_stride + v * Simd::kLanes, sums[m][v]);
  }
}

template <class Weight, int kGroups, bool kZeroPoints>
void SweepInt8(const WeightRun* runs, int count, const PackedRows& x, int first_tile,
               uint8_t* scratch, float* y, ptrdiff_t y_stride, Upcoming next) {
  auto* unpacked = reinterpret_cast<Int8Weights<kGroups>*>(scratch);
  const int64_t at = int64_t{first_tile} * x.rows;
  const auto* codes = reinterpret_cast<const int8_t*>(x.codes) + at * kTileK;
  const auto* metas = reinterpret_cast<const Int8Meta<kGroups>*>(x.metas) + at;
  constexpr int kOutputs = kInt8SweepVectors * Simd::kLanes;
  // With registers for both, unpacking, waiting for memory and multiplying overlap.
  constexpr bool kOverlap = kOutputs % (2 * kTileN) == 0;
  constexpr int kTiles = kOverlap ? kOutputs / kTileN : kTilesPerBlock;
  const int k_tiles = TilesOf(runs, count);
  const int64_t turns = Turns(x.rows, kInt8SweepTokens);
  next.SpreadOver(turns * kBlockN / kOutputs);
  const WeightRun* run = runs;
  int k_of_run = 0;
  const auto unpack = [&](int k, int first) {
    if (k_of_run == run->k_tiles) ++run, k_of_run = 0;
    UnpackInt8<Weight, kGroups>(run->panel, run->block, run->k_tile + k_of_run++, first, kTiles,
                                unpacked + k);
    return unpacked + k;
  };
  for (int k = 0; !kOverlap && k < k_tiles; ++k) unpack(k, 0);
  for (int n = 0; n < kBlockN; n += kOutputs) {
    run = runs;
    k_of_run = 0;
    const auto unpack_next = [&](int k) { return unpack(k, n / kTileN); };
    const auto keep = [&](int k) { return unpacked + k; };
    ForTokens<kInt8SweepTokens>(x.rows, [&]<int M>(int m) {
      next.Fetch();
      const auto multiply = [&](const auto& weights) {
        MultiplyInt8Tokens<Weight, kGroups, kZeroPoints, M>(k_tiles, n, codes + m * kTileK,
                                                            metas + m, x.rows, y + m * y_stride + n,
                                                            y_stride, weights);
      };
      if (kOverlap && m == 0) {
        multiply(unpack_next);
      } else {
        multiply(keep);
      }
    });
  }
}

template <class Weight, int kGroups>
constexpr SweepKernels kInt8Sweep = {
    .int8_inputs = true,
    .group_tiles = 1,
    .code_bytes = kTileK,
    .meta_bytes = sizeof(Int8Meta<kGroups>),
    .max_tiles = kSweepTiles,
    .worth_tokens = kOnlyPrompts,
    .weight_bytes = sizeof(Int8Weights<kGroups>),
    .pack = &PackInt8<Weight, kGroups>,
    .sweep =
        &SweepByZeroPoints<&SweepInt8<Weight, kGroups, true>, &SweepInt8<Weight, kGroups, false>>,
};

}  // namespace
}  // namespace lsg
