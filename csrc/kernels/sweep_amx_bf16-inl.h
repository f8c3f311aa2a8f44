// Sweeps on the bf16 matrix unit, for weights of every format: code times scale is rounded to bf16
// once, to nearest even, and so are the inputs; sums are f32, in an order of their own, so other
// levels' results differ by rounding.
//
// The int8 unit is twice as fast, but its sums would have to leave it to meet the scales of every
// 32 inputs: 65 cycles for a product that takes 8. Scaled weights let a sum stay in its tile. (With
// int8 inputs see sweep_amx_int8-inl.h.)
#pragma once

#include "kernels/amx_tiles.h"
#include "kernels/bf16_weights-inl.h"

namespace lsg {
namespace {

using TileWeights = Bf16Weights<kWeightTiles>;
// Tiles of inputs swept at once: as bf16 their weights for 32 outputs take 128 KiB of L2.
constexpr int kAmxSweepTiles = 64;
// What is swept next is fetched between products: as a burst it held up their loads.
constexpr int kFetchesPerStep = 4;
// Where only one turn needs the weights, they go round in this many places, and stay in L1.
constexpr int kRingTiles = 4;

// With 16 or 32 tokens two or four sums, so that every operand is used twice.
inline void ConfigureTiles(int rows) {
  const int upper = rows < kTileRows ? rows : kTileRows, lower = rows > upper ? rows - upper : 1;
  TileConfig config;
  for (int i = 0; i < kWeightTiles; ++i) {
    config.Set(i, upper, kLineBytes);
    config.Set(2 + i, lower, kLineBytes);
    config.Set(6 + i, kTileK / 2, kLineBytes);
  }
  config.Set(4, upper, kLineBytes);
  config.Set(5, lower, kLineBytes);
  LSG_TILE_CONFIGURE(config);
}

// 32 outputs of up to 16 tokens, or of 17 to 32 where kLower: sums stay in tiles through all
// inputs. `weights(k)` gives a tile of inputs' weights; between products what is swept next is
// fetched.
template <bool kLower, class WeightsOf>
void MultiplyBf16(int k_tiles, const uint8_t* codes, int64_t tile_bytes, float* y,
                  ptrdiff_t y_stride, const WeightsOf& weights, Upcoming& next) {
  constexpr int kRowBytes = kTileK * 2;
  const ptrdiff_t y_bytes = y_stride * static_cast<ptrdiff_t>(sizeof(float));
  float* y1 = y + kTileRows * y_stride;
  LSG_TILE_LOAD(0, y, y_bytes);
  LSG_TILE_LOAD(1, y + kTileN, y_bytes);
  if constexpr (kLower) {
    LSG_TILE_LOAD(2, y1, y_bytes);
    LSG_TILE_LOAD(3, y1 + kTileN, y_bytes);
  }
  for (int k = 0; k < k_tiles; ++k, codes += tile_bytes) {
    const TileWeights* w = weights(k);
    LSG_TILE_LOAD_FAR(6, w->pairs[0], kLineBytes);
    next.Fetch();
    LSG_TILE_LOAD_FAR(4, codes, kRowBytes);
    LSG_TILE_DOT_BF16(0, 4, 6);
    next.Fetch();
    LSG_TILE_LOAD_FAR(7, w->pairs[1], kLineBytes);
    LSG_TILE_DOT_BF16(1, 4, 7);
    next.Fetch();
    if constexpr (kLower) {
      LSG_TILE_LOAD_FAR(5, codes + kTileRows * kRowBytes, kRowBytes);
      LSG_TILE_DOT_BF16(2, 5, 6);
      LSG_TILE_DOT_BF16(3, 5, 7);
    }
    next.Fetch();
  }
  LSG_TILE_STORE(0, y, y_bytes);
  LSG_TILE_STORE(1, y + kTileN, y_bytes);
  if constexpr (kLower) {
    LSG_TILE_STORE(2, y1, y_bytes);
    LSG_TILE_STORE(3, y1 + kTileN, y_bytes);
  }
}

template <class Format, int kGroups>
void SweepBf16(const WeightRun* runs, int count, const PackedRows& x, int first_tile,
               uint8_t* scratch, float* y, ptrdiff_t y_stride, Upcoming next) {
  constexpr int kRowBytes = kTileK * 2;
  constexpr int kRows = 2 * kTileRows;
  auto* unpacked = reinterpret_cast<TileWeights*>(scratch);
  const int64_t tile_bytes = int64_t{x.rows} * kRowBytes;
  const uint8_t* codes = x.codes + first_tile * tile_bytes;
  const int k_tiles = TilesOf(runs, count);
  const int64_t steps = int64_t{kTilesPerBlock / kWeightTiles} * Turns(x.rows, kRows) * k_tiles;
  next.SpreadOver(steps * kFetchesPerStep);
  const int mask = x.rows > kRows ? -1 : kRingTiles - 1;
  int configured = 0;
  for (int t = 0; t < kTilesPerBlock; t += kWeightTiles) {
    // The vector units unpack a tile of inputs ahead of the matrix unit; neither waits.
    Unpacker<Format, kGroups, kWeightTiles> unpacker(runs, t);
    unpacker.Next(unpacked);
    const auto unpack = [&](int k) {
      if (k + 1 < k_tiles) unpacker.Next(unpacked + ((k + 1) & mask));
      return unpacked + (k & mask);
    };
    const auto keep = [&](int k) { return unpacked + k; };
    for (int m = 0; m < x.rows; m += kRows) {
      const int rows = x.rows - m < kRows ? x.rows - m : kRows;
      if (rows != configured) ConfigureTiles(rows);
      configured = rows;
      const uint8_t* inputs = codes + m * kRowBytes;
      float* sums = y + m * y_stride + t * kTileN;
      const bool lower = rows > kTileRows;
      if (m == 0 && lower) {
        MultiplyBf16<true>(k_tiles, inputs, tile_bytes, sums, y_stride, unpack, next);
      } else if (m == 0) {
        MultiplyBf16<false>(k_tiles, inputs, tile_bytes, sums, y_stride, unpack, next);
      } else if (lower) {
        MultiplyBf16<true>(k_tiles, inputs, tile_bytes, sums, y_stride, keep, next);
      } else {
        MultiplyBf16<false>(k_tiles, inputs, tile_bytes, sums, y_stride, keep, next);
      }
    }
  }
  LSG_TILE_RELEASE();
}

template <int kGroups>
constexpr auto kSweepInt4Bf16 = &SweepByZeroPoints<&SweepBf16<NibblePairs<true, true>, kGroups>,
                                                   &SweepBf16<NibblePairs<true, false>, kGroups>>;

// Measured with 128 experts, 8 a token, on 2 cores, ms for 32, 64 and 128 tokens: int4 25, 38 and
// 67 in one pass, 34, 37 and 38 in two; fp8 46, 72, 126 and 43, 50, 51. A token's bits are to be
// the same as alone for as long as that costs little. (The int8 sweeps are a little faster.)
constexpr int kAmxWorthTokens = 4;

template <auto sweep, class Order>
constexpr SweepKernels kBf16Sweep = {
    .int8_inputs = false,
    .group_tiles = 1,
    .code_bytes = kTileK * 2,
    .meta_bytes = 0,
    .max_tiles = kAmxSweepTiles,
    .worth_tokens = kAmxWorthTokens,
    .weight_bytes = sizeof(TileWeights),
    .pack = &PackBf16<Order>,
    .sweep = sweep,
};

}  // namespace
}  // namespace lsg
