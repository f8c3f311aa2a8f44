// Many tokens through one panel, on AVX-512's bf16 dot product: inputs are rounded to bf16, to
// nearest even, and so is code times scale; sums are f32, in an order of their own, so levels below
// give results that differ by rounding. Twice as many products an instruction as in f32.
//
// Where 64 inputs or more share a scale and codes are exact as bf16 (fp8), sums meet the scales,
// not weights: half of the unpacking, and nothing is rounded but inputs.
#pragma once

#include "kernels/bf16_weights-inl.h"

namespace lsg {
namespace {

using BlockWeights = Bf16Weights<kTilesPerBlock>;

// Tokens whose sums, a block of outputs each, fit the registers.
constexpr int kBf16SweepTokens = 6;
// Measured with 128 experts, 8 a token, on 2 cores of a Zen 4, ms for 48, 64 and 128 tokens: bf16
// 31, 36 and 60 in one pass, 27, 28 and 41 in two; fp8 30, 37 and 69, 31, 35 and 43. A token's bits
// are to be the same as alone for as long as that costs little.
constexpr int kBf16WorthTokens = 4;

inline __m512bh PairsAt(const void* p) { return std::bit_cast<__m512bh>(_mm512_loadu_si512(p)); }

// Tiles of inputs first … end - 1, and where they share one, their block's scales.
struct ScaledTiles {
  int first, end;
  GroupScales<1> scales;
};

// y += a block's 64 outputs of M tokens: sums stay in registers through all the tiles. `codes` are
// the first token's in tile 0; `weights(k)` gives a tile of inputs' weights.
template <int M, bool kScaleSums, class WeightsOf>
void MultiplyBf16Tokens(const ScaledTiles& tiles, const uint8_t* codes, int rows, float* y,
                        ptrdiff_t y_stride, const WeightsOf& weights) {
  constexpr int kRowBytes = kTileK * 2;
  __m512 sums[M][kTilesPerBlock];
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) {
#pragma GCC unroll 4
    for (int t = 0; t < kTilesPerBlock; ++t) {
      sums[m][t] =
          kScaleSums ? _mm512_setzero_ps() : _mm512_loadu_ps(y + m * y_stride + t * kTileN);
    }
  }
  codes += int64_t{tiles.first} * rows * kRowBytes;
  for (int k = tiles.first; k < tiles.end; ++k, codes += int64_t{rows} * kRowBytes) {
    const BlockWeights* in = weights(k);
#pragma GCC unroll 2
    for (int pair = 0; pair < kTileK / 2; ++pair) {
      __m512bh w[kTilesPerBlock];
#pragma GCC unroll 4
      for (int t = 0; t < kTilesPerBlock; ++t) w[t] = PairsAt(in->pairs[t][pair]);
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m) {
        const auto* inputs = reinterpret_cast<const int8_t*>(codes + m * kRowBytes + 4 * pair);
        const auto x = std::bit_cast<__m512bh>(Simd::Broadcast4(inputs));
#pragma GCC unroll 4
        for (int t = 0; t < kTilesPerBlock; ++t) {
          sums[m][t] = _mm512_dpbf16_ps(sums[m][t], w[t], x);
        }
      }
    }
  }
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) {
#pragma GCC unroll 4
    for (int t = 0; t < kTilesPerBlock; ++t) {
      float* out = y + m * y_stride + t * kTileN;
      if constexpr (kScaleSums) {
        const __m512 scale = _mm512_load_ps(tiles.scales.scale[0] + t * kTileN);
        sums[m][t] = _mm512_fmadd_ps(sums[m][t], scale, _mm512_loadu_ps(out));
      }
      _mm512_storeu_ps(out, sums[m][t]);
    }
  }
}

// Runs of weights cut where a scale ends; how many pieces, at most kSweepTiles.
inline int CutByScale(const WeightRun* runs, int count, ScaledTiles* pieces) {
  int n = 0, at = 0;
  for (const WeightRun* run = runs; run < runs + count; ++run) {
    for (int k = 0; k < run->k_tiles; ++n) {
      const int of_scale = run->panel.tiles_per_scale;
      const int k_tile = run->k_tile + k;
      const int tiles = std::min(of_scale - k_tile % of_scale, run->k_tiles - k);
      pieces[n].first = at + k;
      pieces[n].end = at + k + tiles;
      pieces[n].scales.Load(run->panel, GroupOf<1>(run->panel, run->block, k_tile), 1);
      k += tiles;
    }
    at += run->k_tiles;
  }
  return n;
}

template <class Format, bool kScaleSums>
void SweepBf16(const WeightRun* runs, int count, const PackedRows& x, int first_tile,
               uint8_t* scratch, float* y, ptrdiff_t y_stride, Upcoming next) {
  constexpr int kRowBytes = kTileK * 2;
  auto* unpacked = reinterpret_cast<BlockWeights*>(scratch);
  const BlockWeights* weights[kSweepTiles];
  const int k_tiles = TilesOf(runs, count);
  const uint8_t* codes = x.codes + int64_t{first_tile} * x.rows * kRowBytes;
  const int turns = Turns(x.rows, kBf16SweepTokens);
  const int fetch = next.PerStep(int64_t{turns} * k_tiles);
  ScaledTiles pieces[kScaleSums ? kSweepTiles : 1];
  int count_pieces = 1;
  pieces[0].first = 0;
  pieces[0].end = k_tiles;
  if constexpr (kScaleSums) count_pieces = CutByScale(runs, count, pieces);
  Unpacker<Format, 1, kTilesPerBlock> unpacker(runs, 0);
  ForTokens<kBf16SweepTokens>(x.rows, [&]<int M>(int m) {
    const auto multiply = [&](const auto& weights_of) {
      for (int piece = 0; piece < count_pieces; ++piece) {
        MultiplyBf16Tokens<M, kScaleSums>(pieces[piece], codes + m * kRowBytes, x.rows,
                                          y + m * y_stride, y_stride, weights_of);
      }
    };
    if (m == 0) {
      // Unpacking, waiting for memory and multiplying overlap.
      multiply([&](int k) {
        next.Fetch(fetch);
        return weights[k] = unpacker.Next(unpacked + k);
      });
    } else {
      multiply([&](int k) {
        next.Fetch(fetch);
        return weights[k];
      });
    }
  });
}

template <class Format>
void SweepBf16(const WeightRun* runs, int count, const PackedRows& x, int first_tile,
               uint8_t* scratch, float* y, ptrdiff_t y_stride, Upcoming next) {
  auto sweep = &SweepBf16<Format, false>;
  if constexpr (Format::kScaled) {
    if (runs->panel.tiles_per_scale > 1) sweep = &SweepBf16<typename Format::WithoutScales, true>;
  }
  sweep(runs, count, x, first_tile, scratch, y, y_stride, next);
}

template <class Format>
constexpr SweepKernels kBf16Sweep = {
    .int8_inputs = false,
    .group_tiles = 1,
    .code_bytes = kTileK * 2,
    .meta_bytes = 0,
    .max_tiles = kSweepTiles,
    .worth_tokens = kBf16WorthTokens,
    .weight_bytes = sizeof(BlockWeights),
    .pack = &PackBf16<typename Format::Order>,
    .sweep = &SweepBf16<Format>,
};

}  // namespace
}  // namespace lsg
