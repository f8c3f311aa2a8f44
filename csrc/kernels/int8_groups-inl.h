// Weights as the int8 matrix unit takes them: 128 inputs of an output share a scale.
//
// A sum leaves its tile to meet its scale, which takes as long as four products of 64 inputs, so
// scales for 32 inputs would cost more than they give. Where integer weights have several scales
// there, they are rounded to int8 in steps of a 127th (of four bits a 120th, with zero points a
// 112th) of the largest |code · scale| that those 128 could have. That adds at most 0.57 of a step
// (0.5, and what a 16-bit factor for each scale is off), and nothing to four bits whose scale is
// the largest of the 128.
//
// 8-bit floats are rounded in steps of a 127th. Where the largest magnitudes of the 16 outputs that
// are unpacked together differ by no more than a factor of two, and each has one scale, it is of
// the largest of them: at most half a step, a 127th of the output's own largest. That takes one
// lookup in a table. Else it is of the output's own largest, times its largest scale: at most 0.62
// of a step, and half of 2^-12 of the largest power of two among the 16, by way of integers of 16
// bits. (Kernels alone on a Zen 4 core, for 32 × 128 weights: 126 and 187 ns, to bf16 247.)
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "kernels/amx_tiles.h"
#include "kernels/block-inl.h"
#include "kernels/int8_formats-inl.h"
#include "kernels/quantize-inl.h"

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

// Walks through runs of weights in groups of 128 inputs, which begin at multiples of 128 of the
// rows that they meet; for two of the block's tiles of outputs, from `first` on.
template <class Format, int kGroups>
class GroupUnpacker {
 public:
  // The first of `k_tiles` tiles meets the rows' tile `k_begin`.
  GroupUnpacker(const WeightRun* runs, int first, int k_begin, int k_tiles)
      : run_(runs), first_(first), begin_(k_begin % kScaleTiles), left_(k_tiles) {
    if (kAhead) Prepare();
  }

  void Next(GroupWeights* out) {
    if (!kAhead) Prepare();
    for (int t = 0; t < kWeightTiles; ++t) UnpackOutputs(t, out);
    begin_ = 0;
    if (kAhead && left_ > 0) Prepare();
  }

 private:
  static constexpr size_t kTileBytes = TileBytes(Format::kBits);
  // 8-bit floats are prepared a group ahead, because each step of that waits for the last.
  static constexpr bool kAhead = kIsFp8<Format>;

  // What 16 outputs' next weights meet.
  struct Outputs {
    __m512 scale;
    bool one_scale;  // for each output, in the whole group
    // Of 8-bit floats with one scale the factor itself, else what makes scales factors.
    __m512 to_factor;
    // Of 8-bit floats: whether steps are a 127th of the largest magnitude of all 16.
    bool one_step;
    int largest_magnitude;
  };

  void Prepare() {
    end_ = std::min(kScaleTiles, begin_ + left_);
    left_ -= end_ - begin_;
    LoadScales();
    for (int t = 0; t < kWeightTiles; ++t) PrepareOutputs(t);
  }

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

  void PrepareOutputs(int t) {
    const int n = (first_ + t) * kTileN;
    const __m512 scale = _mm512_load_ps(scales_.scale[0] + n);
    __m512 largest = _mm512_setzero_ps();
    __mmask16 differ = 0;
    for (int slot = 0; slot < slots_; ++slot) {
      const __m512 other = _mm512_load_ps(scales_.scale[slot] + n);
      largest = _mm512_max_ps(largest, _mm512_abs_ps(other));
      differ |= _mm512_cmp_ps_mask(other, scale, _CMP_NEQ_UQ);
    }
    Outputs& of = outputs_[t];
    of.one_scale = differ == 0;
    // Smaller weights are noise to any sum that they join, and the quotient could overflow.
    const __mmask16 some = _mm512_cmp_ps_mask(largest, _mm512_set1_ps(kSmallestGroup), _CMP_GE_OQ);
    if constexpr (kIsFp8<Format>) {
      PrepareFloats(t, some, scale, largest);
    } else if (of.one_scale) {
      of.scale = _mm512_mul_ps(scale, _mm512_set1_ps(Format::kUnit));
    } else {
      of.scale = _mm512_maskz_mul_ps(some, largest, _mm512_set1_ps(Format::kStep * Format::kUnit));
      of.to_factor = _mm512_maskz_div_ps(some, _mm512_set1_ps(Format::kOneFactor), largest);
    }
  }

