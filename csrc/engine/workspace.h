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
#include "engine/scratch.h"
#include "engine/shared_pieces.h"
#include "kernels/kernels.h"

namespace lsg {

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
  alignas(64) std::atomic<int> next_output{0};
  alignas(64) std::atomic<int> busy{0};  // workers that have a task, in one pass
  int tasks = 0;                         // of one pass
  Scratch<float> slots;                  // [slot][token][out_stride]
  std::vector<uint8_t> filled;           // [slot][token]
  std::vector<std::atomic<int>> left;    // of each unit the tasks that are not done, in one pass
  Scratch<uint8_t> packed_act;           // [routed token][the node's row of the down sweep]
  Scratch<float> sums;  // [piece][range], as `out`; unused where one piece is everything

  void ExpectTasks(size_t units, int of_each) {
    if (left.size() < units) left = std::vector<std::atomic<int>>(units);
    for (std::atomic<int>& tasks_left : left) tasks_left = of_each;
  }
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
  // [tokens, out_stride]; of a prompt [range][blocks][tokens, 64], so that a block's owner writes
  // to its own memory, and not to a few sets of its cache.
  Scratch<float> out;
  // Ranges of experts whose sums lie there apart.
  int sum_ranges = 1;
  std::vector<NodeWorkspace> nodes;
  std::vector<SharedPieces> shared;        // each worker's, of records that it has begun
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

  // Memory for the sums of so many tokens.
  void GrowSums(const MoeLayer& layer, int tokens, int ranges) {
    sum_ranges = ranges;
    const int64_t size = int64_t{tokens} * layer.out_stride();
    const bool whole = layer.pieces().size() == 1;
    out.Grow(size * (whole ? std::max(ranges, 1) : 1));
    for (int node = 0; !whole && node < static_cast<int>(nodes.size()); ++node) {
      nodes[node].sums.Grow((layer.EndPiece(node) - layer.FirstPiece(node)) * size * ranges);
    }
  }
  // Where the sum over a range of experts of one of a node's pieces goes.
  float* PieceSum(const MoeLayer& layer, int node, int piece, int tokens, int range = 0) {
    const int64_t size = int64_t{tokens} * layer.out_stride();
    if (layer.pieces().size() == 1) return out.data() + range * size;
    const int64_t at = int64_t{piece - layer.FirstPiece(node)} * sum_ranges + range;
    return nodes[node].sums.data() + at * size;
  }
  // The block of 64 outputs at `at` of the tokens' sums, over all nodes' pieces and all ranges.
  void SumPieces(const MoeLayer& layer, int tokens, int64_t at, float* sum) {
    const std::vector<UnitRange>& pieces = layer.pieces();
    if (pieces.empty() || sum_ranges == 0) {
      std::fill_n(sum, kBlockN, 0.0f);
      return;
    }
    // The tree is walked in order, and so are the pieces.
    int node = 0, piece = 0;
    SumUnits<kBlockN>(layer.unit_range(), sum, [&](UnitRange units, float* part) {
      if (units != pieces[piece]) return false;
      while (piece >= layer.EndPiece(node)) ++node;
      std::copy_n(PieceSum(layer, node, piece, tokens) + at, kBlockN, part);
      for (int range = 1; range < sum_ranges; ++range) {
        const float* more = PieceSum(layer, node, piece, tokens, range) + at;
        for (int n = 0; n < kBlockN; ++n) part[n] += more[n];
      }
      ++piece;
      return true;
    });
  }
};

}  // namespace lsg
