// Sweeps on the int8 matrix unit, for weights of four bits: twice the products a second of bf16, of
// operands half as long.
//
// A sum leaves its tile to meet its scales, which takes as long as four products of 64 inputs: so
// 128 inputs share one. Weights are rounded to int8 in steps of a 120th (with zero points a 112th)
// of the largest |code · scale| that those 128 could have, which adds at most 0.57 of a step (0.5,
// and what a 16-bit factor for each scale is off), and nothing where a scale is the largest of the
// 128. Inputs are int8 in groups of 128 too. Beside the steps that four bits of such a scale leave,
// 7 to 15 of these, that is little; other formats would lose more and stay with bf16.
#pragma once

#include <algorithm>
#include <bit>
#include <cstring>

#include "kernels/quantize-inl.h"
#include "kernels/sweep_amx_bf16-inl.h"

namespace lsg {
namespace {

// Tiles of inputs that share scales.
constexpr int kScaleTiles = 4;
constexpr int kScaleInputs = kScaleTiles * kTileK;
// Inputs of a product: two tiles'.
constexpr int kProductBytes = 64;
constexpr int kProducts = kScaleInputs / kProductBytes;
// Where only one turn needs the weights, they go round in this many places, and stay in L1.
constexpr int kRingGroups = 2;

// 128 inputs' weights of 32 outputs as the unit takes them: rows of four inputs by 16 outputs.
struct alignas(64) GroupWeights {
  int8_t rows[kProducts][kWeightTiles][kTileRows][kLineBytes];
  float scales[kWeightTiles][kTileN];
};

// What a nibble means, as an integer times kUnit, at most kReach in magnitude: zero points are at
// most 16 (FORMAT.md).
template <bool kInteger, bool kHasZeroPoints>
struct NibbleIntegers {
  static constexpr int kReach = !kInteger ? 12 : kHasZeroPoints ? 16 : 8;
  // What a code of kReach with the largest scale becomes: a multiple, so that all with that scale
  // are exact.
  static constexpr int kLargest = kHasZeroPoints ? 112 : 120;
  static_assert(kLargest % kReach == 0);
  static constexpr float kUnit = kInteger ? 1.0f : 0.5f;
  static constexpr bool kZeroPoints = kHasZeroPoints;
  // zero_point: of a lane's output, in each of its bytes.
  static __m512i Decode(__m512i nibbles, __m512i zero_point) {
    if constexpr (kInteger) {
      return _mm512_sub_epi8(nibbles, kHasZeroPoints ? zero_point : _mm512_set1_epi8(8));
    } else {
      alignas(16) static constexpr int8_t kDoubled[16] = {0, 1,  2,  3,  4,  6,  8,  12,
                                                          0, -1, -2, -3, -4, -6, -8, -12};
      const __m128i table = _mm_load_si128(reinterpret_cast<const __m128i*>(kDoubled));
      return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(table), nibbles);
    }
  }
};

// Walks through runs of weights in groups of 128 inputs, which begin at multiples of 128 of the
// rows that they meet; for two of the block's tiles of outputs, from `first` on.
template <class Format, int kGroups>
class GroupUnpacker {
 public:
  // The first of `k_tiles` tiles meets the rows' tile `k_begin`.
  GroupUnpacker(const WeightRun* runs, int first, int k_begin, int k_tiles)
      : run_(runs), first_(first), at_(k_begin % kScaleTiles), left_(k_tiles) {}

