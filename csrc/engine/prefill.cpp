// Many tokens an expert: weights are unpacked once into cache and swept over all its tokens.
//
// First pass: hidden states to activations, one task for an expert and some of its units. Second
// pass: activations to outputs, one task for some blocks of 64 outputs of every expert, so that
// each sum has one owner and one order: the result depends on how units are placed on nodes, not on
// threads.
#include <algorithm>
#include <atomic>
#include <limits>
#include <numeric>

#include "base/align.h"
#include "engine/float_rows.h"
#include "engine/workspace.h"

namespace lsg {
namespace {

// Packed inputs swept at once: they stay in L2 beside the weights.
constexpr int64_t kSweepInputBytes = 1 << 20;
constexpr int kMaxSweepRows = 256;
// Units whose weights meet in one sweep, at most: they go on the stack.
constexpr int kMaxRuns = 64;
// First-pass tasks of a node, at least, so that threads end together; from the shapes alone.
constexpr int kTasks = 256;

// Rows of a sweep for an expert of so many tokens: as few sweeps as fit, about equally long.
int SweepRows(int64_t row_bytes, int tokens) {
  const int most = static_cast<int>(
      std::clamp<int64_t>(kSweepInputBytes / row_bytes / 16 * 16, 16, kMaxSweepRows));
  return static_cast<int>(AlignUp(CeilDiv(tokens, CeilDiv(tokens, most)), 16));
}

// A worker's own memory, kept between calls.
struct SweepScratch {
  uint8_t* weights;
  uint8_t* rows;
  float* sums;  // [kMaxSweepRows][64]

  SweepScratch(int64_t weight_bytes, int64_t row_bytes) {
    constexpr int64_t kSumBytes = int64_t{kMaxSweepRows} * kBlockN * sizeof(float);
    thread_local Scratch<uint8_t> memory;
    memory.Grow(weight_bytes + row_bytes + kSumBytes + 64);
    auto* start =
        reinterpret_cast<uint8_t*>(AlignUp(reinterpret_cast<uintptr_t>(memory.data()), 64));
    sums = reinterpret_cast<float*>(start);
    weights = start + kSumBytes;
    rows = weights + weight_bytes;
  }
};

// Blocks of outputs of one second-pass task. More of them read a token's activations less often,
// but their sums may no longer fit L2, and then go there and back for every expert.
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

void FillRows(float* sums, int rows, const float* bias) {
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

}  // namespace

void MoeEngine::PackHidden(const MoeLayer& layer, const Batch& batch, int first, int tokens) {
  Workspace& ws = *workspace_;
  const SweepKernels& sweep = layer.gate_up_sweep();
  const int stride = layer.in_stride();
  const int k_tiles = stride / kTileK;
  // Where experts have orders of their own, each packs its tokens itself.
  const bool gathers = layer.spec().gate_up().k_permutation;
  if (gathers) {
    ws.hidden.Grow(int64_t{tokens} * stride);
  } else {
    ws.packed_hidden.Grow(tokens * sweep.RowBytes(k_tiles));
  }
  pool_->Run([&](int worker) {
    thread_local Scratch<float> own;
    own.Grow(stride);
    for (int token = worker; token < tokens; token += pool_->size()) {
      float* row = gathers ? ws.hidden.data() + int64_t{token} * stride : own.data();
      ToFloat(batch.hidden, batch.dtype, int64_t{first + token} * layer.hidden_size(),
              layer.hidden_size(), row);
      std::fill(row + layer.hidden_size(), row + stride, 0.0f);
      if (!gathers) sweep.pack(row, k_tiles, HiddenRow(layer, token), 0, 0);
    }
  });
}

PackedRows MoeEngine::HiddenRow(const MoeLayer& layer, int token) const {
  const SweepKernels& sweep = layer.gate_up_sweep();
  const int k_tiles = layer.in_stride() / kTileK;
  uint8_t* memory = workspace_->packed_hidden.data() + token * sweep.RowBytes(k_tiles);
  return sweep.RowsAt(memory, 1, k_tiles);
}

PackedRows MoeEngine::ActRows(const MoeLayer& layer, int node, int begin, int rows) const {
  const SweepKernels& sweep = layer.down_sweep();
  const int k_tiles = layer.UnitsOf(node).size() * layer.unit_tiles();
  uint8_t* memory = workspace_->nodes[node].packed_act.data() + begin * sweep.RowBytes(k_tiles);
  return sweep.RowsAt(memory, rows, k_tiles);
}

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
  const SweepScratch scratch(int64_t{std::min(sweep.max_tiles, k_tiles)} * sweep.weight_bytes,
                             max_rows * row_bytes);
  const int64_t tile_bytes = layer.GateUpTileBytes();
  const int block_rows = layer.gated() ? kBlockN / 2 : kBlockN;
  const int first_unit = layer.UnitsOf(node).begin;
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
        const int tile = (unit - first_unit) * layer.unit_tiles() + block * block_rows / kTileK;
        for (int r = 0; r < rows; ++r) {
          alignas(64) float act[kBlockN];
          kernels_.activate(layer.activation(), layer.gated(), block_rows,
                            scratch.sums + r * kBlockN, routed[r].weight, act);
          down.pack(act, block_rows / kTileK, acts, tile, r);
        }
      }
    }
  }
}