  // `largest`, of an output's scales, where there are some.
  void PrepareFloats(int t, __mmask16 some, __m512 scale, __m512 largest) {
    using Magnitude = Format::Magnitude;
    const __m512i magnitudes = LargestMagnitudes(t);
    Outputs& of = outputs_[t];
    of.largest_magnitude = static_cast<int>(_mm512_reduce_max_epu32(magnitudes));
    // Outputs of nothing but zeros have any step.
    const __m512i half = _mm512_set1_epi32(of.largest_magnitude - Magnitude::kTwice);
    const __mmask16 less = _mm512_mask_cmplt_epi32_mask(
        _mm512_test_epi32_mask(magnitudes, magnitudes), magnitudes, half);
    of.one_step = of.one_scale && less == 0 && of.largest_magnitude >= 2 * Magnitude::kTwice;
    if (of.one_step) {
      const auto integer = static_cast<float>(Magnitude::Significand(of.largest_magnitude));
      const float unit = Magnitude::PowerOfTwo(Magnitude::Exponent(of.largest_magnitude),
                                               -Magnitude::kMantissaBits);
      of.scale = _mm512_mul_ps(scale, _mm512_set1_ps(integer * unit / 127.0f));
      return;
    }
    const Format format(of.largest_magnitude);
    const __m512 integers = _mm512_cvtepi32_ps(format.Integers(magnitudes));
    const __mmask16 any = _mm512_cmp_ps_mask(integers, _mm512_setzero_ps(), _CMP_GT_OQ);
    // An output's largest becomes 127, but where that takes a factor of more than one. Factors are
    // whole, so that weights with the largest scale have no error of theirs.
    const __m512 wanted =
        _mm512_mul_ps(_mm512_set1_ps(127 * 0x1p15f), _mm512_maskz_rcp14_ps(any, integers));
    const __m512 factor = _mm512_roundscale_ps(_mm512_min_ps(wanted, _mm512_set1_ps(0x1p15f - 1)),
                                               _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const __m512 step = _mm512_maskz_div_ps(any, _mm512_set1_ps(format.unit() * 0x1p15f), factor);
    if (of.one_scale) {
      of.scale = _mm512_mul_ps(step, scale);
      of.to_factor = factor;
    } else {
      of.scale = _mm512_maskz_mul_ps(some, step, largest);
      of.to_factor = _mm512_maskz_div_ps(some, factor, largest);
    }
  }

  // Of each of 16 outputs' codes.
  __m512i LargestMagnitudes(int t) const {
    __m512i largest = _mm512_setzero_si512();
    for (int tile = begin_; tile < end_; ++tile) {
      const uint8_t* codes = codes_[tile] + t * kTileBytes;
      for (int at = 0; at < static_cast<int>(kTileBytes); at += kLineBytes) {
        const __m512i magnitudes =
            _mm512_and_si512(_mm512_loadu_si512(codes + at), _mm512_set1_epi8(0x7f));
        largest = _mm512_max_epu8(largest, magnitudes);
      }
    }
    largest = _mm512_max_epu8(largest, _mm512_srli_epi32(largest, 16));
    largest = _mm512_max_epu8(largest, _mm512_srli_epi32(largest, 8));
    return _mm512_and_si512(largest, _mm512_set1_epi32(0xff));
  }

  void UnpackOutputs(int t, GroupWeights* out) const {
    const Outputs& of = outputs_[t];
    _mm512_store_ps(out->scales[t], of.scale);
    if constexpr (kIsFp8<Format>) {
      if (of.one_step) {
        UnpackAs127ths(t, out);
      } else {
        UnpackFloats(t, out);
      }
    } else if (of.one_scale) {
      UnpackIntegers<true>(t, out);
    } else {
      UnpackIntegers<false>(t, out);
    }
  }

  void UnpackAs127ths(int t, GroupWeights* out) const {
    const typename Format::As127ths steps(outputs_[t].largest_magnitude);
    UnpackTiles(t, out, [&](const uint8_t* codes, int, int8_t* rows) {
      for (int at = 0; at < static_cast<int>(kTileBytes); at += kLineBytes) {
        _mm512_store_si512(rows + at, steps.Rounded(_mm512_loadu_si512(codes + at)));
      }
    });
  }

  void UnpackFloats(int t, GroupWeights* out) const {
    const Outputs& of = outputs_[t];
    const Format format(of.largest_magnitude);
    const Factors one(of.to_factor);
    const int n = (first_ + t) * kTileN;
    UnpackTiles(t, out, [&](const uint8_t* codes, int slot, int8_t* rows) {
      const __m512 scale = _mm512_load_ps(scales_.scale[slot] + n);
      const Factors factors = of.one_scale ? one : Factors(_mm512_mul_ps(scale, of.to_factor));
      for (int at = 0; at < static_cast<int>(kTileBytes); at += kLineBytes) {
        _mm512_store_si512(rows + at, format.Rounded(_mm512_loadu_si512(codes + at), factors));
      }
    });
  }

  template <bool kOneScale>
  void UnpackIntegers(int t, GroupWeights* out) const {
    UnpackTiles(t, out, [&](const uint8_t* codes, int slot, int8_t* rows) {
      UnpackTile<kOneScale>(codes, slot, t, outputs_[t].to_factor, rows);
    });
  }

  // `unpack(codes, slot, rows)` for a tile that the group has; zeros for others.
  template <class Unpack>
  void UnpackTiles(int t, GroupWeights* out, const Unpack& unpack) const {
    for (int tile = 0; tile < kScaleTiles; ++tile) {
      int8_t* rows = out->rows[tile / 2][t][tile % 2 * kTileRows / 2];
      if (tile >= begin_ && tile < end_) {
        unpack(codes_[tile] + t * kTileBytes, slot_[tile], rows);
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
  Outputs outputs_[kWeightTiles];
  GroupScales<kScaleTiles * kGroups> scales_;
};

}  // namespace
}  // namespace lsg
