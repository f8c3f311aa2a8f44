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
  const int64_t row_bytes = sweep.RowBytes(k_tiles);
  const int max_rows = SweepRows(row_bytes, expert.end - expert.begin);
  const int block_rows = layer.gated() ? kBlockN / 2 : kBlockN;
  const int block_tiles = block_rows / kTileK;
  // Activations wait until they are as many as are packed together.
  const int act_tiles = std::max(down.group_tiles, block_tiles);
  const int act_row = act_tiles * kTileK;
  const SweepScratch scratch(int64_t{std::min(sweep.max_tiles, k_tiles)} * sweep.weight_bytes,
                             max_rows * row_bytes, act_row);
  const int64_t tile_bytes = layer.GateUpTileBytes();
  const UnitRange all_units = layer.UnitsOf(node);
  for (int begin = expert.begin; begin < expert.end; begin += max_rows) {
    const RoutedToken* routed = ws.routing.tokens.data() + begin;
    const int rows = std::min(max_rows, expert.end - begin);
    const PackedRows x = sweep.RowsAt(scratch.rows, rows, k_tiles);
    CollectInputs(layer, layer.InputOrder(expert.expert), routed, x);
    const PackedRows acts = ActRows(layer, node, begin, rows);
    for (int unit = units.begin; unit < units.end; ++unit) {
      const Panel panel = layer.GateUpPanel(unit, expert.expert);
      for (int block = 0; block < panel.blocks; ++block) {
        FillRows(scratch.sums, rows,
                 panel.bias == nullptr ? nullptr : panel.bias + block * kBlockN);
        for (int k = 0; k < k_tiles; k += sweep.max_tiles) {
          const WeightRun run{panel, block, k, std::min(sweep.max_tiles, k_tiles - k)};
          Later later;
          if (const int after = k + run.k_tiles; after < k_tiles) {
            later.Add(panel, block, after, sweep.max_tiles, tile_bytes);
          } else if (block + 1 < panel.blocks) {
            later.Add(panel, block + 1, 0, sweep.max_tiles, tile_bytes);
          } else if (unit + 1 < units.end) {
            later.Add(layer.GateUpPanel(unit + 1, expert.expert), 0, 0, sweep.max_tiles,
                      tile_bytes);
          }
          sweep.sweep(&run, 1, x, k, scratch.weights, scratch.sums, kBlockN, later.All());
        }
        const int tile = (unit - all_units.begin) * layer.unit_tiles() + block * block_tiles;
        const int at = tile % act_tiles;
        for (int r = 0; r < rows; ++r) {
          kernels_.activate(layer.activation(), layer.gated(), block_rows,
                            scratch.sums + r * kBlockN, routed[r].weight,
                            scratch.acts + r * act_row + at * kTileK);
        }
        const bool last = unit + 1 == all_units.end && block + 1 == panel.blocks;
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
