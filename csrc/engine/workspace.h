// What a forward pass needs beside the weights. Grows to the largest batch seen, never shrinks.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "base/align.h"
#include "engine/moe_engine.h"
#include "engine/routing.h"
#include "kernels/kernels.h"

namespace lsg {

// Memory that grows and is not touched before it is used, so that its pages come from the node of
// the worker that writes them first.
template <typename T>
class Scratch {
 public:
  void Grow(int64_t size) {
    if (size <= size_) return;
    data_.reset(new T[size]);
    size_ = size;
  }
  T* data() { return data_.get(); }
  const T* data() const { return data_.get(); }

 private:
  std::unique_ptr<T[]> data_;
  int64_t size_ = 0;
};

// Rows of int8 groups for some number of tokens.
struct Int8Rows {
  Scratch<int8_t> codes;
  Scratch<float> scales;
  Scratch<int16_t> half_sums;
  int k_tiles = 0;

  void Resize(int64_t rows, int tiles) {
    k_tiles = tiles;
    codes.Grow(rows * tiles * kTileK);
    scales.Grow(rows * tiles);
    half_sums.Grow(rows * tiles * 2);
  }
  Int8Row Row(int64_t row, int tile = 0) const {
    const int64_t at = row * k_tiles + tile;
    return {codes.data() + at * kTileK, scales.data() + at, half_sums.data() + 2 * at};
  }
  void Quantize(const Kernels& kernels, int64_t row, int tile, const float* x, int tiles) {
    const int64_t at = row * k_tiles + tile;
    kernels.quantize_row(x, tiles, codes.data() + at * kTileK, scales.data() + at,
                         half_sums.data() + 2 * at);
  }
};

// What the workers of one node write, and nobody else.
struct MoeEngine::NodeWorkspace {
  alignas(64) std::atomic<int> next_task{0};
  alignas(64) std::atomic<int> next_block{0};
  Scratch<float> slots;         // [slot][token][out_stride]
  std::vector<uint8_t> filled;  // [slot][token]
  Scratch<uint8_t> packed_act;  // [routed token][the node's row of the down sweep]
  Scratch<float> sums;          // [piece], each as `out`; unused where one piece is everything
};

// Routed experts whose ids lie in one range: indices into Routing::experts.
struct ExpertRange {
  int index;  // of the range
  int begin, end;
  int passes;  // over weights: each takes kMaxTokens tokens
};

struct MoeEngine::Workspace {
  Routing routing;
  Scratch<float> hidden;    // [tokens, in_stride]
  Scratch<float> gathered;  // [routed tokens, in_stride], where inputs have orders
  Int8Rows hidden_int8;     // rows of `gathered` if there are any, else of `hidden`
  // [tokens, out_stride]; of a prompt [blocks][tokens, 64], so that a block's owner writes to its
  // own memory, and not to a few sets of its cache.
  Scratch<float> out;
  std::vector<NodeWorkspace> nodes;
  Scratch<uint8_t> packed_hidden;          // [tokens][row of the gate_up sweep]
  std::vector<int32_t> by_size;            // indices of routing.experts, most tokens first
  std::vector<ExpertRange> expert_ranges;  // those with routed experts

  // Sorts the routed experts into `ranges` equal ranges of ids; those that take longest come first,
  // or in order.
  void SplitExperts(int ranges, int num_experts, bool longest_first) {
    expert_ranges.clear();
    const int count = static_cast<int>(routing.experts.size());
    for (int index = 0, at = 0; index < ranges; ++index) {
      ExpertRange range{index, at, at, 0};
      const int end = static_cast<int>(int64_t{num_experts} * (index + 1) / ranges);
      for (; at < count && routing.experts[at].expert < end; ++at) {
        range.passes += CeilDiv(routing.experts[at].end - routing.experts[at].begin, kMaxTokens);
      }
      range.end = at;
      if (range.end > range.begin) expert_ranges.push_back(range);
    }
    if (!longest_first) return;
    std::sort(expert_ranges.begin(), expert_ranges.end(), [](const auto& a, const auto& b) {
      return a.passes != b.passes ? a.passes > b.passes : a.index < b.index;
    });
  }

  // Where the sum of one of a node's pieces goes, laid out as `out`.
  float* PieceSum(const MoeLayer& layer, int node, int piece, int tokens) {
    if (layer.pieces().size() == 1) return out.data();
    return nodes[node].sums.data() +
           int64_t{piece - layer.FirstPiece(node)} * tokens * layer.out_stride();
  }
};

}  // namespace lsg
