// Panels and inputs for single kernels, where what they are does not matter: benchmarks, and
// comparisons of one kernel with another.
#pragma once

#include <algorithm>
#include <cstdint>
#include <random>
#include <vector>

#include "cpu/isa.h"
#include "kernels/kernels.h"

namespace lsg {

// Memory that begins with a line.
class Aligned {
 public:
  explicit Aligned(size_t bytes) : memory_(bytes + 64) {}
  uint8_t* data() {
    return reinterpret_cast<uint8_t*>((reinterpret_cast<uintptr_t>(memory_.data()) + 63) / 64 * 64);
  }

 private:
  std::vector<uint8_t> memory_;
};

// Between -1 and 1.
inline std::vector<float> RandomFloats(int count) {
  std::minstd_rand random(1);
  std::vector<float> values(count);
  for (float& value : values) value = static_cast<float>(random() % 2001) / 1000 - 1;
  return values;
}

// Random codes that are finite in every format, and no subnormal 8-bit floats, which cost some
// processors a hundred cycles and checkpoints hardly have; scales that are small powers of two.
struct RandomPanel {
  RandomPanel(const PanelFormat& format, int blocks, int k_tiles)
      : code_bytes(size_t{1} * blocks * kBlockN * k_tiles * kTileK * BitsOf(format.dtype) / 8),
        codes(code_bytes) {
    std::minstd_rand random(1);
    const bool fp8 = format.dtype == Dtype::kFp8E4m3 || format.dtype == Dtype::kFp8E5m2;
    const uint8_t exponent = fp8 ? 0x40 : 0;
    for (size_t i = 0; i < code_bytes; ++i) {
      codes.data()[i] = (static_cast<uint8_t>(random() >> 8) & 0x77) | exponent;
    }
    const bool scaled = format.scale_dtype != ScaleDtype::kNone;
    const int groups = scaled ? k_tiles * kTileK / static_cast<int>(format.scale_k) : 0;
    const int rows = static_cast<int>(format.scale_rows);
    if (scaled) {
      // 0x3c3c3c3c is about 0.01 in f32 and bf16, 1.5 in e4m3 and 2^-67 in e8m0.
      scales.assign(size_t{1} * blocks * groups * (kBlockN / rows) * BytesOf(format.scale_dtype),
                    0x3c);
    }
    panel = {.codes = codes.data(),
             .scales = scaled ? scales.data() : nullptr,
             .zero_points = nullptr,
             .bias = nullptr,
             .blocks = blocks,
             .k_tiles = k_tiles,
             .scale_groups = groups,
             .tiles_per_scale =
                 scaled ? std::max(static_cast<int>(format.scale_k) / kTileK, 1) : k_tiles,
             .scale_dtype = format.scale_dtype,
             .scale_rows = rows,
             .global_scale = {1.0f, 1.0f},
             .whole = true,
             .next = {},
             .cached = false,
             .few_fetches = NeedsFewFetches()};
  }
  RandomPanel(const RandomPanel&) = delete;
  RandomPanel& operator=(const RandomPanel&) = delete;

  size_t code_bytes;
  Aligned codes;
  std::vector<uint8_t> scales;
  Panel panel;
};

// As many tokens' inputs as a panel kernel takes, as floats and quantised.
struct RandomRows {
  RandomRows(const Kernels& kernels, int k_tiles)
      : x(RandomFloats(kMaxTokens * k_tiles * kTileK)),
        codes(x.size()),
        scales(kMaxTokens * k_tiles),
        sums(2 * kMaxTokens * k_tiles) {
    for (int t = 0; t < kMaxTokens; ++t) {
      floats[t] = x.data() + t * k_tiles * kTileK;
      int8_t* row_codes = codes.data() + t * k_tiles * kTileK;
      float* row_scales = scales.data() + t * k_tiles;
      int16_t* row_sums = sums.data() + 2 * t * k_tiles;
      kernels.quantize_row(floats[t], k_tiles, row_codes, row_scales, row_sums);
      int8[t] = {row_codes, row_scales, row_sums};
    }
  }
  RandomRows(const RandomRows&) = delete;
  RandomRows& operator=(const RandomRows&) = delete;

  std::vector<float> x;
  std::vector<int8_t> codes;
  std::vector<float> scales;
  std::vector<int16_t> sums;
  const float* floats[kMaxTokens];
  Int8Row int8[kMaxTokens];
};

// A panel kernel's outputs for so many tokens.
struct Out {
  Out(int tokens, int outputs) : values(size_t{1} * tokens * outputs) {
    for (int t = 0; t < tokens; ++t) rows[t] = values.data() + t * outputs;
  }
  Out(const Out&) = delete;
  Out& operator=(const Out&) = delete;

  std::vector<float> values;
  float* rows[kMaxTokens] = {};
};

}  // namespace lsg
