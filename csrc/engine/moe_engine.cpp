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

// Tokens computed at once: bounds the workspace (about 200 MB for H 2048, I 768, top 8). Each chunk
// reads and unpacks all weights again.
constexpr int kChunkTokens = 4096;
// Up to so many tokens it takes longer to wake a worker than to read or write them.
constexpr int kFewTokens = 4;

}  // namespace

MoeEngine::MoeEngine(const EngineOptions& options)
    : options_(options),
      kernels_(KernelsOf(options.isa)),
      pool_(ThreadPool::Shared(options.pool)),
      workspace_(std::make_unique<Workspace>()) {
  workspace_->nodes = std::vector<NodeWorkspace>(pool_->num_nodes());
  workspace_->shared = std::vector<SharedPieces>(pool_->size());
}

MoeEngine::~MoeEngine() = default;

int MoeEngine::AddLayer(LayerMemory memory, const ActivationSpec& activation,
                        std::vector<int> node_units) {
  const bool rounds = options_.activations == ActivationPrecision::kInt8;
  layers_.push_back(std::make_unique<MoeLayer>(std::move(memory), kernels_, activation, rounds,
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
    for (NodeWorkspace& node : workspace_->nodes) node.next_task = node.next_output = 0;
    if (InOnePass(layer_index, tokens, batch.top_k)) {
      LoadHidden(layer, batch, first, tokens);
      workspace_->GrowSums(layer, tokens, 1);
      Fused(layer, tokens);
      StoreOut(layer, batch, first, tokens);
    } else {
      Prefill(layer, batch, first, tokens);
    }
  }
  if (trace_ != nullptr) trace_->Record({begin, Trace::Now(), layer_index, batch.tokens});
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

void MoeEngine::AddPieces(const MoeLayer& layer, int tokens, int worker) {
  Workspace& ws = *workspace_;
  if (layer.pieces().size() == 1) return;
  pool_->Sync();
  const int64_t blocks = int64_t{tokens} * layer.out_stride() / kBlockN;
  const int64_t end = blocks * (worker + 1) / pool_->size();
  for (int64_t at = blocks * worker / pool_->size(); at < end; ++at) {
    ws.SumPieces(layer, tokens, at * kBlockN, ws.out.data() + at * kBlockN);
  }
}

}  // namespace lsg
