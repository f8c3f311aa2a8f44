// Many tokens an expert: weights are unpacked once into cache and swept over all its tokens, in two
// passes (first_pass.cpp, second_pass.cpp) with barriers between.
//
// Invariant: each sum has one owner and one order, which follow from the layer and from how its
// units are placed on nodes, not from threads.
#include <algorithm>
#include <numeric>

#include "base/align.h"
#include "engine/float_rows.h"
#include "engine/workspace.h"

namespace lsg {
namespace {

// Second-pass sums of a node, at least: a piece, a range of experts and a block of outputs each;
// from shapes and placement alone.
constexpr int kOutputSums = 128;
// Blocks of outputs a worker from which on it takes all ranges of one: their sums meet in its
// cache.
constexpr int kBlocksPerWorker = 8;

// The ranges of expert ids whose outputs have sums of their own, for nodes of so many pieces.
int SumRanges(const MoeLayer& layer, int pieces) {
  const int sums = layer.out_stride() / kBlockN * std::max(pieces, 1);
  return std::clamp(CeilDiv(kOutputSums, sums), 1, layer.num_experts());
}

}  // namespace

void MoeEngine::PackHidden(const MoeLayer& layer, const Batch& batch, int first, int tokens,
                           int worker) {
  const SweepKernels& sweep = layer.gate_up_sweep();
  const int stride = layer.in_stride();
  const int k_tiles = stride / kTileK;
  // Where experts have orders of their own, each packs its tokens itself.
  const bool gathers = layer.spec().gate_up().k_permutation;
  thread_local Scratch<float> own;
  own.Grow(stride);
  for (int token = worker; token < tokens; token += pool_->size()) {
    float* row = gathers ? workspace_->hidden.data() + int64_t{token} * stride : own.data();
    ToFloat(batch.hidden, batch.dtype, int64_t{first + token} * layer.hidden_size(),
            layer.hidden_size(), row);
    std::fill(row + layer.hidden_size(), row + stride, 0.0f);
    if (!gathers) sweep.pack(row, k_tiles, HiddenRow(layer, token), 0, 0);
  }
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
  // All tokens' codes come first, so that they begin at cache lines.
  const PackedRows all = sweep.RowsAt(workspace_->nodes[node].packed_act.data(),
                                      static_cast<int>(workspace_->routing.tokens.size()), k_tiles);
  const int64_t groups = int64_t{begin} * sweep.Groups(k_tiles);
  return {all.codes + groups * sweep.code_bytes, all.metas + groups * sweep.meta_bytes, rows};
}

void MoeEngine::StoreBlocks(const MoeLayer& layer, const Batch& batch, int first, int tokens,
                            int worker) {
  const int64_t begin = int64_t{tokens} * worker / pool_->size();
  const int64_t end = int64_t{tokens} * (worker + 1) / pool_->size();
  for (int at = 0; at < layer.hidden_size(); at += kBlockN) {
    for (int64_t token = begin; token < end; ++token) {
      alignas(64) float sum[kBlockN];
      workspace_->SumPieces(layer, tokens, int64_t{at} * tokens + token * kBlockN, sum);
      FromFloat(sum, batch.dtype, (first + token) * layer.hidden_size() + at,
                std::min(kBlockN, layer.hidden_size() - at), batch.out);
    }
  }
}

void MoeEngine::Prefill(const MoeLayer& layer, const Batch& batch, int first, int tokens) {
  Workspace& ws = *workspace_;
  const auto& experts = ws.routing.experts;
  if (layer.spec().gate_up().k_permutation) {
    ws.hidden.Grow(int64_t{tokens} * layer.in_stride());
  } else {
    ws.packed_hidden.Grow(tokens * layer.gate_up_sweep().RowBytes(layer.in_stride() / kTileK));
  }
  bool whole = true;
  int pieces = 0;
  for (int node = 0; node < pool_->num_nodes(); ++node) {
    const int k_tiles = layer.UnitsOf(node).size() * layer.unit_tiles();
    ws.nodes[node].packed_act.Grow(static_cast<int64_t>(ws.routing.tokens.size()) *
                                   layer.down_sweep().RowBytes(k_tiles));
    pieces = std::max(pieces, layer.EndPiece(node) - layer.FirstPiece(node));
    whole &= layer.out_stride() / kBlockN >= pool_->WorkersOn(node) * kBlocksPerWorker;
  }
  ws.SplitExperts(SumRanges(layer, pieces), layer.num_experts(), false);
  const int ranges = static_cast<int>(ws.expert_ranges.size());
  ws.GrowSums(layer, tokens, whole ? std::min(ranges, 1) : ranges);
  // The longest tasks first, so that threads end together.
  ws.by_size.resize(experts.size());
  std::iota(ws.by_size.begin(), ws.by_size.end(), 0);
  std::stable_sort(ws.by_size.begin(), ws.by_size.end(), [&](int a, int b) {
    return experts[a].end - experts[a].begin > experts[b].end - experts[b].begin;
  });
  pool_->Run([&](int worker) {
    const int node = pool_->NodeOf(worker);
    PackHidden(layer, batch, first, tokens, worker);
    pool_->Sync();
    FirstPass(layer, node);
    pool_->SyncNode();
    SecondPass(layer, node, tokens, whole);
    pool_->Sync();
    StoreBlocks(layer, batch, first, tokens, worker);
  });
}

}  // namespace lsg
