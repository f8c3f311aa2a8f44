// Many tokens through one panel, on AVX-512's bf16 dot product: code times scale is rounded to bf16
// once, to nearest even, and so are the inputs; sums are f32, in an order of their own, so levels
// below give results that differ by rounding. Twice as many products an instruction as in f32.
#pragma once

#include "kernels/bf16_weights-inl.h"

namespace lsg {
namespace {

using BlockWeights = Bf16Weights<kTilesPerBlock>;

// Tokens whose sums, a block of outputs each, fit the registers.
constexpr int kBf16SweepTokens = 6;
// Measured with 128 experts, 8 a token, on 2 cores of a Zen 4, ms for 48, 64 and 128 tokens: bf16
// 31, 36 and 60 in one pass, 27, 28 and 41 in two; fp8 29, 37 and 69, 33, 38 and 47. A token's bits
// are to be the same as alone for as long as that costs little.
constexpr int kBf16WorthTokens = 4;

inline __m512bh PairsAt(const void* p) { return std::bit_cast<__m512bh>(_mm512_loadu_si512(p)); }

// A block's 64 outputs of M tokens: sums stay in registers through all inputs. `codes` are the
// first token's in the first tile of inputs; `weights(k)` gives a tile of inputs' weights.
template <int M, class WeightsOf>
void MultiplyBf16Tokens(int k_tiles, const uint8_t* codes, int rows, float* y, ptrdiff_t y_stride,
                        const WeightsOf& weights) {
  constexpr int kRowBytes = kTileK * 2;
  __m512 sums[M][kTilesPerBlock];
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) {
#pragma GCC unroll 4
    for (int t = 0; t < kTilesPerBlock; ++t) {
      sums[m][t] = _mm512_loadu_ps(y + m * y_stride + t * kTileN);
    }
  }
  for (int k = 0; k < k_tiles; ++k, codes += int64_t{rows} * kRowBytes) {
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
      _mm512_storeu_ps(y + m * y_stride + t * kTileN, sums[m][t]);
    }
  }
}

template <class Format>
void SweepBf16(const WeightRun* runs, int count, const PackedRows& x, int first_tile,
               uint8_t* scratch, float* y, ptrdiff_t y_stride, Upcoming next) {
  constexpr int kRowBytes = kTileK * 2;
  auto* unpacked = reinterpret_cast<BlockWeights*>(scratch);
  const BlockWeights* weights[kSweepTiles];
  const int k_tiles = TilesOf(runs, count);
  const uint8_t* codes = x.codes + int64_t{first_tile} * x.rows * kRowBytes;
  const int turns = Turns(x.rows, kBf16SweepTokens);
  const int fetch = next.PerStep(int64_t{turns} * k_tiles);
  Unpacker<Format, 1, kTilesPerBlock> unpacker(runs, 0);
  ForTokens<kBf16SweepTokens>(x.rows, [&]<int M>(int m) {
    const uint8_t* inputs = codes + m * kRowBytes;
    float* sums = y + m * y_stride;
    if (m == 0) {
      // Unpacking, waiting for memory and multiplying overlap.
      MultiplyBf16Tokens<M>(k_tiles, inputs, x.rows, sums, y_stride, [&](int k) {
        next.Fetch(fetch);
        return weights[k] = unpacker.Next(unpacked + k);
      });
    } else {
      MultiplyBf16Tokens<M>(k_tiles, inputs, x.rows, sums, y_stride, [&](int k) {
        next.Fetch(fetch);
        return weights[k];
      });
    }
  });
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
