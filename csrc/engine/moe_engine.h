// Computes routed experts from layer files.
//
// Invariant: for a fixed ISA level the result does not depend on the number of threads or on
// scheduling, and in one pass neither on the number of nodes: every partial sum belongs to a task
// that the shapes alone define, and partial sums are added in an order that the shapes alone
// define. A unit's records are read by the workers of the one node that has the unit.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "engine/batch.h"
#include "engine/moe_layer.h"
#include "engine/routing.h"
#include "engine/thread_pool.h"
#include "engine/trace.h"
#include "memory/loader.h"
#include "memory/residency.h"

namespace lsg {

struct ExpertRange;
class SharedPieces;

// kInt8: for weights that have such kernels; on the BF16 level fp8 and bf16 weights meet bf16.
// Others, and all with kFloat, meet floats, but prompts where the level multiplies bf16.
enum class ActivationPrecision { kInt8, kFloat };

struct EngineOptions {
  PoolOptions pool;
  Isa isa = Isa::kScalar;
  ActivationPrecision activations = ActivationPrecision::kInt8;
};

class MoeEngine {
 public:
  explicit MoeEngine(const EngineOptions& options);
  ~MoeEngine();

  // The engine computes the units of `memory` only, so its result is a partial sum unless they are
  // all of the layer's. `node_units`: how many of them each node of the pool takes, in order;
  // empty: as `memory` has them by node, or evenly. Load comes before the first forward pass.
  // Throws FormatError when the layer has a format without a kernel.
  int AddLayer(LayerMemory memory, const ActivationSpec& activation, std::vector<int> node_units);

  // Brings the layers that were added since the last call into memory (loader.h); when it throws,
  // they are gone. `lock`: also keeps them there, as far as the limit on locked memory permits.
  void Load(int threads_per_node, bool lock, const LoadPoll& poll);

  // Where the unit ranges of loaded layers are; `layer` is the handle.
  std::vector<PartResidency> Residency() const;

  // out[t] = sum over j of topk_weights[t, j] · expert[topk_ids[t, j]](hidden[t]). Safe to call
  // from several threads; calls take turns. Throws Error for a bad handle or expert id, or a
  // layer that is not loaded.
  void Forward(int layer, const Batch& batch);

  // Whether so many tokens take one pass over the weights they need, which gives each token the
  // same bits as alone; more of them take two. Throws std::out_of_range for a bad handle.
  bool InOnePass(int layer, int tokens, int top_k) const;

  // Whether so many tokens' inputs are quantised to int8. Throws std::out_of_range for a bad
  // handle.
  bool Int8Inputs(int layer, int tokens, int top_k) const;

  // Records every Forward from now on in this file. Throws CapacityError.
  void TraceTo(const std::string& path);

  const EngineOptions& options() const { return options_; }
  int threads() const { return pool_->size(); }
  // Expert bytes of loaded layers.
  uint64_t loaded_bytes() const { return loaded_bytes_; }
  uint64_t locked_bytes() const { return locked_bytes_; }

 private:
  struct Workspace;
  struct NodeWorkspace;
  struct BlockRange {
    int begin, end;
  };

  const MoeLayer& Layer(int layer) const;
  void LoadHidden(const MoeLayer& layer, const Batch& batch, int first, int tokens);
  // A row for each routed token, its values in its expert's order.
  void GatherInputs(const MoeLayer& layer);
  void StoreOut(const MoeLayer& layer, const Batch& batch, int first, int tokens);
  // Run by every worker: out = the sum of all nodes' pieces.
  void AddPieces(const MoeLayer& layer, int tokens, int worker);

  // one_pass.cpp
  void Fused(const MoeLayer& layer, int tokens);
  PanelStart StartOf(const MoeLayer& layer, int unit, int index) const;
  void SumRange(const MoeLayer& layer, int worker, int unit, const ExpertRange& range,
                PanelStart next, float* sums, uint8_t* filled) const;
  void SumUnit(const MoeLayer& layer, int worker, int unit, int tokens, PanelStart next,
               float* sums, uint8_t* filled) const;
  // act[t] = weight · f(gate, up)[unit_rows] for up to kMaxTokens tokens of one record. `shared`:
  // whose pieces others may take; null: nobody's.
  void GateUp(const MoeLayer& layer, const Panel& panel, const RoutedToken* routed, int tokens,
              SharedPieces* shared, float* const* act) const;
  // y[t] (+)= down · act[t] for one record.
  void Down(const MoeLayer& layer, const Panel& panel, const float* const* act, int tokens,
            bool accumulate, SharedPieces* shared, float* const* y) const;
  void HelpOthers(int worker) const;

  // prefill.cpp: what every worker does before the passes and after them.
  void Prefill(const MoeLayer& layer, const Batch& batch, int first, int tokens);
  void PackHidden(const MoeLayer& layer, const Batch& batch, int first, int tokens, int worker);
  void StoreBlocks(const MoeLayer& layer, const Batch& batch, int first, int tokens, int worker);
  PackedRows HiddenRow(const MoeLayer& layer, int token) const;
  // A node's activations of routed tokens [begin, begin + rows), one expert's.
  PackedRows ActRows(const MoeLayer& layer, int node, int begin, int rows) const;

  // first_pass.cpp
  void FirstPass(const MoeLayer& layer, int node);
  void CollectInputs(const MoeLayer& layer, const uint32_t* order, const RoutedToken* routed,
                     const PackedRows& x) const;
  void Activations(const MoeLayer& layer, int node, const ExpertTokens& expert, UnitRange units);

  // second_pass.cpp. whole: a task has all ranges of its blocks, and adds up their sums.
  void SecondPass(const MoeLayer& layer, int node, int tokens, bool whole);
  // Some blocks of 64 outputs of all tokens, summed over the units of `piece` and a range of
  // experts; out [number of blocks][tokens, 64].
  void Outputs(const MoeLayer& layer, int node, UnitRange piece, const ExpertRange& range,
               int tokens, BlockRange blocks, float* out);

  EngineOptions options_;
  const Kernels& kernels_;
  std::shared_ptr<ThreadPool> pool_;
  std::mutex forward_mutex_;
  std::vector<std::unique_ptr<MoeLayer>> layers_;
  std::unique_ptr<Workspace> workspace_;
  std::unique_ptr<Trace> trace_;
  size_t loaded_layers_ = 0;
  uint64_t loaded_bytes_ = 0;
  uint64_t locked_bytes_ = 0;
};

}  // namespace lsg
