// Few tokens: one pass over the weights that they need, and one join.
//
// A task is a unit and a range of experts: it goes from x to its share of y, reading every record
// once, front to back. Who has no task left helps with others' last records, block by block of
// outputs. Invariant: the sums that are added, and their order, follow from the layer alone, so a
// token's bits depend neither on the rest of its batch nor on the threads.
#include <algorithm>
#include <atomic>
#include <utility>
#include <vector>

#include "base/align.h"
#include "engine/workspace.h"

namespace lsg {
namespace {

// Up to here a task goes from x to its share of y (one join, partial sums of whole rows); above,
// the second pass over the activations costs less than the partial sums. On two cores 64 tokens
// took 32 ms fused and 48 ms in two passes, 512 tokens 221 and 248 ms; the bytes bound what the
// sums may occupy.
constexpr int kFusedTokens = 128;
constexpr int64_t kFusedBytes = int64_t{256} << 20;
// Partial sums of a token, at least: enough to balance 16 threads.
constexpr int kSlots = 96;
// Tasks of a worker, at least, so that workers end together.
constexpr int kTasksPerWorker = 4;
// From here on tasks go unit by unit, and a unit's sums are added up as soon as they are all there,
// while others read weights; below, what takes longest comes first, and sums are added at the end.
// On 16 threads 64 tokens took 4.6 instead of 4.9 ms, 16 tokens 2.05 instead of 2.16, one 2 to 8 %
// longer.
constexpr int kUnitByUnitTokens = 8;

constexpr int kMaxUnitRows = 128;
constexpr int kMaxUnitTiles = kMaxUnitRows / kTileK;
constexpr int kMaxGateUpOutputs = 2 * kMaxUnitRows;

// The ranges of expert ids that have sums of their own, so that there are tasks for many workers.
int ExpertRanges(const MoeLayer& layer) {
  return std::clamp(CeilDiv(kSlots, std::max(layer.units(), 1)), 1, layer.num_experts());
}

// Pieces of a down panel that others may take; of a gate_up panel each block is one.
constexpr int kDownPieces = 4;
// Looks for others' work before a worker waits at the barrier: fifty to a hundred microseconds.
constexpr int kVainLooks = 1000;

// y (+)= W · x, blocks of outputs shared with others `at_once` at a time.
template <class Kernel, class Row>
void Multiply(Kernel kernel, const Panel& panel, int bits, const Row* x, int tokens,
              bool accumulate, SharedPieces* shared, int at_once, float* const* y) {
  const int pieces = CeilDiv(panel.blocks, at_once);
  if (shared == nullptr || pieces == 1) {
    kernel(panel, x, tokens, y, accumulate);
    return;
  }
  shared->Run(pieces, [&](int piece) {
    const int begin = piece * at_once, end = std::min(begin + at_once, panel.blocks);
    float* rows[kMaxTokens];
    for (int t = 0; t < tokens; ++t) rows[t] = y[t] + begin * kBlockN;
    kernel(panel.Blocks(begin, end, bits), x, tokens, rows, accumulate);
  });
}

// Adds the rows of `from` that are filled to those of `to`, and leaves none filled.
void MoveSums(int tokens, int stride, const float* from, uint8_t* from_filled, float* to,
              uint8_t* to_filled) {
  for (int token = 0; token < tokens; ++token, from += stride, to += stride) {
    if (!from_filled[token]) continue;
    from_filled[token] = 0;
    if (to_filled[token]) {
      for (int h = 0; h < stride; ++h) to[h] += from[h];
    } else {
      std::copy_n(from, stride, to);
      to_filled[token] = 1;
    }
  }
}

}  // namespace

// From the shapes alone, so that which way a batch takes, and so its bits, does not depend on the
// experts that it chose.
bool MoeEngine::InOnePass(int layer_index, int tokens, int top_k) const {
  const MoeLayer& layer = *layers_.at(layer_index);
  const int64_t row_bytes = int64_t{layer.out_stride()} * static_cast<int64_t>(sizeof(float));
  const int64_t rows = int64_t{layer.units()} * ExpertRanges(layer) * tokens;
  if (tokens > kFusedTokens || rows * row_bytes > kFusedBytes) return false;
  // Who asks for floats prefers exactness to speed.
  if (options_.activations == ActivationPrecision::kFloat) return true;
  const int64_t worth =
      std::max(layer.gate_up_sweep().worth_tokens, layer.down_sweep().worth_tokens);
  return int64_t{tokens} * top_k <= worth * layer.num_experts();
}

bool MoeEngine::Int8Inputs(int layer_index, int tokens, int top_k) const {
  const MoeLayer& layer = *layers_.at(layer_index);
  return InOnePass(layer_index, tokens, top_k) ? layer.int8_gate_up()
                                               : layer.gate_up_sweep().int8_inputs;
}

void MoeEngine::GateUp(const MoeLayer& layer, const Panel& panel, const RoutedToken* routed,
                       int tokens, SharedPieces* shared, float* const* act) const {
  const Workspace& ws = *workspace_;
  alignas(64) float outputs[kMaxTokens][kMaxGateUpOutputs];
  float* rows[kMaxTokens];
  for (int t = 0; t < tokens; ++t) rows[t] = outputs[t];
  // Inputs in an expert's order have a row for each routed token, others one for each token.
  const bool gathered = layer.spec().gate_up().k_permutation;
  const int64_t first = routed - ws.routing.tokens.data();
  const auto row = [&](int t) { return gathered ? first + t : int64_t{routed[t].token}; };
  const int bits = BitsOf(layer.spec().gate_up().dtype);
  if (layer.int8_gate_up()) {
    Int8Row x[kMaxTokens];
    for (int t = 0; t < tokens; ++t) x[t] = ws.hidden_int8.Row(row(t));
    Multiply(layer.gate_up_kernels().int8, panel, bits, x, tokens, false, shared, 1, rows);
  } else {
    const float* x[kMaxTokens];
    const float* inputs = gathered ? ws.gathered.data() : ws.hidden.data();
    for (int t = 0; t < tokens; ++t) x[t] = inputs + row(t) * layer.in_stride();
    Multiply(layer.gate_up_kernels().f32, panel, bits, x, tokens, false, shared, 1, rows);
  }
  for (int t = 0; t < tokens; ++t) {
    kernels_.activate(layer.activation(), layer.gated(), layer.unit_rows(), outputs[t],
                      routed[t].weight, act[t]);
  }
}

// Where SumRange begins to read a unit of one of the routed experts.
PanelStart MoeEngine::StartOf(const MoeLayer& layer, int unit, int index) const {
  return layer.GateUpPanel(unit, workspace_->routing.experts[index].expert).start();
}

// The sums of one unit and range of experts, for the tokens that route there; of others nothing is
// written. next: what this worker reads then, if it is known. sums [tokens, out_stride],
// filled [tokens]: which rows are.
void MoeEngine::SumRange(const MoeLayer& layer, int worker, int unit, const ExpertRange& range,
                         PanelStart next, float* sums, uint8_t* filled) const {
  Workspace& ws = *workspace_;
  const NodeWorkspace& node = ws.nodes[pool_->NodeOf(worker)];
  const bool others = pool_->WorkersOn(pool_->NodeOf(worker)) > 1;
  const auto& experts = ws.routing.experts;
  const int stride = layer.out_stride();
  alignas(64) float act[kMaxTokens][kMaxUnitRows];
  float* act_rows[kMaxTokens];
  for (int t = 0; t < kMaxTokens; ++t) act_rows[t] = act[t];
  for (int e = range.begin; e < range.end; ++e) {
    const ExpertTokens& expert = experts[e];
    // When all tasks are taken, somebody may be without one.
    const bool help = others && node.next_task.load(std::memory_order_relaxed) >= node.tasks;
    SharedPieces* shared = help ? &ws.shared[worker] : nullptr;
    Panel gate_up = layer.GateUpPanel(unit, expert.expert);
    Panel down = layer.DownPanel(unit, expert.expert, 0, stride / kBlockN);
    const PanelStart then = e + 1 < range.end ? StartOf(layer, unit, e + 1) : next;
    gate_up.next = down.start();
    down.next = then;
    const float* bias = unit == 0 ? layer.DownBias(expert.expert) : nullptr;
    const auto routed = ws.routing.TokensOf(expert);
    for (size_t at = 0; at < routed.size(); at += kMaxTokens) {
      const int count = static_cast<int>(std::min<size_t>(kMaxTokens, routed.size() - at));
      if (at > 0 && then.codes != nullptr) {
        // This record is in the cache, so memory is free for the next.
        gate_up.next = then;
        down.next = {.codes = then.codes + (down.codes - gate_up.codes)};
        gate_up.cached = down.cached = true;
      }
      GateUp(layer, gate_up, routed.data() + at, count, shared, act_rows);
      float* y[kMaxTokens];
      bool any_filled = false;
      for (int t = 0; t < count; ++t) any_filled |= filled[routed[at + t].token] != 0;
      for (int t = 0; t < count; ++t) {
        const int token = routed[at + t].token;
        y[t] = sums + int64_t{token} * stride;
        if (any_filled && !filled[token]) std::fill(y[t], y[t] + stride, 0.0f);
        filled[token] = 1;
      }
      Down(layer, down, act_rows, count, any_filled, shared, y);
      if (bias == nullptr) continue;
      for (int t = 0; t < count; ++t) {
        for (int h = 0; h < stride; ++h) y[t][h] += routed[at + t].weight * bias[h];
      }
    }
  }
}

// All ranges of a unit, added up in order: what the join would do with the sums of single ranges,
// but in this core's cache.
void MoeEngine::SumUnit(const MoeLayer& layer, int worker, int unit, int tokens, PanelStart next,
                        float* sums, uint8_t* filled) const {
  const int stride = layer.out_stride();
  thread_local Scratch<float> range_sums;
  thread_local std::vector<uint8_t> range_filled;
  const auto& ranges = workspace_->expert_ranges;
  for (size_t r = 0; r < ranges.size(); ++r) {
    const ExpertRange& range = ranges[r];
    const PanelStart then =
        r + 1 < ranges.size() ? StartOf(layer, unit, ranges[r + 1].begin) : next;
    if (r == 0) {
      SumRange(layer, worker, unit, range, then, sums, filled);
      continue;
    }
    range_sums.Grow(int64_t{tokens} * stride);
    range_filled.assign(tokens, 0);
    SumRange(layer, worker, unit, range, then, range_sums.data(), range_filled.data());
    MoveSums(tokens, stride, range_sums.data(), range_filled.data(), sums, filled);
  }
}

// Until no worker of the node has a task, or for a while none has had a piece to share. Workers
// that have not begun do not count: they may be waiting for this very processor.
void MoeEngine::HelpOthers(int worker) const {
  Workspace& ws = *workspace_;
  const int node = pool_->NodeOf(worker);
  const std::atomic<int>& busy = ws.nodes[node].busy;
  const int first = pool_->FirstWorker(node), workers = pool_->WorkersOn(node);
  for (int vain = 0; vain < kVainLooks && busy.load(std::memory_order_relaxed) > 0; ++vain) {
    for (int i = 1; i < workers; ++i) {
      const int other = first + (worker - first + i) % workers;
      while (ws.shared[other].Help()) vain = 0;
    }
    _mm_pause();
  }
}

void MoeEngine::Fused(const MoeLayer& layer, int tokens) {
  Workspace& ws = *workspace_;
  const int stride = layer.out_stride();
  const int ranges = ExpertRanges(layer);
  // Where whole units are enough tasks, fewer sums go from core to core.
  bool whole_units = true;
  for (int node = 0; node < pool_->num_nodes(); ++node) {
    const int workers = pool_->WorkersOn(node);
    const int units = layer.UnitsOf(node).size();
    whole_units &= units == 0 || units >= workers * kTasksPerWorker;
  }
  const bool unit_by_unit = !whole_units && tokens >= kUnitByUnitTokens;
  const int slots_of_unit = whole_units ? 1 : ranges;
  ws.SplitExperts(ranges, layer.num_experts(), !whole_units);
  for (int node = 0; node < pool_->num_nodes(); ++node) {
    const int64_t rows = int64_t{layer.UnitsOf(node).size()} * slots_of_unit * tokens;
    ws.nodes[node].slots.Grow(rows * stride);
    ws.nodes[node].filled.assign(rows, 0);
    const int used = static_cast<int>(ws.expert_ranges.size());
    ws.nodes[node].tasks = layer.UnitsOf(node).size() * (whole_units ? std::min(used, 1) : used);
    ws.nodes[node].busy = 0;
    if (unit_by_unit) ws.nodes[node].ExpectTasks(layer.UnitsOf(node).size(), used);
  }

  // A task's unit, counted on its node, and range of experts, of a whole unit the first.
  const auto find = [&](int node, int task) -> std::pair<int, const ExpertRange&> {
    const int used = static_cast<int>(ws.expert_ranges.size());
    const int units = layer.UnitsOf(node).size();
    if (whole_units) return {task, ws.expert_ranges[0]};
    if (unit_by_unit) return {task / used, ws.expert_ranges[task % used]};
    return {task % units, ws.expert_ranges[task / units]};
  };
  const auto start_of = [&](int node, int task) {
    const auto [unit, range] = find(node, task);
    return StartOf(layer, layer.UnitsOf(node).begin + unit, range.begin);
  };
  // `next`: where the worker's next task starts, if it is known.
  const auto compute = [&](int worker, int node, int task, PanelStart next) {
    NodeWorkspace& mine = ws.nodes[node];
    const auto [at, range] = find(node, task);
    const int unit = layer.UnitsOf(node).begin + at;
    const int64_t first = int64_t{at} * slots_of_unit * tokens;
    float* slots = mine.slots.data() + first * stride;
    uint8_t* filled = &mine.filled[first];
    if (whole_units) {
      SumUnit(layer, worker, unit, tokens, next, slots, filled);
      return;
    }
    const int64_t row = int64_t{range.index} * tokens;
    SumRange(layer, worker, unit, range, next, slots + row * stride, filled + row);
    if (!unit_by_unit || --mine.left[at] > 0) return;
    // At the end all workers add what is left.
    if (mine.next_task.load(std::memory_order_relaxed) >= mine.tasks) return;
    for (int slot = 1; slot < slots_of_unit; ++slot) {
      const int64_t rows = int64_t{slot} * tokens;
      MoveSums(tokens, stride, slots + rows * stride, filled + rows, slots, filled);
    }
  };

  // The block of 64 outputs from `at` of one token, summed over some of a node's units.
  const auto reduce = [&](int node, UnitRange units, int64_t token, int64_t at, float* sum) {
    const NodeWorkspace& mine = ws.nodes[node];
    const int first_unit = layer.UnitsOf(node).begin;
    SumUnits<kBlockN>(units, sum, [&](UnitRange range, float* part) {
      if (range.size() > 1) return false;
      std::fill_n(part, kBlockN, 0.0f);
      const int first_slot = (range.begin - first_unit) * slots_of_unit;
      for (int slot = first_slot; slot < first_slot + slots_of_unit; ++slot) {
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
    const int tasks = ws.nodes[node].tasks;
    const int workers = pool_->WorkersOn(node);
    std::atomic<int>& busy = ws.nodes[node].busy;
    ++busy;
    for (int task = next++; task < tasks;) {
      // A worker that knows its next task fetches ahead into it. Of the last ones each goes to
      // whoever is free first.
      const bool many = next + 2 * workers <= tasks;
      // Others may have taken them all meanwhile.
      const int then = many ? next++ : tasks;
      compute(worker, node, task, then < tasks ? start_of(node, then) : PanelStart{});
      task = many ? then : next++;
    }
    --busy;
    HelpOthers(worker);
    pool_->SyncNode();
    const int64_t here = worker - pool_->FirstWorker(node);
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

void MoeEngine::Down(const MoeLayer& layer, const Panel& panel, const float* const* act, int tokens,
                     bool accumulate, SharedPieces* shared, float* const* y) const {
  const int bits = BitsOf(layer.spec().down().dtype);
  const int at_once = CeilDiv(panel.blocks, kDownPieces);
  if (!layer.int8_down()) {
    Multiply(layer.down_kernels().f32, panel, bits, act, tokens, accumulate, shared, at_once, y);
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
  Multiply(layer.down_kernels().int8, panel, bits, x, tokens, accumulate, shared, at_once, y);
}

}  // namespace lsg
