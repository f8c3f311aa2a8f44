// A processor takes one of two forms of some kernels (Panel::few_fetches): both must give the same
// bits on every level.
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "bench/random_panel.h"
#include "cpu/isa.h"
#include "kernels/kernels.h"

namespace lsg {
namespace {

constexpr int kBlocks = 3, kTiles = 5;

struct Case {
  const char* name;
  PanelFormat format;
};

const Case kCases[] = {
    {"int4", {Dtype::kInt4, ScaleDtype::kBf16, 1, 32}},
    {"int8", {Dtype::kInt8, ScaleDtype::kBf16, 1, 32}},
    {"mxfp4", {Dtype::kFp4E2m1, ScaleDtype::kE8m0, 1, 32}},
    {"fp8", {Dtype::kFp8E4m3, ScaleDtype::kF32, 32, 32}},
    {"bf16", {Dtype::kBf16}},
};

// What a panel of random codes gives for `tokens` tokens, by every kernel that the format has.
std::vector<float> Outputs(const Kernels& kernels, const PanelFormat& format, int tokens,
                           bool few) {
  RandomPanel weights(format, kBlocks, kTiles);
  weights.panel.next = weights.panel.start();
  weights.panel.few_fetches = few;
  const RandomRows x(kernels, kTiles);
  const PanelKernels& panels = SelectPanelKernels(kernels, format);
  std::vector<float> all;
  const auto add = [&](const auto& kernel, const auto* rows) {
    if (kernel == nullptr) return;
    const Out out(tokens, kBlocks * kBlockN);
    kernel(weights.panel, rows, tokens, out.rows, false);
    all.insert(all.end(), out.values.begin(), out.values.end());
  };
  add(panels.f32, x.floats);
  add(panels.int8, x.int8);
  add(panels.bf16, x.floats);
  return all;
}

int Run() {
  int wrong = 0;
  for (const Isa isa : UsableIsas()) {
    for (const Case& each : kCases) {
      for (int tokens = 1; tokens <= kMaxTokens; ++tokens) {
        const Kernels& kernels = KernelsOf(isa);
        const std::vector<float> few = Outputs(kernels, each.format, tokens, true);
        const std::vector<float> all = Outputs(kernels, each.format, tokens, false);
        if (std::memcmp(few.data(), all.data(), few.size() * sizeof(float)) == 0) continue;
        ++wrong;
        std::printf("%s, %s, %d tokens: few fetches give other bits\n",
                    std::string(IsaName(isa)).c_str(), each.name, tokens);
      }
    }
  }
  return wrong;
}

}  // namespace
}  // namespace lsg

int main() { return lsg::Run() == 0 ? 0 : 1; }
