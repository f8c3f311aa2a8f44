// Sweeps on the int8 matrix unit, for weights of four bits and int8: twice the products a second of
// bf16, of operands half as long.
//
// A sum leaves its tile to meet its scales, which takes as long as four products of 64 inputs: so
// 128 inputs share one. Where weights have several scales there, they are rounded to int8 in steps
// of a 127th (of four bits a 120th, with zero points a 112th) of the largest |code · scale| that
// those 128 could have. That adds at most 0.57 of a step (0.5, and what a 16-bit factor for each
// scale is off), and nothing to four bits whose scale is the largest of the 128. Inputs are int8 in
// groups of 128 too.
#pragma once

#include <algorithm>
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

// 128 inputs' weights of 32 outputs as the unit takes them: rows of four inputs by 16 outputs.
struct alignas(64) GroupWeights {
  int8_t rows[kProducts][kWeightTiles][kTileRows][kLineBytes];
  float scales[kWeightTiles][kTileN];
};

// An output's factor for each of its inputs: of the low and the high eight bytes of 16, as a row
// has four inputs of an output side by side.
struct Factors {
  __m512i low, high;

  explicit Factors(__m512 factor) {
    const __m512i whole = _mm512_cvtps_epi32(factor);
    const __m512i halves = _mm512_mask_blend_epi16(0xaaaaaaaa, whole, _mm512_slli_epi32(whole, 16));
    low = _mm512_unpacklo_epi32(halves, halves);
    high = _mm512_unpackhi_epi32(halves, halves);
  }
};

// Formats: Integers turns a line of codes into kRows rows of integers, which times kUnit are the
// weights' values before their scales. Scaled makes a row steps of the largest scale, kStep long:
// kOneFactor is the factor of that scale itself.

// Values of at most kReach in magnitude: zero points are at most 16 (FORMAT.md).
template <bool kInteger, bool kHasZeroPoints>
struct NibbleIntegers {
  static constexpr int kBits = 4;
  static constexpr int kRows = 2;
  static constexpr int kReach = !kInteger ? 12 : kHasZeroPoints ? 16 : 8;
  // What a code of kReach with the largest scale becomes: a multiple, so that all with that scale
  // are exact.
  static constexpr int kLargest = kHasZeroPoints ? 112 : 120;
  static_assert(kLargest % kReach == 0);
  static constexpr float kStep = 1.0f * kReach / kLargest;
  // Products of integer · 2^8 and a factor are rounded at bit 15.
  static constexpr float kOneFactor = 128.0f / kStep;
  static constexpr float kUnit = kInteger ? 1.0f : 0.5f;
  static constexpr bool kZeroPoints = kHasZeroPoints;

  // zero_point: of a lane's output, in each of its bytes.
  static void Integers(__m512i codes, __m512i zero_point, __m512i* rows) {
    const __m512i low_nibbles = _mm512_set1_epi8(0x0f);
    rows[0] = Value(_mm512_and_si512(codes, low_nibbles), zero_point);
    rows[1] = Value(_mm512_and_si512(_mm512_srli_epi16(codes, 4), low_nibbles), zero_point);
  }
  static __m512i Scaled(__m512i row, const Factors& factors) {
    const __m512i zero = _mm512_setzero_si512();
    return _mm512_packs_epi16(_mm512_mulhrs_epi16(_mm512_unpacklo_epi8(zero, row), factors.low),
                              _mm512_mulhrs_epi16(_mm512_unpackhi_epi8(zero, row), factors.high));
  }

