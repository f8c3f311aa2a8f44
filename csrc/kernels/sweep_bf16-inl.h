// Many tokens through one panel, on AVX-512's bf16 dot product: inputs are rounded to bf16, to
// nearest even, and so is code times scale; sums are f32, in an order of their own, so levels below
// give results that differ by rounding. Twice as many products an instruction as in f32.
//
// Where tiles of inputs share scales and codes are exact as bf16 (fp8), sums meet the scales, not
// weights: half of the unpacking, and nothing is rounded but inputs.
#pragma once

#include "kernels/bf16_weights-inl.h"

namespace lsg {
namespace {

using BlockWeights = Bf16Weights<kTilesPerBlock>;

// Tokens whose sums, a block of outputs each, fit the registers.
constexpr int kBf16SweepTokens = 6;
// Measured with 128 experts, 8 a token, on 2 cores of a Zen 4, ms for 66, 80, 96 and 128 tokens:
// bf16 44, 48, 54 and 60 in one pass, 42, 46, 47 and 48 in two; fp8 27, 32, 36 and 63, 30, 33, 36
// and 45. A token's bits are to be the same as alone for as long as that costs little.
constexpr int kBf16WorthTokens = 4;

inline __m512bh PairsAt(const void* p) { return std::bit_cast<__m512bh>(_mm512_loadu_si512(p)); }

// Tiles of inputs first … end - 1, and their block's scales where sums meet them.
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

// Runs of weights cut where scales change; how many pieces. Units have scales of their own, which
// are often the same.
inline int CutByScale(const WeightRun* runs, int count, ScaledTiles* pieces) {
  int n = 0, at = 0;
  for (const WeightRun* run = runs; run < runs + count; ++run) {
    const int of_scale = run->panel.tiles_per_scale;
    for (int k = run->k_tile; k < run->k_tile + run->k_tiles;) {
      const int tiles = std::min(of_scale - k % of_scale, run->k_tile + run->k_tiles - k);
      GroupScales<1>& scales = pieces[n].scales;
      scales.Load(run->panel, GroupOf<1>(run->panel, run->block, k), 1);
      const bool same =
          n > 0 && std::memcmp(scales.scale, pieces[n - 1].scales.scale, sizeof scales.scale) == 0;
      if (!same) pieces[n++].first = at;
      at += tiles;
      pieces[n - 1].end = at;
      k += tiles;
    }
  }
  return n;
}

template <class Format, bool kScaleSums>
void SweepPieces(const WeightRun* runs, const ScaledTiles* pieces, int count, const PackedRows& x,
                 int first_tile, uint8_t* scratch, float* y, ptrdiff_t y_stride, Upcoming next) {
  constexpr int kRowBytes = kTileK * 2;
  auto* unpacked = reinterpret_cast<BlockWeights*>(scratch);
  const BlockWeights* weights[kSweepTiles];
  const uint8_t* codes = x.codes + int64_t{first_tile} * x.rows * kRowBytes;
  const int turns = Turns(x.rows, kBf16SweepTokens);
  next.SpreadOver(int64_t{turns} * pieces[count - 1].end);
  Unpacker<Format, 1, kTilesPerBlock> unpacker(runs, 0);
  ForTokens<kBf16SweepTokens>(x.rows, [&]<int M>(int m) {
    const auto multiply = [&](const auto& weights_of) {
      for (const ScaledTiles* piece = pieces; piece < pieces + count; ++piece) {
        MultiplyBf16Tokens<M, kScaleSums>(*piece, codes + m * kRowBytes, x.rows, y + m * y_stride,
                                          y_stride, weights_of);
      }
    };
    if (m == 0) {
      // Unpacking, waiting for memory and multiplying overlap.
      multiply([&](int k) {
        next.Fetch();
        return weights[k] = unpacker.Next(unpacked + k);
      });
    } else {
      multiply([&](int k) {
        next.Fetch();
        return weights[k];
      });
    }
  });
}

template <class Format>
void SweepBf16(const WeightRun* runs, int count, const PackedRows& x, int first_tile,
               uint8_t* scratch, float* y, ptrdiff_t y_stride, Upcoming next) {
  const int k_tiles = TilesOf(runs, count);
  ScaledTiles pieces[kSweepTiles];
  if constexpr (Format::kScaled) {
    const Panel& panel = runs->panel;
    if (panel.tiles_per_scale > 1 || panel.scale_groups == 1) {
      const int n = CutByScale(runs, count, pieces);
      if (2 * n <= k_tiles) {
        SweepPieces<typename Format::WithoutScales, true>(runs, pieces, n, x, first_tile, scratch,
                                                          y, y_stride, next);
        return;
      }
    }
  }
  pieces[0].first = 0;
  pieces[0].end = k_tiles;
  SweepPieces<Format, false>(runs, pieces, 1, x, first_tile, scratch, y, y_stride, next);
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