  const GroupWeights* Next(GroupWeights* out) {
    const int end = std::min(kScaleTiles, at_ + left_);
    left_ -= end - at_;
    const uint8_t* codes[kScaleTiles] = {};
    alignas(64) float scales[kScaleTiles][kGroups][kWeightTiles][kTileN];
    alignas(64) float zero_points[kScaleTiles][kGroups][kWeightTiles][kTileN];
    __m512 largest[kWeightTiles] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
    for (int tile = at_; tile < end; ++tile, ++k_) {
      if (k_ == run_->k_tiles) ++run_, k_ = 0, group_ = -1;
      const int k_tile = run_->k_tile + k_;
      codes[tile] = CodesAt(run_->panel, 4, run_->block, k_tile) + first_ * TileBytes(4);
      LoadScales(GroupOf<kGroups>(run_->panel, run_->block, k_tile));
      for (int g = 0; g < kGroups; ++g) {
        for (int t = 0; t < kWeightTiles; ++t) {
          const int n = (first_ + t) * kTileN;
          const __m512 scale = _mm512_load_ps(scales_.scale[g] + n);
          _mm512_store_ps(scales[tile][g][t], scale);
          if constexpr (Format::kZeroPoints) {
            _mm512_store_ps(zero_points[tile][g][t], _mm512_load_ps(scales_.zero_point[g] + n));
          }
          largest[t] = _mm512_max_ps(largest[t], _mm512_abs_ps(scale));
        }
      }
    }
    __m512 to_factor[kWeightTiles];
    for (int t = 0; t < kWeightTiles; ++t) {
      // Smaller weights are noise to any sum that they join, and the quotient could overflow.
      const __mmask16 some =
          _mm512_cmp_ps_mask(largest[t], _mm512_set1_ps(kSmallestGroup), _CMP_GE_OQ);
      constexpr float kStep = 1.0f * Format::kReach / Format::kLargest;
      to_factor[t] = _mm512_maskz_div_ps(some, _mm512_set1_ps(kFactorOne / kStep), largest[t]);
      _mm512_store_ps(out->scales[t], _mm512_mul_ps(_mm512_maskz_mov_ps(some, largest[t]),
                                                    _mm512_set1_ps(kStep * Format::kUnit)));
    }
    for (int tile = 0; tile < kScaleTiles; ++tile) {
      for (int t = 0; t < kWeightTiles; ++t) {
        int8_t* rows = out->rows[tile / 2][t][tile % 2 * kTileRows / 2];
        if (tile < at_ || tile >= end) {
          for (int i = 0; i < kTileRows / 2; ++i) {
            _mm512_store_si512(rows + i * kLineBytes, _mm512_setzero_si512());
          }
          continue;
        }
        UnpackTile(codes[tile] + t * TileBytes(4), scales[tile], zero_points[tile], t, to_factor[t],
                   rows);
      }
    }
    at_ = 0;
    return out;
  }

 private:
  // What a factor of one is: products of code · 2^8 and a factor are rounded at bit 15.
  static constexpr float kFactorOne = 128.0f;
  using TileScales = float[kGroups][kWeightTiles][kTileN];

  void LoadScales(int64_t group) {
    if (group == group_) return;
    group_ = group;
    const int begin = first_ * kTileN, end = begin + kWeightTiles * kTileN;
    scales_.Load(run_->panel, group, kGroups, 1.0f, begin, end);
    if (Format::kZeroPoints) scales_.LoadZeroPoints(run_->panel, group, kGroups, 0.0f, 0.0f);
  }

  static void UnpackTile(const uint8_t* codes, const TileScales& scales,
                         const TileScales& zero_points, int t, __m512 to_factor, int8_t* rows) {
    constexpr int kLines = static_cast<int>(TileBytes(4)) / kLineBytes;
    const __m512i low_nibbles = _mm512_set1_epi8(0x0f);
    const __m512i high_bytes = _mm512_set1_epi16(static_cast<int16_t>(0xff00));
    for (int g = 0; g < kGroups; ++g) {
      // A lane's factor in both its halves.
      const __m512i factor32 =
          _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_load_ps(scales[g][t]), to_factor));
      const __m512i factor =
          _mm512_mask_blend_epi16(0xaaaaaaaa, factor32, _mm512_slli_epi32(factor32, 16));
      __m512i zero_point = _mm512_setzero_si512();
      if constexpr (Format::kZeroPoints) {
        zero_point = _mm512_mullo_epi32(_mm512_cvtps_epi32(_mm512_load_ps(zero_points[g][t])),
                                        _mm512_set1_epi32(0x01010101));
      }
      for (int line = g * kLines / kGroups; line < (g + 1) * kLines / kGroups; ++line) {
        const __m512i code = _mm512_loadu_si512(codes + line * kLineBytes);
        for (int i = 0; i < 2; ++i) {
          const __m512i nibbles =
              _mm512_and_si512(i == 0 ? code : _mm512_srli_epi16(code, 4), low_nibbles);
          const __m512i integer = Format::Decode(nibbles, zero_point);
          const __m512i even = _mm512_mulhrs_epi16(_mm512_slli_epi16(integer, 8), factor);
          const __m512i odd = _mm512_mulhrs_epi16(_mm512_and_si512(integer, high_bytes), factor);
          _mm512_store_si512(
              rows + (2 * line + i) * kLineBytes,
              _mm512_mask_blend_epi8(0xaaaaaaaaaaaaaaaa, even, _mm512_slli_epi16(odd, 8)));
        }
      }
    }
  }

  const WeightRun* run_;
  const int first_;
  int at_;    // of the next tile in its group
  int left_;  // tiles
  int k_ = 0;
  int64_t group_ = -1;
  GroupScales<kGroups> scales_;
};

