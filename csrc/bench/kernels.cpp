// Single kernels with everything in L2: what they reach when memory does not limit them.
//
// A panel has 128 outputs and 2048 inputs, a unit of 64 neurons' gate and up at hidden size 2048;
// 512 KiB in bf16.
#include "kernels/kernels.h"

#include <benchmark/benchmark.h>

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "bench/random_panel.h"
#include "cpu/isa.h"

namespace lsg {
namespace {

constexpr int kBlocks = 2, kInputs = 2048, kTiles = kInputs / kTileK;
constexpr int kOutputs = kBlocks * kBlockN;

struct Format {
  const char* name;
  PanelFormat format;
};

const Format kFormats[] = {
    {"int4", {Dtype::kInt4, ScaleDtype::kBf16, 1, 32}},
    {"int8", {Dtype::kInt8, ScaleDtype::kBf16, 1, 32}},
    {"fp8", {Dtype::kFp8E4m3, ScaleDtype::kF32, 32, 128}},
    {"bf16", {Dtype::kBf16}},
    {"mxfp4", {Dtype::kFp4E2m1, ScaleDtype::kE8m0, 1, 32}},
    {"nvfp4",
     {.dtype = Dtype::kFp4E2m1,
      .scale_dtype = ScaleDtype::kFp8E4m3,
      .scale_rows = 1,
      .scale_k = 16,
      .global_scale = true}},
};

// Of the weights' codes and scales, and two operations a multiply-add.
void Count(benchmark::State& state, const PanelFormat& format, size_t scale_bytes, int tokens) {
  const double weights = double{kOutputs} * kInputs;
  const auto rate = benchmark::Counter::kIsIterationInvariantRate;
  state.counters["B/s"] = {weights * BitsOf(format.dtype) / 8 + static_cast<double>(scale_bytes),
                           rate};
  state.counters["OP/s"] = {2 * weights * tokens, rate};
}

void RunFloat(benchmark::State& state, const Kernels& kernels, PanelFloatFn kernel,
              const PanelFormat& format, int tokens) {
  const RandomPanel weights(format, kBlocks, kTiles);
  const RandomRows x(kernels, kTiles);
  const Out out(tokens, kOutputs);
  for (auto _ : state) {
    kernel(weights.panel, x.floats, tokens, out.rows, false);
    benchmark::ClobberMemory();
  }
  Count(state, format, weights.scales.size(), tokens);
}

void RunInt8(benchmark::State& state, const Kernels& kernels, PanelInt8Fn kernel,
             const PanelFormat& format, int tokens) {
  const RandomPanel weights(format, kBlocks, kTiles);
  const RandomRows x(kernels, kTiles);
  const Out out(tokens, kOutputs);
  for (auto _ : state) {
    kernel(weights.panel, x.int8, tokens, out.rows, false);
    benchmark::ClobberMemory();
  }
  Count(state, format, weights.scales.size(), tokens);
}

// Many tokens: the panel's blocks one after the other, as the engine's prompts take them.
void RunSweep(benchmark::State& state, const SweepKernels& sweep, const PanelFormat& format,
              int tokens) {
  const RandomPanel weights(format, kBlocks, kTiles);
  const std::vector<float> x = RandomFloats(kInputs);
  const int at_once = std::min(sweep.max_tiles, kTiles);
  Aligned inputs(tokens * sweep.RowBytes(kTiles)),
      scratch(size_t{1} * at_once * sweep.weight_bytes);
  const PackedRows rows = sweep.RowsAt(inputs.data(), tokens, kTiles);
  for (int t = 0; t < tokens; ++t) sweep.pack(x.data(), kTiles, rows, 0, t);
  std::vector<float> sums(size_t{1} * tokens * kBlockN);
  for (auto _ : state) {
    for (int block = 0; block < kBlocks; ++block) {
      for (int k = 0; k < kTiles; k += at_once) {
        const WeightRun run{weights.panel, block, k, std::min(at_once, kTiles - k)};
        sweep.sweep(&run, 1, rows, k, scratch.data(), sums.data(), kBlockN, {nullptr, 0});
      }
    }
    benchmark::ClobberMemory();
  }
  Count(state, format, weights.scales.size(), tokens);
}

void RunActivate(benchmark::State& state, ActivateFn kernel, Activation kind) {
  const std::vector<float> gate_up = RandomFloats(kOutputs);
  std::vector<float> act(kOutputs / 2);
  for (auto _ : state) {
    kernel({.kind = kind, .alpha = 1.7f, .limit = 7.0f}, true, kOutputs / 2, gate_up.data(), 0.5f,
           act.data());
    benchmark::ClobberMemory();
  }
  state.SetItemsProcessed(state.iterations() * kOutputs / 2);
}

void RegisterLevel(Isa isa) {
  const Kernels& kernels = KernelsOf(isa);
  // A level without kernels of its own has those of the one below.
  if (kernels.isa != isa) return;
  std::string level = "/";
  level.append(IsaName(isa));
  for (const Format& each : kFormats) {
    const PanelKernels& panel = SelectPanelKernels(kernels, each.format);
    for (int tokens : {1, 2, kMaxTokens}) {
      std::string of = "/";
      of.append(each.name).append(level).append("/tokens:").append(std::to_string(tokens));
      benchmark::RegisterBenchmark(("panel_float" + of).c_str(),
                                   [=, &kernels](benchmark::State& state) {
                                     RunFloat(state, kernels, panel.f32, each.format, tokens);
                                   });
      if (panel.bf16 != nullptr) {
        benchmark::RegisterBenchmark(("panel_bf16" + of).c_str(),
                                     [=, &kernels](benchmark::State& state) {
                                       RunFloat(state, kernels, panel.bf16, each.format, tokens);
                                     });
      }
      if (panel.int8 == nullptr) continue;
      benchmark::RegisterBenchmark(("panel_int8" + of).c_str(),
                                   [=, &kernels](benchmark::State& state) {
                                     RunInt8(state, kernels, panel.int8, each.format, tokens);
                                   });
    }
    const SweepKernels* sweep = &panel.sweep();
    for (int tokens : {8, 32, 128}) {
      std::string name = "sweep/";
      name.append(each.name).append(level).append("/tokens:").append(std::to_string(tokens));
      benchmark::RegisterBenchmark(name.c_str(), [=](benchmark::State& state) {
        RunSweep(state, *sweep, each.format, tokens);
      });
    }
  }
  benchmark::RegisterBenchmark(("activate/silu" + level).c_str(), [&](benchmark::State& state) {
    RunActivate(state, kernels.activate, Activation::kSilu);
  });
  benchmark::RegisterBenchmark(("activate/swigluoai" + level).c_str(),
                               [&](benchmark::State& state) {
                                 RunActivate(state, kernels.activate, Activation::kSwigluOai);
                               });
}

}  // namespace
}  // namespace lsg

int main(int argc, char** argv) {
  for (lsg::Isa isa : lsg::UsableIsas()) lsg::RegisterLevel(isa);
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
