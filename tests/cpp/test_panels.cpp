// A processor takes one of two forms of some kernels (Panel::few_fetches), and workers may share a
// panel's blocks (Panel::Blocks): all must give the same bits on every level.
#include <algorithm>
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

// What a panel of random codes gives for `tokens` tokens, by every kernel that the format has,
// `at_once` blocks at a time.
std::vector<float> Outputs(const Kernels& kernels, const PanelFormat& format, int tokens, bool few,
                           int at_once = kBlocks) {
  RandomPanel weights(format, kBlocks, kTiles);
  weights.panel.next = weights.panel.start();
  weights.panel.few_fetches = few;
  const RandomRows x(kernels, kTiles);
  const PanelKernels& panels = SelectPanelKernels(kernels, format);
  std::vector<float> all;
  const auto add = [&](const auto& kernel, const auto* rows) {
    if (kernel == nullptr) return;
    const Out out(tokens, kBlocks * kBlockN);
    for (int begin = 0; begin < kBlocks; begin += at_once) {
      const int end = std::min(begin + at_once, kBlocks);
      float* y[kMaxTokens];
      for (int t = 0; t < tokens; ++t) y[t] = out.rows[t] + begin * kBlockN;
      const Panel part = weights.panel.Blocks(begin, end, BitsOf(format.dtype));
      kernel(part, rows, tokens, y, false);
    }
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
        const auto same = [&](const std::vector<float>& other, const char* what) {
          if (std::memcmp(all.data(), other.data(), all.size() * sizeof(float)) == 0) return;
          ++wrong;
          std::printf("%s, %s, %d tokens: %s give other bits\n", std::string(IsaName(isa)).c_str(),
                      each.name, tokens, what);
        };
        same(few, "few fetches");
        for (const int at_once : {1, 2}) {
          same(Outputs(kernels, each.format, tokens, false, at_once), "shared blocks");
        }
      }
    }
  }
  return wrong;
}

}  // namespace
}  // namespace lsg

int main() { return lsg::Run() == 0 ? 0 : 1; }