// Codes [groups][rows][128], scales [groups][rows].
inline void PackInt8Groups(const float* x, int tiles, const PackedRows& rows, int first_tile,
                           int row) {
  for (int tile = 0; tile < tiles; tile += kScaleTiles) {
    const int64_t at = int64_t{first_tile + tile} / kScaleTiles * rows.rows + row;
    const int vectors = std::min(kScaleTiles, tiles - tile) * kTileK / Simd::kLanes;
    const float* from = x + tile * kTileK;
    const __m512i magnitude_bits = _mm512_set1_epi32(0x7fffffff);
    __m512i largest_bits = _mm512_setzero_si512();
    for (int v = 0; v < vectors; ++v) {
      const __m512i bits = _mm512_loadu_si512(from + v * Simd::kLanes);
      largest_bits = _mm512_max_epu32(largest_bits, _mm512_and_si512(bits, magnitude_bits));
    }
    const uint32_t magnitude = _mm512_reduce_max_epu32(largest_bits);
    const float largest = std::bit_cast<float>(magnitude);
    const bool zero = largest < kSmallestGroup;
    const bool finite = magnitude < kInfinityBits;
    const __mmask16 some = zero || !finite ? 0 : 0xffff;
    const __m512 to_code = _mm512_set1_ps(some == 0 ? 0.0f : 127.0f / largest);
    uint8_t* codes = rows.codes + at * kScaleInputs;
    for (int v = 0; v < kScaleInputs / Simd::kLanes; ++v) {
      const __m512 value =
          _mm512_maskz_loadu_ps(v < vectors ? some : __mmask16{0}, from + v * Simd::kLanes);
      const __m512i code = _mm512_cvtps_epi32(_mm512_mul_ps(value, to_code));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(codes + v * Simd::kLanes),
                       _mm512_cvtsepi32_epi8(code));
    }
    // Non-finite inputs become code 0; the scale carries the NaN.
    const float scale = zero ? 0.0f : finite ? largest / 127.0f : std::bit_cast<float>(0x7fc00000);
    std::memcpy(rows.metas + at * sizeof scale, &scale, sizeof scale);
  }
}

