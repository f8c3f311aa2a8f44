#include "engine/moe_engine.h"

#include <algorithm>
#include <atomic>
#include <memory>
#include <utility>

#include "base/align.h"
#include "base/error.h"
#include "engine/float_rows.h"
#include "engine/workspace.h"

namespace lsg {
namespace {

// Tokens computed at once: bounds the workspace (about 100 MB for H 2048, I 768, top 8). Each chunk
// reads and unpacks all weights again.
constexpr int kChunkTokens = 4096;
// Up to here a task goes from x to its share of y (one join, partial sums of whole rows); above,
// the second pass over the activations costs less than the partial sums. On two cores 64 tokens
// took 32 ms fused and 48 ms in two passes, 512 tokens 221 and 248 ms; the bytes bound what the
// sums may occupy.
constexpr int kFusedTokens = 128;
constexpr int64_t kFusedBytes = int64_t{256} << 20;
// Partial sums of a token, at least: enough to balance 16 threads.
constexpr int kSlots = 96;
// Up to so many tokens it takes longer to wake a worker than to read or write them.
constexpr int kFewTokens = 4;

constexpr int kMaxUnitRows = 128;
constexpr int kMaxUnitTiles = kMaxUnitRows / kTileK;
constexpr int kMaxGateUpOutputs = 2 * kMaxUnitRows;

// The ranges of expert ids that have partial sums of their own. They follow from the layer alone,
// so a token's bits depend neither on the rest of its batch nor on the threads.
int ExpertRanges(const MoeLayer& layer) {
  return std::clamp(CeilDiv(kSlots, std::max(layer.units(), 1)), 1, layer.num_experts());
}

void PrefetchStart(const uint8_t* record) {
  for (int at = 0; at < kPrefetchBytes; at += kLineBytes) __builtin_prefetch(record + at, 0, 1);
}

}  // namespace

MoeEngine::MoeEngine(const EngineOptions& options)
    : options_(options),
      kernels_(KernelsOf(options.isa)),
      pool_(ThreadPool::Shared(options.pool)),
      workspace_(std::make_unique<Workspace>()) {
  workspace_->nodes = std::vector<NodeWorkspace>(pool_->num_nodes());
}

MoeEngine::~MoeEngine() = default;

int MoeEngine::AddLayer(LayerMemory memory, const ActivationSpec& activation,
                        std::vector<int> node_units) {
  const bool int8 = options_.activations == ActivationPrecision::kInt8;
  layers_.push_back(std::make_unique<MoeLayer>(std::move(memory), kernels_, activation, int8,
                                               pool_->num_nodes(), std::move(node_units)));
  return static_cast<int>(layers_.size()) - 1;
}

void MoeEngine::Load(int threads_per_node, bool lock, const LoadPoll& poll) {
  std::vector<LayerMemory*> added;
  for (size_t i = loaded_layers_; i < layers_.size(); ++i) added.push_back(&layers_[i]->memory());
  try {
    LoadLayers(added, threads_per_node, poll);
  } catch (...) {
    layers_.resize(loaded_layers_);
    throw;
  }
  for (; loaded_layers_ < layers_.size(); ++loaded_layers_) {
    loaded_bytes_ += layers_[loaded_layers_]->bytes();
    if (lock) locked_bytes_ += layers_[loaded_layers_]->memory().Lock();
  }
}

std::vector<PartResidency> MoeEngine::Residency() const {
  std::vector<const LayerMemory*> layers;
  for (const auto& layer : layers_) layers.push_back(&layer->memory());
  return Survey(layers);
}

void MoeEngine::Forward(int layer_index, const Batch& batch) {
  const MoeLayer& layer = Layer(layer_index);
  pool_->CheckProcess();
  const std::lock_guard lock(forward_mutex_);
  const uint64_t begin = trace_ != nullptr ? Trace::Now() : 0;
  const int num_experts = layer.num_experts();
  for (int first = 0; first < batch.tokens; first += kChunkTokens) {
    const int tokens = std::min(kChunkTokens, batch.tokens - first);
    const int64_t entry = int64_t{first} * batch.top_k;
    workspace_->routing.Build(batch.topk_ids + entry, batch.topk_weights + entry, tokens,
                              batch.top_k, num_experts);
    workspace_->out.Grow(int64_t{tokens} * layer.out_stride());
    for (int node = 0; node < pool_->num_nodes(); ++node) {
      NodeWorkspace& mine = workspace_->nodes[node];
      mine.next_task = mine.next_block = 0;
      const int pieces = layer.EndPiece(node) - layer.FirstPiece(node);
      if (layer.pieces().size() > 1) mine.sums.Grow(int64_t{pieces} * tokens * layer.out_stride());
    }
    if (InOnePass(layer_index, tokens, batch.top_k)) {
      LoadHidden(layer, batch, first, tokens);
      Fused(layer, tokens);
      StoreOut(layer, batch, first, tokens);
    } else {
      Prefill(layer, batch, first, tokens);
    }
  }
  if (trace_ != nullptr) trace_->Record({begin, Trace::Now(), layer_index, batch.tokens});
}

// From the shapes alone, so that which way a batch takes, and so its bits, does not depend on the
// experts that it chose.
bool MoeEngine::InOnePass(int layer_index, int tokens, int top_k) const {
  const MoeLayer& layer = *layers_.at(layer_index);
  const int64_t row_bytes = int64_t{layer.out_stride()} * static_cast<int64_t>(sizeof(float));
  const int64_t rows = int64_t{layer.units()} * ExpertRanges(layer) * tokens;
  if (tokens > kFusedTokens || rows * row_bytes > kFusedBytes) return false;
  const int64_t worth =
      std::max(layer.gate_up_sweep().worth_tokens, layer.down_sweep().worth_tokens);
  return int64_t{tokens} * top_k <= worth * layer.num_experts();
}

const MoeLayer& MoeEngine::Layer(int layer) const {
  if (layer < 0 || layer >= static_cast<int>(layers_.size())) {
    throw Error("no layer with handle " + std::to_string(layer));
  }
  if (!layers_[layer]->loaded()) {
    throw Error("layer " + std::to_string(layer) + " was added but not loaded");
  }
  return *layers_[layer];
}

void MoeEngine::TraceTo(const std::string& path) {
  const std::lock_guard lock(forward_mutex_);
  trace_ = std::make_unique<Trace>(path);
}

void MoeEngine::LoadHidden(const MoeLayer& layer, const Batch& batch, int first, int tokens) {
  Workspace& ws = *workspace_;
  const int hidden_size = layer.hidden_size();
  const int stride = layer.in_stride();
  const int k_tiles = stride / kTileK;
  ws.hidden.Grow(int64_t{tokens} * stride);
  const bool gathers = layer.spec().gate_up().k_permutation;
  const bool quantizes = layer.int8_gate_up() && !gathers;
  if (quantizes) ws.hidden_int8.Resize(tokens, k_tiles);
  const auto load = [&](int token) {
    float* row = ws.hidden.data() + int64_t{token} * stride;
    ToFloat(batch.hidden, batch.dtype, int64_t{first + token} * hidden_size, hidden_size, row);
    std::fill(row + hidden_size, row + stride, 0.0f);
    if (quantizes) ws.hidden_int8.Quantize(kernels_, token, 0, row, k_tiles);
  };
  // One token takes about a microsecond, less than waking a worker; a worker gets a few.
  if (tokens <= kFewTokens) {
    for (int token = 0; token < tokens; ++token) load(token);
  } else {
    const int workers = std::min(pool_->size(), tokens / kFewTokens);
    pool_->Run(workers, [&](int worker) {
      for (int token = worker; token < tokens; token += workers) load(token);
    });
  }
  if (gathers) GatherInputs(layer);
}

void MoeEngine::GatherInputs(const MoeLayer& layer) {
  Workspace& ws = *workspace_;
  const int hidden_size = layer.hidden_size();
  const int stride = layer.in_stride();
  const int k_tiles = stride / kTileK;
  const auto entries = static_cast<int64_t>(ws.routing.tokens.size());
  ws.gathered.Grow(entries * stride);
  if (layer.int8_gate_up()) ws.hidden_int8.Resize(entries, k_tiles);
  pool_->Run([&](int worker) {
    for (const ExpertTokens& expert : ws.routing.experts) {
      const uint32_t* order = layer.InputOrder(expert.expert);
      for (int64_t at = expert.begin; at < expert.end; ++at) {
        if (at % pool_->size() != worker) continue;
        const float* x = ws.hidden.data() + int64_t{ws.routing.tokens[at].token} * stride;
        float* row = ws.gathered.data() + at * stride;
        for (int k = 0; k < hidden_size; ++k) row[k] = x[order[k]];
        std::fill(row + hidden_size, row + stride, 0.0f);
        if (layer.int8_gate_up()) ws.hidden_int8.Quantize(kernels_, at, 0, row, k_tiles);
      }
    }
  });
}

void MoeEngine::StoreOut(const MoeLayer& layer, const Batch& batch, int first, int tokens) {
  const int hidden_size = layer.hidden_size();
  const auto store = [&](int token) {
    FromFloat(workspace_->out.data() + int64_t{token} * layer.out_stride(), batch.dtype,
              int64_t{first + token} * hidden_size, hidden_size, batch.out);
  };
  if (tokens <= kFewTokens) {
    for (int token = 0; token < tokens; ++token) store(token);
  } else {
    const int workers = std::min(pool_->size(), tokens / kFewTokens);
    pool_->Run(workers, [&](int worker) {
      for (int token = worker; token < tokens; token += workers) store(token);
    });
  }
}

void MoeEngine::GateUp(const MoeLayer& layer, const Panel& panel, const RoutedToken* routed,
                       int tokens, float* const* act) const {
  const Workspace& ws = *workspace_;
  alignas(64) float outputs[kMaxTokens][kMaxGateUpOutputs];
  float* rows[kMaxTokens];
  for (int t = 0; t < tokens; ++t) rows[t] = outputs[t];
  // Inputs in an expert's order have a row for each routed token, others one for each token.
  const bool gathered = layer.spec().gate_up().k_permutation;
  const int64_t first = routed - ws.routing.tokens.data();
  const auto row = [&](int t) { return gathered ? first + t : int64_t{routed[t].token}; };
  if (layer.int8_gate_up()) {
    Int8Row x[kMaxTokens];
    for (int t = 0; t < tokens; ++t) x[t] = ws.hidden_int8.Row(row(t));
    layer.gate_up_kernels().int8(panel, x, tokens, rows, false);
  } else {
    const float* x[kMaxTokens];
    const float* inputs = gathered ? ws.gathered.data() : ws.hidden.data();
    for (int t = 0; t < tokens; ++t) x[t] = inputs + row(t) * layer.in_stride();
    layer.gate_up_kernels().f32(panel, x, tokens, rows, false);
  }
  for (int t = 0; t < tokens; ++t) {
    kernels_.activate(layer.activation(), layer.gated(), layer.unit_rows(), outputs[t],
                      routed[t].weight, act[t]);
  }
}

void MoeEngine::Fused(const MoeLayer& layer, int tokens) {
  Workspace& ws = *workspace_;
  const auto& experts = ws.routing.experts;
  const int stride = layer.out_stride();
  const int ranges = ExpertRanges(layer);
  ws.SplitExperts(ranges, layer.num_experts());
  for (int node = 0; node < pool_->num_nodes(); ++node) {
    const int64_t rows = int64_t{layer.UnitsOf(node).size()} * ranges * tokens;
    ws.nodes[node].slots.Grow(rows * stride);
    ws.nodes[node].filled.assign(rows, 0);
  }

  const auto compute = [&](int node, int task) {
    NodeWorkspace& mine = ws.nodes[node];
    const UnitRange units = layer.UnitsOf(node);
    const ExpertRange& range = ws.expert_ranges[task / units.size()];
    const int unit = units.begin + task % units.size();
    const int64_t slot = int64_t{unit - units.begin} * ranges + range.index;
    float* sums = mine.slots.data() + slot * tokens * stride;
    uint8_t* filled = mine.filled.data() + slot * tokens;
    alignas(64) float act[kMaxTokens][kMaxUnitRows];
    float* act_rows[kMaxTokens];
    for (int t = 0; t < kMaxTokens; ++t) act_rows[t] = act[t];
    for (int e = range.begin; e < range.end; ++e) {
      const ExpertTokens& expert = experts[e];
      const Panel gate_up = layer.GateUpPanel(unit, expert.expert);
      const Panel down = layer.DownPanel(unit, expert.expert, 0, stride / kBlockN);
      const float* bias = unit == 0 ? layer.DownBias(expert.expert) : nullptr;
      const auto routed = ws.routing.TokensOf(expert);
      // Kernels prefetch ahead in a record; its start nobody would.
      if (e + 1 < range.end) {
        PrefetchStart(layer.GateUpPanel(unit, experts[e + 1].expert).codes);
      }
      for (size_t at = 0; at < routed.size(); at += kMaxTokens) {
        const int count_now = static_cast<int>(std::min<size_t>(kMaxTokens, routed.size() - at));
        GateUp(layer, gate_up, routed.data() + at, count_now, act_rows);
        float* y[kMaxTokens];
        bool any_filled = false;
        for (int t = 0; t < count_now; ++t) any_filled |= filled[routed[at + t].token] != 0;
        for (int t = 0; t < count_now; ++t) {
          const int token = routed[at + t].token;
          y[t] = sums + int64_t{token} * stride;
          if (any_filled && !filled[token]) std::fill(y[t], y[t] + stride, 0.0f);
          filled[token] = 1;
        }
        Down(layer, down, act_rows, count_now, any_filled, y);
        if (bias != nullptr) {
          for (int t = 0; t < count_now; ++t) {
            for (int h = 0; h < stride; ++h) y[t][h] += routed[at + t].weight * bias[h];
          }
        }
      }
    }
  };

  // The block of 64 outputs from `at` of one token, summed over some of a node's units.
  const auto reduce = [&](int node, UnitRange units, int64_t token, int64_t at, float* sum) {
    const NodeWorkspace& mine = ws.nodes[node];
    const int first_unit = layer.UnitsOf(node).begin;
    SumUnits<kBlockN>(units, sum, [&](UnitRange range, float* part) {
      if (range.size() > 1) return false;
      std::fill_n(part, kBlockN, 0.0f);
      const int first_slot = (range.begin - first_unit) * ranges;
      for (int slot = first_slot; slot < first_slot + ranges; ++slot) {
        const int64_t row = int64_t{slot} * tokens + token;
        if (!mine.filled[row]) continue;
        const float* from = mine.slots.data() + row * stride + at;
        for (int n = 0; n < kBlockN; ++n) part[n] += from[n];
      }
      return true;
    });
  };

  const int64_t blocks = int64_t{tokens} * stride / kBlockN;
  pool_->Run([&](int worker) {
    const int node = pool_->NodeOf(worker);
    std::atomic<int>& next = ws.nodes[node].next_task;
    const int tasks = layer.UnitsOf(node).size() * static_cast<int>(ws.expert_ranges.size());
    for (int task = next++; task < tasks; task = next++) compute(node, task);
    pool_->SyncNode();
    const int64_t here = worker - pool_->FirstWorker(node);
    const int64_t workers = pool_->FirstWorker(node + 1) - pool_->FirstWorker(node);
    for (int piece = layer.FirstPiece(node); piece < layer.EndPiece(node); ++piece) {
      float* sums = ws.PieceSum(layer, node, piece, tokens);
      for (int64_t at = blocks * here / workers; at < blocks * (here + 1) / workers; ++at) {
        const int64_t token = at * kBlockN / stride;
        reduce(node, layer.pieces()[piece], token, at * kBlockN - token * stride,
               sums + at * kBlockN);
      }
    }
    AddPieces(layer, tokens, worker);
  });
}

void MoeEngine::AddPieces(const MoeLayer& layer, int tokens, int worker) {
  Workspace& ws = *workspace_;
  const std::vector<UnitRange>& pieces = layer.pieces();
  if (pieces.size() == 1) return;
  pool_->Sync();
  const int64_t blocks = int64_t{tokens} * layer.out_stride() / kBlockN;
  const int64_t end = blocks * (worker + 1) / pool_->size();
  for (int64_t at = blocks * worker / pool_->size(); at < end; ++at) {
    float* sum = ws.out.data() + at * kBlockN;
    if (pieces.empty()) {
      std::fill_n(sum, kBlockN, 0.0f);
      continue;
    }
    // The tree is walked in order, and so are the pieces.
    int node = 0, piece = 0;
    SumUnits<kBlockN>(layer.unit_range(), sum, [&](UnitRange range, float* part) {
      if (range != pieces[piece]) return false;
      while (piece >= layer.EndPiece(node)) ++node;
      std::copy_n(ws.PieceSum(layer, node, piece, tokens) + at * kBlockN, kBlockN, part);
      ++piece;
      return true;
    });
  }
}

void MoeEngine::Down(const MoeLayer& layer, const Panel& panel, const float* const* act, int tokens,
                     bool accumulate, float* const* y) const {
  if (!layer.int8_down()) {
    layer.down_kernels().f32(panel, act, tokens, y, accumulate);
    return;
  }
  alignas(64) int8_t codes[kMaxTokens][kMaxUnitRows];
  float scales[kMaxTokens][kMaxUnitTiles];
  int16_t half_sums[kMaxTokens][2 * kMaxUnitTiles];
  Int8Row x[kMaxTokens];
  for (int t = 0; t < tokens; ++t) {
    kernels_.quantize_row(act[t], layer.unit_tiles(), codes[t], scales[t], half_sums[t]);
    x[t] = {codes[t], scales[t], half_sums[t]};
  }
  layer.down_kernels().int8(panel, x, tokens, y, accumulate);
}

}  // namespace lsg
