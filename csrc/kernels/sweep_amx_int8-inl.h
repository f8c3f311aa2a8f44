// Sweeps on the int8 matrix unit. A tile instruction sums one scale group's products for 16 tokens
// and 16 outputs; the scales then take the integers into f32 sums, in the order and with the
// operations of panel_int8-inl.h: the same bits.
#pragma once

#include "kernels/amx_tiles.h"
#include "kernels/sweep_int8-inl.h"

namespace lsg {
namespace {

// As Int8Weights, with signed operands and the offset that is left for zero_point to subtract.
template <int kGroups>
struct AmxInt8Weights {
  int8_t operands[kTilesPerBlock][kTileOperands][kLineBytes];
  GroupScales<kGroups> scales;
  alignas(64) bool zero_points;
};

template <class Weight, int kGroups>
void UnpackAmxInt8(const Panel& panel, int block, int k_tile, int k_tiles, uint8_t* weights) {
  constexpr size_t kTileBytes = TileBytes(Weight::kBits);
  constexpr int kPerLine = kOperands<Weight>;
  const bool zero_points = panel.zero_points != nullptr;
  // Without zero points the whole offset goes; with them 8-bit operands must still become signed.
  const float offset = !zero_points         ? Weight::kDefaultZeroPoint
                       : Weight::kBits == 8 ? 128.0f
                                            : 0.0f;
  const __m512i subtract = _mm512_set1_epi8(static_cast<char>(static_cast<int>(offset)));
  const uint8_t* codes = CodesAt(panel, Weight::kBits, block, k_tile);
  auto* out = reinterpret_cast<AmxInt8Weights<kGroups>*>(weights);
  for (int k = k_tile; k < k_tile + k_tiles; ++k, ++out) {
    out->zero_points = zero_points;
    const int64_t group = GroupOf<kGroups>(panel, block, k);
    out->scales.Load(panel, group, kGroups, Weight::kScale);
    if (zero_points) {
      out->scales.LoadZeroPoints(panel, group, kGroups, Weight::kZeroPointShift - offset, 0.0f);
    }
    for (int t = 0; t < kTilesPerBlock; ++t, codes += kTileBytes) {
      if (panel.whole) PrefetchTile(codes, kTileBytes);
      for (int line = 0; line < kTileOperands / kPerLine; ++line) {
        __m512i w[kPerLine];
        Weight::Unpack(_mm512_loadu_si512(codes + line * kLineBytes), w);
        for (int i = 0; i < kPerLine; ++i) {
          _mm512_storeu_si512(out->operands[t][line * kPerLine + i],
                              _mm512_sub_epi8(w[i], subtract));
        }
      }
    }
  }
}

// Up to kRows tokens; kRows f32 sums stay in registers.
template <int kGroups, int kRows>
void MultiplyAmxInt8Rows(const AmxInt8Weights<kGroups>* in, int k_tiles, const PackedRows& x,
                         int first_tile, int row, int rows, float* y, ptrdiff_t y_stride,
                         Upcoming& next, int lines) {
  constexpr int kPerGroup = kTileOperands / kGroups;
  constexpr int kMaxTiles = 16;
  alignas(64) int32_t products[2][kRows][kTileN];
  alignas(64) float scales[kMaxTiles][kRows];
  alignas(64) float minus_sums[kMaxTiles][kGroups][kRows];
  const bool zero_points = in->zero_points;
  for (int first = 0; first < k_tiles; first += kMaxTiles) {
    const int tiles = k_tiles - first < kMaxTiles ? k_tiles - first : kMaxTiles;
    for (int k = 0; k < tiles; ++k) {
      const auto* metas = reinterpret_cast<const Int8Meta<kGroups>*>(x.metas) +
                          int64_t{first_tile + first + k} * x.rows + row;
      for (int m = 0; m < kRows; ++m) {
        const Int8Meta<kGroups>& meta = metas[m < rows ? m : 0];
        scales[k][m] = meta.scale;
        for (int g = 0; g < kGroups; ++g) minus_sums[k][g][m] = meta.minus_sum[g];
      }
    }
    for (int t = 0; t < kTilesPerBlock; ++t) {
      __m512 sums[kRows];
      for (int m = 0; m < kRows; ++m) {
        sums[m] = m < rows ? _mm512_loadu_ps(y + m * y_stride + t * kTileN) : _mm512_setzero_ps();
      }
      for (int k = 0; k < tiles; ++k) {
        const AmxInt8Weights<kGroups>& w = in[first + k];
        for (int g = 0; g < kGroups; ++g) {
          next.Fetch(lines);
          const uint8_t* a = x.codes + (int64_t{first_tile + first + k} * x.rows + row) * kTileK +
                             g * kPerGroup * 4;
          const int8_t* b = w.operands[t][g * kPerGroup];
          // Two sets of tiles, so that one group's products need not wait for the last group's.
          int32_t (*product)[kTileN] = products[(k * kGroups + g) & 1];
          if (((k * kGroups + g) & 1) == 0) {
            LSG_TILE_ZERO(0);
            LSG_TILE_LOAD(4, a, kTileK);
            LSG_TILE_LOAD(6, b, kLineBytes);
            LSG_TILE_DOT_INT8(0, 4, 6);
            LSG_TILE_STORE(0, product, kLineBytes);
          } else {
            LSG_TILE_ZERO(1);
            LSG_TILE_LOAD(5, a, kTileK);
            LSG_TILE_LOAD(7, b, kLineBytes);
            LSG_TILE_DOT_INT8(1, 5, 7);
            LSG_TILE_STORE(1, product, kLineBytes);
          }
          const __m512 scale = _mm512_loadu_ps(w.scales.scale[g] + t * kTileN);
          if (zero_points) {
            const __m512 zero_point = _mm512_loadu_ps(w.scales.zero_point[g] + t * kTileN);
            for (int m = 0; m < kRows; ++m) {
              const __m512 value =
                  _mm512_fmadd_ps(zero_point, _mm512_set1_ps(minus_sums[k][g][m]),
                                  _mm512_cvtepi32_ps(_mm512_load_si512(product[m])));
              sums[m] = _mm512_fmadd_ps(value, _mm512_mul_ps(scale, _mm512_set1_ps(scales[k][m])),
                                        sums[m]);
            }
          } else {
            for (int m = 0; m < kRows; ++m) {
              const __m512 value = _mm512_cvtepi32_ps(_mm512_load_si512(product[m]));
              sums[m] = _mm512_fmadd_ps(value, _mm512_mul_ps(scale, _mm512_set1_ps(scales[k][m])),
                                        sums[m]);
            }
          }
        }
      }
      for (int m = 0; m < kRows; ++m) {
        if (m < rows) _mm512_storeu_ps(y + m * y_stride + t * kTileN, sums[m]);
      }
    }
  }
}

template <class Weight, int kGroups>
void MultiplyAmxInt8(const uint8_t* weights, int k_tiles, int, const PackedRows& x, int first_tile,
                     float* y, ptrdiff_t y_stride, Upcoming next) {
  const auto* in = reinterpret_cast<const AmxInt8Weights<kGroups>*>(weights);
  const int64_t sweeps = (x.rows + kTileRows - 1) / kTileRows;
  const int lines = next.PerStep(sweeps * kTilesPerBlock * k_tiles * kGroups);
  int configured = 0;
  for (int m = 0; m < x.rows; m += kTileRows) {
    const int rows = x.rows - m < kTileRows ? x.rows - m : kTileRows;
    if (rows != configured) {
      TileConfig config;
      for (int i = 0; i < 2; ++i) {
        config.Set(i, rows, kLineBytes);
        config.Set(4 + i, rows, kTileK / kGroups);
        config.Set(6 + i, kTileOperands / kGroups, kLineBytes);
      }
      LSG_TILE_CONFIGURE(config);
      configured = rows;
    }
    const auto sweep = rows <= 4   ? &MultiplyAmxInt8Rows<kGroups, 4>
                       : rows <= 8 ? &MultiplyAmxInt8Rows<kGroups, 8>
                                   : &MultiplyAmxInt8Rows<kGroups, kTileRows>;
    sweep(in, k_tiles, x, first_tile, m, rows, y + m * y_stride, y_stride, next, lines);
  }
  LSG_TILE_RELEASE();
}

template <class Weight, int kGroups>
constexpr SweepKernels kAmxInt8Sweep = {
    .code_bytes = kTileK,
    .meta_bytes = sizeof(Int8Meta<kGroups>),
    .weight_bytes = sizeof(AmxInt8Weights<kGroups>),
    .pack = &PackInt8<kGroups>,
    .unpack = &UnpackAmxInt8<Weight, kGroups>,
    .multiply = &MultiplyAmxInt8<Weight, kGroups>,
};

}  // namespace
}  // namespace lsg
