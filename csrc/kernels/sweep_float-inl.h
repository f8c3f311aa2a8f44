// Many tokens through one panel, float inputs: a block's weights are decoded to f32 once, then a
// few tokens' sums at a time stay in registers. The same bits as panel_float-inl.h gives.
#pragma once

#include "kernels/panel_float-inl.h"

namespace lsg {
namespace {

template <int kGroups>
struct FloatWeights {
  float value[kTilesPerBlock][kTileK][kTileN];
  GroupScales<kGroups> scales;
};

// Outputs (in vectors) and tokens whose even and odd sums fit the registers.
constexpr int kSweepVectors = kTileN / Simd::kLanes < 2 ? 1 : 2;
constexpr int kSweepTokens = Simd::kLanes == 16 ? 6 : 3;

inline void PackFloat(const float* x, int tiles, const PackedRows& rows, int first_tile, int row) {
  auto* out = reinterpret_cast<float*>(rows.codes);
  for (int tile = 0; tile < tiles; ++tile, x += kTileK) {
    const int64_t at = int64_t{first_tile + tile} * rows.rows + row;
    std::memcpy(out + at * kTileK, x, kTileK * sizeof(float));
  }
}

template <class Weight, int kGroups>
void UnpackFloat(const Panel& panel, int block, int k_tile, int k_tiles, uint8_t* weights) {
  constexpr size_t kTileBytes = TileBytes(Weight::kBits);
  constexpr int kInputs = 32 / Weight::kBits;
  constexpr int kLines = kTileK / kInputs;
  const uint8_t* codes = CodesAt(panel, Weight::kBits, block, k_tile);
  auto* out = reinterpret_cast<FloatWeights<kGroups>*>(weights);
  for (int k = k_tile; k < k_tile + k_tiles; ++k, ++out) {
    if constexpr (Weight::kScaled) {
      const int64_t group = GroupOf<kGroups>(panel, block, k);
      out->scales.Load(panel, group, kGroups);
      if constexpr (Weight::kZeroPoints) {
        out->scales.LoadZeroPoints(panel, group, kGroups, 0.0f, Weight::kDefaultZeroPoint);
      }
    }
    for (int t = 0; t < kTilesPerBlock; ++t, codes += kTileBytes) {
      if (panel.whole) PrefetchTile(codes, kTileBytes);
      for (int line = 0; line < kLines; ++line) {
        for (int part = 0; part < kParts; ++part) {
          const int n = part * Simd::kLanes;
          Simd::F zero_point = Simd::Zero();
          if constexpr (Weight::kZeroPoints) {
            zero_point =
                Simd::Load(out->scales.zero_point[line * kGroups / kLines] + t * kTileN + n);
          }
          Simd::F w[kInputs];
          Weight::Decode(Simd::LoadBits(codes + line * kLineBytes + n * 4), zero_point, w);
          for (int i = 0; i < kInputs; ++i) {
            Simd::Store(&out->value[t][line * kInputs + i][n], w[i]);
          }
        }
      }
    }
  }
}

// M tokens past kSweepVectors vectors of outputs of one tile's group.
template <bool kScaled, int kPerGroup, int M>
void MultiplyTile(const float* w, const float* scale, const float* x, float* y,
                  ptrdiff_t y_stride) {
  Simd::F even[M][kSweepVectors], odd[M][kSweepVectors];
  for (int m = 0; m < M; ++m) {
    for (int v = 0; v < kSweepVectors; ++v) even[m][v] = odd[m][v] = Simd::Zero();
  }
  for (int i = 0; i < kPerGroup; i += 2) {
    for (int v = 0; v < kSweepVectors; ++v) {
      const Simd::F first = Simd::Load(w + i * kTileN + v * Simd::kLanes);
      const Simd::F second = Simd::Load(w + (i + 1) * kTileN + v * Simd::kLanes);
      for (int m = 0; m < M; ++m) {
        even[m][v] = Simd::Fma(first, Simd::Set1(x[m * kTileK + i]), even[m][v]);
        odd[m][v] = Simd::Fma(second, Simd::Set1(x[m * kTileK + i + 1]), odd[m][v]);
      }
    }
  }
  for (int m = 0; m < M; ++m) {
    for (int v = 0; v < kSweepVectors; ++v) {
      float* sum = y + m * y_stride + v * Simd::kLanes;
      const Simd::F tile = Simd::Add(even[m][v], odd[m][v]);
      if constexpr (kScaled) {
        Simd::Store(sum, Simd::Fma(tile, Simd::Load(scale + v * Simd::kLanes), Simd::Load(sum)));
      } else {
        Simd::Store(sum, Simd::Add(Simd::Load(sum), tile));
      }
    }
  }
}

template <bool kScaled, int kPerGroup, int M>
void MultiplyTileRest(int tokens, const float* w, const float* scale, const float* x, float* y,
                      ptrdiff_t y_stride) {
  if constexpr (M > 0) {
    if (tokens == M) {
      MultiplyTile<kScaled, kPerGroup, M>(w, scale, x, y, y_stride);
    } else {
      MultiplyTileRest<kScaled, kPerGroup, M - 1>(tokens, w, scale, x, y, y_stride);
    }
  }
}

template <class Weight, int kGroups>
void MultiplyFloat(const uint8_t* weights, int k_tiles, const PackedRows& rows, int first_tile,
                   float* y, ptrdiff_t y_stride, Upcoming next) {
  constexpr int kPerGroup = kTileK / kGroups;
  const auto* in = reinterpret_cast<const FloatWeights<kGroups>*>(weights);
  next.SpreadOver(int64_t{k_tiles} * kGroups);
  for (int k = 0; k < k_tiles; ++k, ++in) {
    for (int g = 0; g < kGroups; ++g) {
      next.Fetch();
      const float* x = reinterpret_cast<const float*>(rows.codes) +
                       int64_t{first_tile + k} * rows.rows * kTileK + g * kPerGroup;
      for (int n = 0; n < kBlockN; n += kSweepVectors * Simd::kLanes) {
        const float* w = &in->value[n / kTileN][g * kPerGroup][n % kTileN];
        const float* scale = in->scales.scale[g] + n;
        int m = 0;
        for (; m + kSweepTokens <= rows.rows; m += kSweepTokens) {
          MultiplyTile<Weight::kScaled, kPerGroup, kSweepTokens>(w, scale, x + m * kTileK,
                                                                 y + m * y_stride + n, y_stride);
        }
        MultiplyTileRest<Weight::kScaled, kPerGroup, kSweepTokens - 1>(
            rows.rows - m, w, scale, x + m * kTileK, y + m * y_stride + n, y_stride);
      }
    }
  }
}

template <class Weight, int kGroups>
void SweepFloat(const WeightRun* runs, int count, const PackedRows& x, int first_tile,
                uint8_t* scratch, float* y, ptrdiff_t y_stride, Upcoming next) {
  const int tiles = UnpackRuns<&UnpackFloat<Weight, kGroups>>(
      runs, count, sizeof(FloatWeights<kGroups>), scratch);
  MultiplyFloat<Weight, kGroups>(scratch, tiles, x, first_tile, y, y_stride, next);
}

template <class Weight, int kGroups>
constexpr SweepKernels kFloatSweep = {
    .int8_inputs = false,
    .group_tiles = 1,
    .code_bytes = kTileK * sizeof(float),
    .meta_bytes = 0,
    .max_tiles = kSweepTiles,
    .worth_tokens = kOnlyPrompts,
    .weight_bytes = sizeof(FloatWeights<kGroups>),
    .pack = &PackFloat,
    .sweep = &SweepFloat<Weight, kGroups>,
};

}  // namespace
}  // namespace lsg
