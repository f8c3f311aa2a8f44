// Sweeps on the int8 matrix unit, for weights of up to eight bits: twice the products a second of
// bf16, of operands half as long. Inputs are int8 in groups of 128, as weights are
// (int8_groups-inl.h).
#pragma once

#include <algorithm>
#include <cstring>

#include "kernels/int8_groups-inl.h"
#include "kernels/sweep_amx_bf16-inl.h"

namespace lsg {
namespace {

// Codes [groups][rows][128], scales [groups][rows].
inline void PackInt8Groups(const float* x, int tiles, const PackedRows& rows, int first_tile,
                           int row) {
  for (int tile = 0; tile < tiles; tile += kScaleTiles) {
    const int64_t at = int64_t{first_tile + tile} / kScaleTiles * rows.rows + row;
    const int inputs = std::min(kScaleTiles, tiles - tile) * kTileK;
    auto* codes = reinterpret_cast<int8_t*>(rows.codes + at * kScaleInputs);
    const float scale = QuantizeGroup(x + tile * kTileK, inputs, codes, [](int, const Simd::I&) {});
    std::memset(codes + inputs, 0, kScaleInputs - inputs);
    std::memcpy(rows.metas + at * sizeof scale, &scale, sizeof scale);
  }
}

// Weights stay in tiles 4 … 7 while all tokens pass, in blocks of up to 16: these meet in tiles 2
// and 3, and their sums in 0 and 1.
inline void ConfigureGroupTiles(int rows) {
  TileConfig config;
  for (int i = 0; i < 4; ++i) config.Set(i, rows, kLineBytes);
  for (int i = 4; i < 8; ++i) config.Set(i, kTileRows, kLineBytes);
  LSG_TILE_CONFIGURE(config);
}

// They were unpacked just before, so they are in L1.
inline void HoldWeights(const GroupWeights& w) {
  LSG_TILE_LOAD(4, w.rows[0][0], kLineBytes);
  LSG_TILE_LOAD(5, w.rows[0][1], kLineBytes);
  LSG_TILE_LOAD(6, w.rows[1][0], kLineBytes);
  LSG_TILE_LOAD(7, w.rows[1][1], kLineBytes);
}

// A block of tokens' products with the weights held, and where they go.
struct alignas(64) GroupSums {
  int32_t at[kWeightTiles][kTileRows][kTileN];
  const GroupWeights* weights;
  const float* x_scales;
  float* y;
  int first, end;  // rows that no other block has
};

inline void MultiplyGroup(const uint8_t* codes) {
  LSG_TILE_ZERO(0);
  LSG_TILE_ZERO(1);
  LSG_TILE_LOAD_FAR(2, codes, kScaleInputs);
  LSG_TILE_DOT_INT8(0, 2, 4);
  LSG_TILE_DOT_INT8(1, 2, 5);
  LSG_TILE_LOAD_FAR(3, codes + kProductBytes, kScaleInputs);
  LSG_TILE_DOT_INT8(0, 3, 6);
  LSG_TILE_DOT_INT8(1, 3, 7);
}

inline void StoreProducts(GroupSums& sums) {
  LSG_TILE_STORE(0, sums.at[0], kLineBytes);
  LSG_TILE_STORE(1, sums.at[1], kLineBytes);
}

// y += the products times their scales. What the loop needs is read before it: for all the compiler
// knows, every store to y changes `sums`.
inline void AddScaled(const GroupSums& sums, ptrdiff_t y_stride) {
  const __m512 scales[kWeightTiles] = {_mm512_load_ps(sums.weights->scales[0]),
                                       _mm512_load_ps(sums.weights->scales[1])};
  const auto* products = sums.at;
  const float* x_scales = sums.x_scales;
  const int end = sums.end;
  float* y = sums.y + sums.first * y_stride;
  for (int r = sums.first; r < end; ++r, y += y_stride) {
    const __m512 x_scale = _mm512_set1_ps(x_scales[r]);
    for (int t = 0; t < kWeightTiles; ++t) {
      const __m512 value = _mm512_cvtepi32_ps(_mm512_load_si512(products[t][r]));
      const __m512 before = _mm512_loadu_ps(y + t * kTileN);
      _mm512_storeu_ps(y + t * kTileN,
                       _mm512_fmadd_ps(value, _mm512_mul_ps(scales[t], x_scale), before));
    }
  }
}

template <class Format, int kGroups>
void SweepGroups(const WeightRun* runs, int count, const PackedRows& x, int first_tile, uint8_t*,
                 float* y, ptrdiff_t y_stride, Upcoming next) {
  const int k_tiles = TilesOf(runs, count);
  const int first_group = first_tile / kScaleTiles;
  const int groups = (first_tile + k_tiles + kScaleTiles - 1) / kScaleTiles - first_group;
  const uint8_t* codes = x.codes + int64_t{first_group} * x.rows * kScaleInputs;
  const auto* x_scales = reinterpret_cast<const float*>(x.metas) + int64_t{first_group} * x.rows;
  // Blocks of as many rows each: the last begins early, and leaves out what others have.
  const int blocks = Turns(x.rows, kTileRows);
  const int rows = Turns(x.rows, blocks);
  ConfigureGroupTiles(rows);
  next.SpreadOver(int64_t{kTilesPerBlock / kWeightTiles} * blocks * groups * kFetchesPerStep);
  // The vector units work on the last block's sums and the next group's weights while the matrix
  // unit multiplies; its products are stored last, because stores that wait leave no room for what
  // could go on.
  GroupWeights weights[2];
  GroupSums sums[2];
  int at = 0;
  for (int t = 0; t < kTilesPerBlock; t += kWeightTiles) {
    GroupUnpacker<Format, kGroups> unpacker(runs, t, first_tile, k_tiles);
    unpacker.Next(&weights[0]);
    for (int g = 0; g < groups; ++g) {
      HoldWeights(weights[g & 1]);
      for (int block = 0; block < blocks; ++block, at ^= 1) {
        next.Fetch();
        const int begin = std::min(block * rows, x.rows - rows);
        const int64_t row = int64_t{g} * x.rows + begin;
        GroupSums& mine = sums[at];
        MultiplyGroup(codes + row * kScaleInputs);
        next.Fetch();
        mine.weights = &weights[g & 1];
        mine.x_scales = x_scales + row;
        mine.y = y + begin * y_stride + t * kTileN;
        mine.first = block * rows - begin;
        mine.end = rows;
        if (g + block > 0) AddScaled(sums[at ^ 1], y_stride);
        next.Fetch();
        if (block == 0 && g + 1 < groups) unpacker.Next(&weights[(g + 1) & 1]);
        next.Fetch();
        StoreProducts(mine);
      }
    }
    AddScaled(sums[at ^ 1], y_stride);
  }
  LSG_TILE_RELEASE();
}

template <int kGroups>
constexpr auto kSweepInt4Groups =
    &SweepByZeroPoints<&SweepGroups<NibbleIntegers<true, true>, kGroups>,
                       &SweepGroups<NibbleIntegers<true, false>, kGroups>>;

template <auto sweep>
constexpr SweepKernels kInt8GroupSweep = {
    .int8_inputs = true,
    .group_tiles = kScaleTiles,
    .code_bytes = kScaleInputs,
    .meta_bytes = sizeof(float),
    .max_tiles = kAmxSweepTiles,
    .worth_tokens = kAmxWorthTokens,
    .weight_bytes = 0,
    .pack = &PackInt8Groups,
    .sweep = sweep,
};

}  // namespace
}  // namespace lsg
