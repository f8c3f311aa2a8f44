// What both passes over a prompt sweep with.
#pragma once

#include <algorithm>
#include <cstdint>

#include "base/align.h"
#include "engine/scratch.h"
#include "kernels/kernels.h"

namespace lsg {

// Packed inputs swept at once: they stay in L2 beside the weights.
inline constexpr int64_t kSweepInputBytes = 1 << 20;
inline constexpr int kMaxSweepRows = 256;
// Units whose weights meet in one sweep, at most: they go on the stack.
inline constexpr int kMaxRuns = 64;

// Rows of a sweep for an expert of so many tokens: as few sweeps as fit, about equally long.
inline int SweepRows(int64_t row_bytes, int tokens) {
  const int most = static_cast<int>(
      std::clamp<int64_t>(kSweepInputBytes / row_bytes / 16 * 16, 16, kMaxSweepRows));
  return static_cast<int>(AlignUp(CeilDiv(tokens, CeilDiv(tokens, most)), 16));
}

// A worker's own memory, kept between calls.
struct SweepScratch {
  uint8_t* weights;
  uint8_t* rows;
  float* sums;  // [kMaxSweepRows][64]
  float* acts;  // [kMaxSweepRows][act_row], until they are packed

  SweepScratch(int64_t weight_bytes, int64_t row_bytes, int act_row) {
    constexpr int64_t kSumBytes = int64_t{kMaxSweepRows} * kBlockN * sizeof(float);
    const int64_t act_bytes = int64_t{kMaxSweepRows} * act_row * sizeof(float);
    thread_local Scratch<uint8_t> memory;
    memory.Grow(weight_bytes + row_bytes + act_bytes + kSumBytes);
    sums = reinterpret_cast<float*>(memory.data());
    acts = reinterpret_cast<float*>(memory.data() + kSumBytes);
    weights = memory.data() + kSumBytes + act_bytes;
    rows = weights + weight_bytes;
  }
};

inline void FillRows(float* sums, int rows, const float* bias) {
  for (int r = 0; r < rows; ++r) {
    if (bias == nullptr) {
      std::fill_n(sums + r * kBlockN, kBlockN, 0.0f);
    } else {
      std::copy_n(bias, kBlockN, sums + r * kBlockN);
    }
  }
}

// Where weights lie that a later sweep reads.
class Later {
 public:
  // Up to max_tiles tiles of a block's inputs, from k_tile on.
  void Add(const Panel& panel, int block, int k_tile, int max_tiles, int64_t tile_bytes) {
    const int tiles = std::min(max_tiles, panel.k_tiles - k_tile);
    const uint8_t* codes = panel.codes + (int64_t{block} * panel.k_tiles + k_tile) * tile_bytes;
    ranges_[count_++] = {codes, codes + tiles * tile_bytes};
    if (panel.scales == nullptr) return;
    const int64_t group_bytes = kBlockN / panel.scale_rows * BytesOf(panel.scale_dtype);
    const int groups = panel.scale_groups, k_tiles = panel.k_tiles;
    const int first = k_tile * groups / k_tiles;
    const int end = CeilDiv((k_tile + tiles) * groups, k_tiles);
    const uint8_t* scales = panel.scales + int64_t{block} * groups * group_bytes;
    ranges_[count_++] = {scales + first * group_bytes, scales + end * group_bytes};
  }
  Upcoming All() const { return {ranges_, count_}; }

 private:
  ByteRange ranges_[2 * kMaxRuns];
  int count_ = 0;
};

}  // namespace lsg