void MoeEngine::Outputs(const MoeLayer& layer, int node, UnitRange piece, int tokens,
                        BlockRange blocks, float* out) {
  Workspace& ws = *workspace_;
  const SweepKernels& sweep = layer.down_sweep();
  const int unit_tiles = layer.unit_tiles();
  const int first_unit = layer.UnitsOf(node).begin;
  const int units_at_once = std::clamp(sweep.max_tiles / unit_tiles, 1, kMaxRuns);
  const SweepScratch scratch(int64_t{units_at_once} * unit_tiles * sweep.weight_bytes, 0);
  const int64_t in_row_bytes = layer.gate_up_sweep().RowBytes(layer.in_stride() / kTileK);
  const int64_t block_size = int64_t{tokens} * kBlockN;
  std::fill(out + blocks.begin * block_size, out + blocks.end * block_size, 0.0f);
  const auto& experts = ws.routing.experts;
  const int64_t block_bytes = layer.DownBlockBytes();
  const auto panel_of = [&](int unit, const ExpertTokens& expert, int block) {
    return layer.DownPanel(unit, expert.expert, block, block + 1);
  };
  for (size_t e = 0; e < experts.size(); ++e) {
    const ExpertTokens& expert = experts[e];
    // The rows that Activations packed together.
    const int max_rows = SweepRows(in_row_bytes, expert.end - expert.begin);
    const float* bias = piece.begin == 0 ? layer.DownBias(expert.expert) : nullptr;
    for (int begin = expert.begin; begin < expert.end; begin += max_rows) {
      const RoutedToken* routed = ws.routing.tokens.data() + begin;
      const int rows = std::min(max_rows, expert.end - begin);
      const PackedRows x = ActRows(layer, node, begin, rows);
      for (int block = blocks.begin; block < blocks.end; ++block) {
        const bool last = block + 1 == blocks.end;
        const bool more = !last || e + 1 < experts.size();
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
          float* y = out + block * block_size + int64_t{routed[r].token} * kBlockN;
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

void MoeEngine::Prefill(const MoeLayer& layer, const Batch& batch, int first, int tokens) {
  Workspace& ws = *workspace_;
  PackHidden(layer, batch, first, tokens);
  const auto& experts = ws.routing.experts;
  const int num_experts = static_cast<int>(experts.size());
  for (int node = 0; node < pool_->num_nodes(); ++node) {
    const int k_tiles = layer.UnitsOf(node).size() * layer.unit_tiles();
    ws.nodes[node].packed_act.Grow(static_cast<int64_t>(ws.routing.tokens.size()) *
                                   layer.down_sweep().RowBytes(k_tiles));
  }
  // The longest tasks first, so that threads end together.
  ws.by_size.resize(num_experts);
  std::iota(ws.by_size.begin(), ws.by_size.end(), 0);
  std::stable_sort(ws.by_size.begin(), ws.by_size.end(), [&](int a, int b) {
    return experts[a].end - experts[a].begin > experts[b].end - experts[b].begin;
  });
  const int blocks = layer.out_stride() / kBlockN;
  pool_->Run([&](int worker) {
    const int node = pool_->NodeOf(worker);
    NodeWorkspace& mine = ws.nodes[node];
    const UnitRange units = layer.UnitsOf(node);
    const int groups =
        std::clamp(CeilDiv(kTasks, std::max(num_experts, 1)), 1, std::max(units.size(), 1));
    for (int task = mine.next_task++; task < num_experts * groups; task = mine.next_task++) {
      const int group = task % groups;
      Activations(layer, node, experts[ws.by_size[task / groups]],
                  {units.begin + units.size() * group / groups,
                   units.begin + units.size() * (group + 1) / groups});
    }
    pool_->SyncNode();
    const int64_t act_row_bytes =
        layer.down_sweep().RowBytes(layer.UnitsOf(node).size() * layer.unit_tiles());
    const int at_once = OutputBlocks(blocks, tokens, act_row_bytes,
                                     pool_->FirstWorker(node + 1) - pool_->FirstWorker(node));
    for (int task = mine.next_block++; task * at_once < blocks; task = mine.next_block++) {
      const BlockRange range{task * at_once, std::min((task + 1) * at_once, blocks)};
      for (int piece = layer.FirstPiece(node); piece < layer.EndPiece(node); ++piece) {
        Outputs(layer, node, layer.pieces()[piece], tokens, range,
                ws.PieceSum(layer, node, piece, tokens));
      }
    }
    AddPieces(layer, tokens, worker);
  });
  // Outputs came block by block.
  pool_->Run([&](int worker) {
    for (int token = worker; token < tokens; token += pool_->size()) {
      for (int block = 0; block < blocks; ++block) {
        const int at = block * kBlockN;
        FromFloat(ws.out.data() + (int64_t{block} * tokens + token) * kBlockN, batch.dtype,
                  int64_t{first + token} * layer.hidden_size() + at,
                  std::min(kBlockN, layer.hidden_size() - at), batch.out);
      }
    }
  });
}

}  // namespace lsg
