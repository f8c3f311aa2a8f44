// The second pass over a prompt: activations to outputs, one task for some blocks of 64 outputs of
// a range of experts, so that each sum has one owner and one order.
#include <algorithm>
#include <atomic>
#include <limits>

#include "engine/sweep_scratch.h"
#include "engine/workspace.h"

namespace lsg {
namespace {

// Blocks of outputs of a second-pass task that has all ranges. More of them read a token's
// activations less often, but their sums may no longer fit L2, and then go there and back for every
// expert.
int OutputBlocks(int blocks, int tokens, int64_t act_row_bytes, int workers) {
  constexpr int64_t kRowBytes = kBlockN * sizeof(float);
  int best = 1;
  int64_t least = std::numeric_limits<int64_t>::max();
  for (int at_once = 1; at_once <= 16; at_once *= 2) {
    // Two tasks a worker at least, so that workers end together.
    if (at_once > 1 && at_once * workers * 2 > blocks) break;
    const bool fits = at_once * tokens * kRowBytes <= kSweepInputBytes;
    const int64_t moved = act_row_bytes / at_once + (fits ? 0 : 2 * kRowBytes);
    if (moved >= least) continue;
    best = at_once;
    least = moved;
  }
  return best;
}

}  // namespace

void MoeEngine::Outputs(const MoeLayer& layer, int node, UnitRange piece, const ExpertRange& range,
                        int tokens, BlockRange blocks, float* out) {
  Workspace& ws = *workspace_;
  const SweepKernels& sweep = layer.down_sweep();
  const int unit_tiles = layer.unit_tiles();
  const int first_unit = layer.UnitsOf(node).begin;
  const int units_at_once = std::clamp(sweep.max_tiles / unit_tiles, 1, kMaxRuns);
  const SweepScratch scratch(int64_t{units_at_once} * unit_tiles * sweep.weight_bytes, 0, 0, 1);
  const int64_t block_size = int64_t{tokens} * kBlockN;
  std::fill(out, out + (blocks.end - blocks.begin) * block_size, 0.0f);
  const auto& experts = ws.routing.experts;
  const int64_t block_bytes = layer.DownBlockBytes();
  const auto panel_of = [&](int unit, const ExpertTokens& expert, int block) {
    return layer.DownPanel(unit, expert.expert, block, block + 1);
  };
  for (int e = range.begin; e < range.end; ++e) {
    const ExpertTokens& expert = experts[e];
    // The rows that Activations packed together.
    const int max_rows =
        SweepParts(layer.gate_up_sweep(), layer.in_stride() / kTileK, expert.end - expert.begin)
            .rows;
    const float* bias = piece.begin == 0 ? layer.DownBias(expert.expert) : nullptr;
    for (int begin = expert.begin; begin < expert.end; begin += max_rows) {
      const RoutedToken* routed = ws.routing.tokens.data() + begin;
      const int rows = std::min(max_rows, expert.end - begin);
      const PackedRows x = ActRows(layer, node, begin, rows);
      for (int block = blocks.begin; block < blocks.end; ++block) {
        const bool last = block + 1 == blocks.end;
        const bool more = !last || e + 1 < range.end;
        FillRows(scratch.sums, rows, nullptr);
        for (int unit = piece.begin; unit < piece.end; unit += units_at_once) {
          const int units = std::min(units_at_once, piece.end - unit);
          WeightRun runs[kMaxRuns];
          Later later;
          for (int u = 0; u < units; ++u) {
            runs[u] = {panel_of(unit + u, expert, block), 0, 0, unit_tiles};
            if (begin != expert.begin || !more) continue;
            // A block is a short run in each unit's record: no hardware prefetcher finds the next.
            const Panel panel = last ? panel_of(unit + u, experts[e + 1], blocks.begin)
                                     : panel_of(unit + u, expert, block + 1);
            later.Add(panel, 0, 0, unit_tiles, block_bytes / unit_tiles);
          }
          sweep.sweep(runs, units, x, (unit - first_unit) * unit_tiles, scratch.weights,
                      scratch.sums, kBlockN, later.All());
        }
        for (int r = 0; r < rows; ++r) {
          float* y = out + (block - blocks.begin) * block_size + int64_t{routed[r].token} * kBlockN;
          const float* sum = scratch.sums + r * kBlockN;
          for (int n = 0; n < kBlockN; ++n) y[n] += sum[n];
          if (bias != nullptr) {
            for (int n = 0; n < kBlockN; ++n) y[n] += routed[r].weight * bias[block * kBlockN + n];
          }
        }
      }
    }
  }
}

void MoeEngine::SecondPass(const MoeLayer& layer, int node, int tokens, bool whole) {
  Workspace& ws = *workspace_;
  const auto& ranges = ws.expert_ranges;
  const int blocks = layer.out_stride() / kBlockN;
  const int64_t act_row_bytes =
      layer.down_sweep().RowBytes(layer.UnitsOf(node).size() * layer.unit_tiles());
  const int at_once =
      whole ? OutputBlocks(blocks, tokens, act_row_bytes, pool_->WorkersOn(node)) : 1;
  const int groups = CeilDiv(blocks, at_once);
  const int pieces = layer.EndPiece(node) - layer.FirstPiece(node);
  std::atomic<int>& next = ws.nodes[node].next_output;
  // Ranges one after the other, so that workers read the same activations at about the same time.
  for (int task = next++; task < groups * ws.sum_ranges * pieces; task = next++) {
    const int begin = task % groups * at_once;
    const BlockRange block{begin, std::min(begin + at_once, blocks)};
    const int range = task / groups % ws.sum_ranges;
    const int piece = layer.FirstPiece(node) + task / groups / ws.sum_ranges;
    const UnitRange units = layer.pieces()[piece];
    const int64_t size = int64_t{block.end - block.begin} * tokens * kBlockN;
    float* sums =
        ws.PieceSum(layer, node, piece, tokens, range) + int64_t{begin} * tokens * kBlockN;
    Outputs(layer, node, units, ranges[range], tokens, block, sums);
    for (size_t r = 1; whole && r < ranges.size(); ++r) {
      thread_local Scratch<float> more;
      more.Grow(size);
      Outputs(layer, node, units, ranges[r], tokens, block, more.data());
      for (int64_t i = 0; i < size; ++i) sums[i] += more.data()[i];
    }
  }
}

}  // namespace lsg
