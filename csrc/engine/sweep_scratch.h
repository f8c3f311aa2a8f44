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
// Where a token has too many inputs for that, a part of them meets several blocks of outputs in
// turn, whose sums stay there too.
inline constexpr int64_t kPartInputBytes = 1 << 19;
inline constexpr int64_t kPartSumBytes = 1 << 18;
// Units whose weights meet in one sweep, at most: they go on the stack.
inline constexpr int kMaxRuns = 64;

// How an expert's tokens meet its gate and up: so many rows at a time, of which so many tiles of
// inputs meet so many blocks of outputs before the next tiles do.
struct SweepParts {
  int rows, tiles, blocks;

  // As few times as kMaxSweepRows allows, with about as many rows each: every time weights are read
  // and unpacked.
  SweepParts(const SweepKernels& sweep, int k_tiles, int tokens)
      : rows(static_cast<int>(AlignUp(CeilDiv(tokens, CeilDiv(tokens, kMaxSweepRows)), 16))),
        tiles(sweep.max_tiles),
        blocks(1) {
    if (rows * sweep.RowBytes(k_tiles) <= kSweepInputBytes) return;
    const int64_t group_bytes = rows * sweep.RowBytes(sweep.group_tiles);
    const int64_t sum_bytes = rows * kBlockN * int64_t{sizeof(float)};
    const auto groups = static_cast<int>(std::max<int64_t>(kPartInputBytes / group_bytes, 1));
    tiles = std::min(groups * sweep.group_tiles, sweep.max_tiles);
    blocks = static_cast<int>(std::max<int64_t>(kPartSumBytes / sum_bytes, 1));
  }
};

// A worker's own memory, kept between calls.
struct SweepScratch {
  uint8_t* weights;
  uint8_t* rows;
  float* sums;  // [blocks][kMaxSweepRows][64]
  float* acts;  // [kMaxSweepRows][act_row], until they are packed

  SweepScratch(int64_t weight_bytes, int64_t row_bytes, int act_row, int blocks) {
    const int64_t sum_bytes = blocks * int64_t{kMaxSweepRows} * kBlockN * sizeof(float);
    const int64_t act_bytes = int64_t{kMaxSweepRows} * act_row * sizeof(float);
    thread_local Scratch<uint8_t> memory;
    memory.Grow(weight_bytes + row_bytes + act_bytes + sum_bytes);
    sums = reinterpret_cast<float*>(memory.data());
    acts = reinterpret_cast<float*>(memory.data() + sum_bytes);
    weights = memory.data() + sum_bytes + act_bytes;
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