 private:
  static __m512i Value(__m512i nibbles, __m512i zero_point) {
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

struct Int8Integers {
  static constexpr int kBits = 8;
  static constexpr int kRows = 1;
  // -128 times a negative factor has to fit.
  static constexpr float kStep = 128.0f / 127.0f;
  static constexpr float kOneFactor = 32768.0f / kStep;
  static constexpr float kUnit = 1.0f;
  static constexpr bool kZeroPoints = false;

  static void Integers(__m512i codes, __m512i, __m512i* rows) { rows[0] = codes; }
  static __m512i Scaled(__m512i row, const Factors& factors) {
    const __m512i low = _mm512_srai_epi16(_mm512_unpacklo_epi8(row, row), 8);
    const __m512i high = _mm512_srai_epi16(_mm512_unpackhi_epi8(row, row), 8);
    return _mm512_packs_epi16(_mm512_mulhrs_epi16(low, factors.low),
                              _mm512_mulhrs_epi16(high, factors.high));
  }
};

// Walks through runs of weights in groups of 128 inputs, which begin at multiples of 128 of the
// rows that they meet; for two of the block's tiles of outputs, from `first` on.
template <class Format, int kGroups>
class GroupUnpacker {
 public:
  // The first of `k_tiles` tiles meets the rows' tile `k_begin`.
  GroupUnpacker(const WeightRun* runs, int first, int k_begin, int k_tiles)
      : run_(runs), first_(first), begin_(k_begin % kScaleTiles), left_(k_tiles) {}

  void Next(GroupWeights* out) {
    end_ = std::min(kScaleTiles, begin_ + left_);
    left_ -= end_ - begin_;
    LoadScales();
    for (int t = 0; t < kWeightTiles; ++t) UnpackOutputs(t, out);
    begin_ = 0;
  }

 private:
  static constexpr size_t kTileBytes = TileBytes(Format::kBits);

  // Of the group's tiles, and where their codes are.
  void LoadScales() {
    const int begin = first_ * kTileN, end = begin + kWeightTiles * kTileN;
    const auto load = [&](int64_t group, int count, int slot) {
      scales_.Load(run_->panel, group, count, 1.0f, begin, end, slot);
      if (!Format::kZeroPoints) return;
      scales_.LoadZeroPoints(run_->panel, group, count, 0.0f, 0.0f, slot);
    };
    slots_ = 0;
    int64_t last = -1;
    for (int tile = begin_; tile < end_;) {
      if (k_ == run_->k_tiles) ++run_, k_ = 0, last = -1;
      const int k_tile = run_->k_tile + k_;
      const int64_t group = GroupOf<kGroups>(run_->panel, run_->block, k_tile);
      // Those of tiles that have their own lie side by side.
      const bool own = kGroups > 1 || run_->panel.tiles_per_scale == 1;
      const int tiles = own ? std::min(end_ - tile, run_->k_tiles - k_) : 1;
      if (group != last) {
        load(group, tiles * kGroups, slots_);
        slots_ += tiles * kGroups;
        last = group;
      }
      for (int i = 0; i < tiles; ++i) {
        codes_[tile + i] =
            CodesAt(run_->panel, Format::kBits, run_->block, k_tile + i) + first_ * kTileBytes;
        slot_[tile + i] = slots_ - (tiles - i) * kGroups;
      }
      tile += tiles, k_ += tiles;
    }
  }

  void UnpackOutputs(int t, GroupWeights* out) const {
    const int n = (first_ + t) * kTileN;
    const __m512 scale = _mm512_load_ps(scales_.scale[0] + n);
    __m512 largest = _mm512_setzero_ps();
    __mmask16 differ = 0;
    for (int slot = 0; slot < slots_; ++slot) {
      const __m512 other = _mm512_load_ps(scales_.scale[slot] + n);
      largest = _mm512_max_ps(largest, _mm512_abs_ps(other));
      differ |= _mm512_cmp_ps_mask(other, scale, _CMP_NEQ_UQ);
    }
    if (differ == 0) {
      _mm512_store_ps(out->scales[t], _mm512_mul_ps(scale, _mm512_set1_ps(Format::kUnit)));
      UnpackTiles<true>(t, _mm512_setzero_ps(), out);
      return;
    }
    // Smaller weights are noise to any sum that they join, and the quotient could overflow.
    const __mmask16 some = _mm512_cmp_ps_mask(largest, _mm512_set1_ps(kSmallestGroup), _CMP_GE_OQ);
    _mm512_store_ps(out->scales[t], _mm512_mul_ps(_mm512_maskz_mov_ps(some, largest),
                                                  _mm512_set1_ps(Format::kStep * Format::kUnit)));
    UnpackTiles<false>(t, _mm512_maskz_div_ps(some, _mm512_set1_ps(Format::kOneFactor), largest),
                       out);
  }

  template <bool kOneScale>
  void UnpackTiles(int t, __m512 to_factor, GroupWeights* out) const {
    for (int tile = 0; tile < kScaleTiles; ++tile) {
      int8_t* rows = out->rows[tile / 2][t][tile % 2 * kTileRows / 2];
      if (tile >= begin_ && tile < end_) {
        UnpackTile<kOneScale>(codes_[tile] + t * kTileBytes, slot_[tile], t, to_factor, rows);
        continue;
      }
      for (int i = 0; i < kTileRows / 2; ++i) {
        _mm512_store_si512(rows + i * kLineBytes, _mm512_setzero_si512());
      }
    }
  }

  template <bool kOneScale>
  void UnpackTile(const uint8_t* codes, int slot, int t, __m512 to_factor, int8_t* rows) const {
    constexpr int kLines = static_cast<int>(kTileBytes) / kLineBytes;
    const int n = (first_ + t) * kTileN;
    for (int g = 0; g < kGroups; ++g) {
      const Factors factors(_mm512_mul_ps(_mm512_load_ps(scales_.scale[slot + g] + n), to_factor));
      __m512i zero_point = _mm512_setzero_si512();
      if constexpr (Format::kZeroPoints) {
        const __m512 value = _mm512_load_ps(scales_.zero_point[slot + g] + n);
        zero_point = _mm512_mullo_epi32(_mm512_cvtps_epi32(value), _mm512_set1_epi32(0x01010101));
      }
      for (int line = g * kLines / kGroups; line < (g + 1) * kLines / kGroups; ++line) {
        __m512i from_line[Format::kRows];
        Format::Integers(_mm512_loadu_si512(codes + line * kLineBytes), zero_point, from_line);
        for (__m512i row : from_line) {
          if constexpr (!kOneScale) row = Format::Scaled(row, factors);
          _mm512_store_si512(rows, row);
          rows += kLineBytes;
        }
      }
    }
  }

  const WeightRun* run_;
  const int first_;
  int begin_, end_;  // of the tiles in this group
  int left_;         // tiles in all later ones
  int k_ = 0;        // tiles of the run that are behind
  const uint8_t* codes_[kScaleTiles];
  // Of a tile's first scale.
  int slot_[kScaleTiles], slots_;
  GroupScales<kScaleTiles * kGroups> scales_;
};

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

inline void MultiplyGroup(const uint8_t* codes, GroupSums& sums) {
  LSG_TILE_ZERO(0);
  LSG_TILE_ZERO(1);
  LSG_TILE_LOAD_FAR(2, codes, kScaleInputs);
  LSG_TILE_DOT_INT8(0, 2, 4);
  LSG_TILE_DOT_INT8(1, 2, 5);
  LSG_TILE_LOAD_FAR(3, codes + kProductBytes, kScaleInputs);
  LSG_TILE_DOT_INT8(0, 3, 6);
  LSG_TILE_DOT_INT8(1, 3, 7);
  LSG_TILE_STORE(0, sums.at[0], kLineBytes);
  LSG_TILE_STORE(1, sums.at[1], kLineBytes);
}

// y += the products times their scales.
inline void AddScaled(const GroupSums& sums, ptrdiff_t y_stride) {
  const __m512 scales[kWeightTiles] = {_mm512_load_ps(sums.weights->scales[0]),
                                       _mm512_load_ps(sums.weights->scales[1])};
  for (int r = sums.first; r < sums.end; ++r) {
    const __m512 x_scale = _mm512_set1_ps(sums.x_scales[r]);
    float* y = sums.y + r * y_stride;
    for (int t = 0; t < kWeightTiles; ++t) {
      const __m512 value = _mm512_cvtepi32_ps(_mm512_load_si512(sums.at[t][r]));
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
  const int fetch = next.PerStep(int64_t{kTilesPerBlock / kWeightTiles} * blocks * groups);
  // The vector units work on the last block's sums and the next group's weights while the matrix
  // unit multiplies.
  GroupWeights weights[2];
  GroupSums sums[2];
  int at = 0;
  for (int t = 0; t < kTilesPerBlock; t += kWeightTiles) {
    GroupUnpacker<Format, kGroups> unpacker(runs, t, first_tile, k_tiles);
    unpacker.Next(&weights[0]);
    for (int g = 0; g < groups; ++g) {
      HoldWeights(weights[g & 1]);
      for (int block = 0; block < blocks; ++block, at ^= 1) {
        next.Fetch(fetch);
        const int begin = std::min(block * rows, x.rows - rows);
        const int64_t row = int64_t{g} * x.rows + begin;
        GroupSums& mine = sums[at];
        MultiplyGroup(codes + row * kScaleInputs, mine);
        mine.weights = &weights[g & 1];
        mine.x_scales = x_scales + row;
        mine.y = y + begin * y_stride + t * kTileN;
        mine.first = block * rows - begin;
        mine.end = rows;
        if (g + block > 0) AddScaled(sums[at ^ 1], y_stride);
        if (block == 0 && g + 1 < groups) unpacker.Next(&weights[(g + 1) & 1]);
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
