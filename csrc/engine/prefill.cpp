// Many tokens an expert: weights are unpacked once into cache and swept over all its tokens.
//
// First pass: hidden states to activations, one task for an expert and some of its units. Second
// pass: activations to outputs, one task for 64 outputs of every expert, so that each sum has one
// owner and one order: the result depends on how units are placed on nodes, not on threads.
#include <algorithm>
#include <atomic>
#include <numeric>

#include "base/align.h"
#include "engine/float_rows.h"
#include "engine/workspace.h"

namespace lsg {
namespace {

// Tiles of 32 inputs unpacked at once: with 64 outputs their weights fill a part of L2, or with the
// matrix unit's two tiles of outputs a part of L1.
constexpr int kSweepTiles = 16;
// Packed inputs swept at once: they stay in L2 beside the weights.
constexpr int64_t kSweepInputBytes = 1 << 20;
constexpr int kMaxSweepRows = 256;
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

void FillRows(float* sums, int rows, const float* bias) {
  for (int r = 0; r < rows; ++r) {
    if (bias == nullptr) {
      std::fill_n(sums + r * kBlockN, kBlockN, 0.0f);
    } else {
      std::copy_n(bias, kBlockN, sums + r * kBlockN);
    }
  }
}

void Prefetch(const uint8_t* from, int64_t bytes) {
  for (int64_t at = 0; at < bytes; at += kLineBytes) __builtin_prefetch(from + at, 0, 2);
}

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
  const SweepScratch scratch(int64_t{kSweepTiles} * sweep.weight_bytes, max_rows * row_bytes);
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
        const uint8_t* codes = panel.codes + block * k_tiles * tile_bytes;
        for (int k = 0; k < k_tiles; k += kSweepTiles) {
          const int tiles = std::min(kSweepTiles, k_tiles - k);
          const int coming = std::min(kSweepTiles, k_tiles - k - tiles);
          Upcoming next = {codes + (k + tiles) * tile_bytes,
                           codes + (k + tiles + coming) * tile_bytes};
          if (coming == 0 && block + 1 == panel.blocks && unit + 1 < units.end) {
            next.at = layer.GateUpPanel(unit + 1, expert.expert).codes;
            next.end = next.at + std::min(kSweepTiles, k_tiles) * tile_bytes;
          }
          sweep.unpack(panel, block, k, tiles, scratch.weights);
          sweep.multiply(scratch.weights, tiles, panel.tiles_per_scale, x, k, scratch.sums, kBlockN,
                         next);
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

void MoeEngine::Outputs(const MoeLayer& layer, int node, UnitRange piece, int tokens, int block,
                        float* out) {
  Workspace& ws = *workspace_;
  const SweepKernels& sweep = layer.down_sweep();
  const int unit_tiles = layer.unit_tiles();
  const int out_stride = layer.out_stride();
  const int first_unit = layer.UnitsOf(node).begin;
  const int units_at_once = std::max(kSweepTiles / unit_tiles, 1);
  const SweepScratch scratch(int64_t{units_at_once} * unit_tiles * sweep.weight_bytes, 0);
  const int64_t in_row_bytes = layer.gate_up_sweep().RowBytes(layer.in_stride() / kTileK);
  for (int token = 0; token < tokens; ++token) {
    std::fill_n(out + int64_t{token} * out_stride + block * kBlockN, kBlockN, 0.0f);
  }
  const auto& experts = ws.routing.experts;
  const int64_t block_bytes = layer.DownBlockBytes();
  for (size_t e = 0; e < experts.size(); ++e) {
    const ExpertTokens& expert = experts[e];
    // The rows that Activations packed together.
    const int max_rows = SweepRows(in_row_bytes, expert.end - expert.begin);
    const float* bias = piece.begin == 0 ? layer.DownBias(expert.expert) : nullptr;
    for (int begin = expert.begin; begin < expert.end; begin += max_rows) {
      const RoutedToken* routed = ws.routing.tokens.data() + begin;
      const int rows = std::min(max_rows, expert.end - begin);
      const PackedRows x = ActRows(layer, node, begin, rows);
      FillRows(scratch.sums, rows, nullptr);
      for (int unit = piece.begin; unit < piece.end; unit += units_at_once) {
        const int units = std::min(units_at_once, piece.end - unit);
        int tiles_per_scale = 1;
        for (int u = 0; u < units; ++u) {
          const Panel panel = layer.DownPanel(unit + u, expert.expert, block, block + 1);
          tiles_per_scale = std::min(panel.tiles_per_scale, unit_tiles);
          sweep.unpack(panel, 0, 0, unit_tiles,
                       scratch.weights + int64_t{u} * unit_tiles * sweep.weight_bytes);
          // A block is a short run in each unit's record: no hardware prefetcher finds the next.
          if (begin == expert.begin && e + 1 < experts.size()) {
            const Panel next = layer.DownPanel(unit + u, experts[e + 1].expert, block, block + 1);
            Prefetch(next.codes, block_bytes);
            if (next.scales != nullptr) Prefetch(next.scales, kBlockN * sizeof(uint16_t));
          }
        }
        sweep.multiply(scratch.weights, units * unit_tiles, tiles_per_scale, x,
                       (unit - first_unit) * unit_tiles, scratch.sums, kBlockN, Upcoming{});
      }
      for (int r = 0; r < rows; ++r) {
        float* y = out + int64_t{routed[r].token} * out_stride + block * kBlockN;
        const float* sum = scratch.sums + r * kBlockN;
        for (int n = 0; n < kBlockN; ++n) y[n] += sum[n];
        if (bias != nullptr) {
          for (int n = 0; n < kBlockN; ++n) y[n] += routed[r].weight * bias[block * kBlockN + n];
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
    for (int block = mine.next_block++; block < blocks; block = mine.next_block++) {
      for (int piece = layer.FirstPiece(node); piece < layer.EndPiece(node); ++piece) {
        Outputs(layer, node, layer.pieces()[piece], tokens, block,
                ws.PieceSum(layer, node, piece, tokens));
      }
    }
    AddPieces(layer, tokens, worker);
  });
}

}  // namespace lsg
