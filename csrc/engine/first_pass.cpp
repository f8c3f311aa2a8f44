// The first pass over a prompt: hidden states to activations, one task for an expert and some of
// its units.
#include <algorithm>
#include <atomic>
#include <numeric>

#include "base/align.h"
#include "engine/sweep_scratch.h"
#include "engine/workspace.h"

namespace lsg {
namespace {

// First-pass tasks of a node, where it has as many units, so that threads end together.
constexpr int kTasks = 256;

}  // namespace

void MoeEngine::CollectInputs(const MoeLayer& layer, const uint32_t* order,
                              const RoutedToken* routed, const PackedRows& x) const {
  const SweepKernels& sweep = layer.gate_up_sweep();
  const int k_tiles = layer.in_stride() / kTileK;
  if (order == nullptr) {
    for (int r = 0; r < x.rows; ++r) {
      sweep.CopyRow(HiddenRow(layer, routed[r].token), 0, x, r, k_tiles);
    }
    return;
  }
  thread_local Scratch<float> own;
  own.Grow(layer.in_stride());
  float* row = own.data();
  std::fill(row + layer.hidden_size(), row + layer.in_stride(), 0.0f);
  for (int r = 0; r < x.rows; ++r) {
    const float* hidden = workspace_->hidden.data() + int64_t{routed[r].token} * layer.in_stride();
    for (int k = 0; k < layer.hidden_size(); ++k) row[k] = hidden[order[k]];
    sweep.pack(row, k_tiles, x, 0, r);
  }
}

void MoeEngine::Activations(const MoeLayer& layer, int node, const ExpertTokens& expert,
                            UnitRange units) {
  Workspace& ws = *workspace_;
  const SweepKernels& sweep = layer.gate_up_sweep();
  const SweepKernels& down = layer.down_sweep();
  const int k_tiles = layer.in_stride() / kTileK;
  const SweepParts parts(sweep, k_tiles, expert.end - expert.begin);
  const int block_rows = layer.gated() ? kBlockN / 2 : kBlockN;
  const int block_tiles = block_rows / kTileK;
  // Activations wait until they are as many as are packed together.
  const int act_tiles = std::max(down.group_tiles, block_tiles);
  const int act_row = act_tiles * kTileK;
  const SweepScratch scratch(int64_t{std::min(parts.tiles, k_tiles)} * sweep.weight_bytes,
                             parts.rows * sweep.RowBytes(k_tiles), act_row, parts.blocks);
  const int64_t tile_bytes = layer.GateUpTileBytes();
  const UnitRange all_units = layer.UnitsOf(node);
  // Blocks of outputs are counted through the units.
  const int unit_blocks = layer.GateUpPanel(units.begin, expert.expert).blocks;
  const int end_block = units.size() * unit_blocks;
  const auto panel_of = [&](int block) {
    return layer.GateUpPanel(units.begin + block / unit_blocks, expert.expert);
  };
  const auto sums_of = [&](int block) {
    return scratch.sums + int64_t{block % parts.blocks} * kMaxSweepRows * kBlockN;
  };
  for (int begin = expert.begin; begin < expert.end; begin += parts.rows) {
    const RoutedToken* routed = ws.routing.tokens.data() + begin;
    const int rows = std::min(parts.rows, expert.end - begin);
    const PackedRows x = sweep.RowsAt(scratch.rows, rows, k_tiles);
    CollectInputs(layer, layer.InputOrder(expert.expert), routed, x);
    const PackedRows acts = ActRows(layer, node, begin, rows);
    for (int first = 0; first < end_block; first += parts.blocks) {
      const int end = std::min(first + parts.blocks, end_block);
      for (int block = first; block < end; ++block) {
        const float* bias = panel_of(block).bias;
        FillRows(sums_of(block), rows,
                 bias == nullptr ? nullptr : bias + block % unit_blocks * kBlockN);
      }
      for (int k = 0; k < k_tiles; k += parts.tiles) {
        for (int block = first; block < end; ++block) {
          const WeightRun run{panel_of(block), block % unit_blocks, k,
                              std::min(parts.tiles, k_tiles - k)};
          // What is swept next.
          int next = block + 1, next_k = k;
          if (next == end && k + parts.tiles < k_tiles) next = first, next_k = k + parts.tiles;
          if (next == end) next_k = 0;
          Later later;
          if (next < end_block) {
            later.Add(panel_of(next), next % unit_blocks, next_k, parts.tiles, tile_bytes);
          }
          sweep.sweep(&run, 1, x, k, scratch.weights, sums_of(block), kBlockN, later.All());
        }
      }
      for (int block = first; block < end; ++block) {
        const int unit = units.begin - all_units.begin + block / unit_blocks;
        const int tile = unit * layer.unit_tiles() + block % unit_blocks * block_tiles;
        const int at = tile % act_tiles;
        const float* sums = sums_of(block);
        for (int r = 0; r < rows; ++r) {
          kernels_.activate(layer.activation(), layer.gated(), block_rows, sums + r * kBlockN,
                            routed[r].weight, scratch.acts + r * act_row + at * kTileK);
        }
        const bool last = units.end == all_units.end && block + 1 == end_block;
        if (const int tiles = at + block_tiles; tiles == act_tiles || last) {
          for (int r = 0; r < rows; ++r) {
            down.pack(scratch.acts + r * act_row, tiles, acts, tile - at, r);
          }
        }
      }
    }
  }
}

void MoeEngine::FirstPass(const MoeLayer& layer, int node) {
  Workspace& ws = *workspace_;
  const UnitRange units = layer.UnitsOf(node);
  const int num_experts = static_cast<int>(ws.routing.experts.size());
  const int groups =
      std::clamp(CeilDiv(kTasks, std::max(num_experts, 1)), 1, std::max(units.size(), 1));
  // Where groups of units end, so do groups of tiles that are packed together.
  const int step =
      layer.down_sweep().group_tiles / std::gcd(layer.down_sweep().group_tiles, layer.unit_tiles());
  const auto boundary = [&](int group) {
    const auto at = static_cast<int>(AlignUp(units.size() * group / groups, step));
    return units.begin + std::min(at, units.size());
  };
  std::atomic<int>& next = ws.nodes[node].next_task;
  for (int task = next++; task < num_experts * groups; task = next++) {
    const int group = task % groups;
    const UnitRange some{boundary(group), boundary(group + 1)};
    if (some.size() == 0) continue;
    Activations(layer, node, ws.routing.experts[ws.by_size[task / groups]], some);
  }
}

}  // namespace lsg
