// y += W · x on AVX-512's bf16 dot product, for weights that are exact as bf16: inputs are rounded
// to bf16, which hidden states mostly are, to nearest even. Nothing else is rounded but sums, in
// f32 and in an order of their own, so levels below differ from this one. The instruction takes
// subnormal numbers as 0.
//
// Against panel_float-inl.h: twice the products an instruction, and weights stay in pairs.
#pragma once

#include "kernels/bf16_weights-inl.h"

namespace lsg {
namespace {

// A weight format turns the codes of four inputs (of 16 outputs) into two operands of dot products
// and knows what they meet, four inputs from `x` on, and what their sums mean.
struct Bf16Dots {
  static constexpr int kBits = 16;
  static constexpr bool kScaled = false;
  static void Weights(const uint8_t* codes, __m512i* w) {
    w[0] = _mm512_loadu_si512(codes);
    w[1] = _mm512_loadu_si512(codes + kLineBytes);
  }
  static void Inputs(const int8_t* x, __m512i* in) {
    in[0] = Simd::Broadcast4(x);
    in[1] = Simd::Broadcast4(x + 4);
  }
  static __m512 Finish(const __m512* sums) { return _mm512_add_ps(sums[0], sums[1]); }
};

// Codes widen within 128 bits, so an operand has two outputs of four, two lanes each.
template <int kExponentBits>
struct Fp8Dots {
  static constexpr int kBits = 8;
  static constexpr bool kScaled = true;
  static void Weights(const uint8_t* codes, __m512i* w) {
    const Fp8Bytes bytes = Fp8ToBf16<kExponentBits>(_mm512_loadu_si512(codes));
    w[0] = _mm512_unpacklo_epi8(bytes.low, bytes.high);
    w[1] = _mm512_unpackhi_epi8(bytes.low, bytes.high);
  }
  static void Inputs(const int8_t* x, __m512i* in) {
    int64_t four;
    std::memcpy(&four, x, sizeof four);
    in[0] = in[1] = _mm512_set1_epi64(four);
  }
  static __m512 Finish(const __m512* sums) {
    return _mm512_add_ps(_mm512_shuffle_ps(sums[0], sums[1], 0x88),
                         _mm512_shuffle_ps(sums[0], sums[1], 0xdd));
  }
};

template <class Weight, int M>
void Bf16Panel(const Panel& panel, const float* const* x, float* const* y, bool accumulate) {
  constexpr size_t kTileBytes = TileBytes(Weight::kBits);
  constexpr size_t kStep = kTilesPerBlock * kTileBytes;
  // Unpacking takes as long as reading when three or four tokens' products come on top.
  constexpr bool kWaits = !Weight::kScaled || M <= 2;
  const bool few = kWaits && panel.few_fetches;
  // Tiles of outputs that share a load of an input.
  constexpr int kTiles = kWaits ? 1 : 2;
  const uint8_t* codes = panel.codes;
  Ahead ahead(panel, kStep);
  BlockSums<M> sums;
  ScaleWalk<1> scales(panel, 1.0f, 0.0f, 0.0f);
  // A tile of inputs is rounded while the one before is multiplied: what was just stored as a
  // vector is slow to load in pieces.
  alignas(64) int8_t rounded[2][M][kTileK * 2];
  const auto round_tile = [&](auto& out, int k_tile) {
    for (int m = 0; m < M; ++m) {
      _mm512_store_si512(out[m], Bf16Inputs<NaturalOrder>(x[m] + k_tile * kTileK));
    }
  };
  unsigned turn = 0;
  round_tile(rounded[0], 0);
  for (int block = 0; block < panel.blocks; ++block) {
    sums.Begin(panel, block, y, accumulate);
    scales.BeginBlock();
    for (int k_tile = 0; k_tile < panel.k_tiles; ++k_tile) {
      if constexpr (Weight::kScaled) scales.Next();
      const uint8_t* fetch = ahead.Step(kStep);
      const auto* inputs = rounded[turn % 2];
      round_tile(rounded[++turn % 2], k_tile + 1 < panel.k_tiles ? k_tile + 1 : 0);
      for (int t = 0; t < kTilesPerBlock; t += kTiles) {
        PrefetchLines(fetch, kTiles * kTileBytes, few);
        __m512 sum[M][kTiles][2];
        for (int m = 0; m < M; ++m) {
          for (auto& of_tile : sum[m]) of_tile[0] = of_tile[1] = _mm512_setzero_ps();
        }
#pragma GCC unroll 2
        for (int k = 0; k < kTileK; k += 4) {
          __m512i w[kTiles][2];
#pragma GCC unroll 4
          for (int i = 0; i < kTiles; ++i) {
            Weight::Weights(codes + i * kTileBytes + k * (kTileBytes / kTileK), w[i]);
          }
#pragma GCC unroll 4
          for (int m = 0; m < M; ++m) {
            __m512i in[2];
            Weight::Inputs(inputs[m] + 2 * k, in);
#pragma GCC unroll 4
            for (int i = 0; i < kTiles; ++i) {
#pragma GCC unroll 2
              for (int half = 0; half < 2; ++half) {
                sum[m][i][half] =
                    _mm512_dpbf16_ps(sum[m][i][half], std::bit_cast<__m512bh>(w[i][half]),
                                     std::bit_cast<__m512bh>(in[half]));
              }
            }
          }
        }
        for (int m = 0; m < M; ++m) {
          for (int i = 0; i < kTiles; ++i) {
            const __m512 tile = Weight::Finish(sum[m][i]);
            __m512& total = sums.at[m][t + i][0];
            if constexpr (Weight::kScaled) {
              const __m512 scale = _mm512_load_ps(scales.Scale(0) + (t + i) * kTileN);
              total = _mm512_fmadd_ps(tile, scale, total);
            } else {
              total = _mm512_add_ps(tile, total);
            }
          }
        }
        codes += kTiles * kTileBytes;
        fetch += kTiles * kTileBytes;
      }
    }
    sums.End(block, y);
  }
}

template <class Weight>
void Bf16Entry(const Panel& panel, const float* const* x, int tokens, float* const* y,
               bool accumulate) {
  WithCount<kMaxTokens>(tokens, [&]<int M>() { Bf16Panel<Weight, M>(panel, x, y, accumulate); });
}

constexpr void UseBf16Panels(Kernels& table) {
  table.fp8_e4m3.bf16 = &Bf16Entry<Fp8Dots<4>>;
  table.fp8_e5m2.bf16 = &Bf16Entry<Fp8Dots<5>>;
  table.bf16.bf16 = &Bf16Entry<Bf16Dots>;
}

}  // namespace
}  // namespace lsg