// y += the products of 128 inputs, for 32 outputs of up to 16 tokens, or of 17 to 32 where kLower.
template <bool kLower>
void MultiplyGroup(const GroupWeights& w, const uint8_t* codes, const float* x_scales, int rows,
                   float* y, ptrdiff_t y_stride) {
  LSG_TILE_ZERO(0);
  LSG_TILE_ZERO(1);
  if constexpr (kLower) {
    LSG_TILE_ZERO(2);
    LSG_TILE_ZERO(3);
  }
  for (int k = 0; k < kProducts; ++k, codes += kProductBytes) {
    LSG_TILE_LOAD_FAR(6, w.rows[k][0], kLineBytes);
    LSG_TILE_LOAD_FAR(4, codes, kScaleInputs);
    LSG_TILE_DOT_INT8(0, 4, 6);
    LSG_TILE_LOAD_FAR(7, w.rows[k][1], kLineBytes);
    LSG_TILE_DOT_INT8(1, 4, 7);
    if constexpr (kLower) {
      LSG_TILE_LOAD_FAR(5, codes + kTileRows * kScaleInputs, kScaleInputs);
      LSG_TILE_DOT_INT8(2, 5, 6);
      LSG_TILE_DOT_INT8(3, 5, 7);
    }
  }
  alignas(64) int32_t sums[4][kTileRows][kTileN];
  LSG_TILE_STORE(0, sums[0], kLineBytes);
  LSG_TILE_STORE(1, sums[1], kLineBytes);
  if constexpr (kLower) {
    LSG_TILE_STORE(2, sums[2], kLineBytes);
    LSG_TILE_STORE(3, sums[3], kLineBytes);
  }
  const __m512 scales[kWeightTiles] = {_mm512_load_ps(w.scales[0]), _mm512_load_ps(w.scales[1])};
  for (int r = 0; r < rows; ++r, y += y_stride) {
    const __m512 x_scale = _mm512_set1_ps(x_scales[r]);
    for (int t = 0; t < kWeightTiles; ++t) {
      const int32_t* sum = sums[r / kTileRows * 2 + t][r % kTileRows];
      const __m512 value = _mm512_cvtepi32_ps(_mm512_load_si512(sum));
      const __m512 before = _mm512_loadu_ps(y + t * kTileN);
      _mm512_storeu_ps(y + t * kTileN,
                       _mm512_fmadd_ps(value, _mm512_mul_ps(scales[t], x_scale), before));
    }
  }
}

template <class Format, int kGroups>
void SweepGroups(const WeightRun* runs, int count, const PackedRows& x, int first_tile,
                 uint8_t* scratch, float* y, ptrdiff_t y_stride, Upcoming next) {
  constexpr int kRows = 2 * kTileRows;
  auto* unpacked = reinterpret_cast<GroupWeights*>(scratch);
  const int k_tiles = TilesOf(runs, count);
  const int first_group = first_tile / kScaleTiles;
  const int groups = (first_tile + k_tiles + kScaleTiles - 1) / kScaleTiles - first_group;
  const uint8_t* codes = x.codes + int64_t{first_group} * x.rows * kScaleInputs;
  const auto* x_scales = reinterpret_cast<const float*>(x.metas) + int64_t{first_group} * x.rows;
  const int64_t steps = int64_t{kTilesPerBlock / kWeightTiles} * Turns(x.rows, kRows) * groups;
  const int fetch = next.PerStep(steps);
  const int mask = x.rows > kRows ? -1 : kRingGroups - 1;
  int configured = 0;
  for (int t = 0; t < kTilesPerBlock; t += kWeightTiles) {
    // The vector units unpack a group ahead of the matrix unit.
    GroupUnpacker<Format, kGroups> unpacker(runs, t, first_tile, k_tiles);
    unpacker.Next(unpacked);
    for (int m = 0; m < x.rows; m += kRows) {
      const int rows = std::min(kRows, x.rows - m);
      if (rows != configured) ConfigureTiles(rows);
      configured = rows;
      const auto multiply = rows > kTileRows ? &MultiplyGroup<true> : &MultiplyGroup<false>;
      for (int g = 0; g < groups; ++g) {
        next.Fetch(fetch);
        if (m == 0 && g + 1 < groups) unpacker.Next(unpacked + ((g + 1) & mask));
        const int64_t row = int64_t{g} * x.rows + m;
        multiply(unpacked[g & mask], codes + row * kScaleInputs, x_scales + row, rows,
                 y + m * y_stride + t * kTileN, y_stride);
      }
    }
  }
  LSG_TILE_RELEASE();
}

template <int kGroups>
constexpr auto kSweepInt4Groups = &SweepInt4<&SweepGroups<NibbleIntegers<true, true>, kGroups>,
                                             &SweepGroups<NibbleIntegers<true, false>, kGroups>>;

template <auto sweep>
constexpr SweepKernels kInt8GroupSweep = {
    .int8_inputs = true,
    .group_tiles = kScaleTiles,
    .code_bytes = kScaleInputs,
    .meta_bytes = sizeof(float),
    .max_tiles = kAmxSweepTiles,
    .worth_tokens = kAmxWorthTokens,
    // A group may be there for a single tile.
    .weight_bytes = sizeof(GroupWeights),
    .pack = &PackInt8Groups,
    .sweep = sweep,
};

}  // namespace
}  // namespace lsg
