// A processor takes one of two forms of some kernels (Panel::few_fetches): both must give the same
// bits on every level.
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "cpu/isa.h"
#include "kernels/kernels.h"

namespace lsg {
namespace {

constexpr int kBlocks = 3, kTiles = 5, kInputs = kTiles * kTileK, kOutputs = kBlocks * kBlockN;

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
  std::minstd_rand random(1);
  std::vector<uint8_t> codes(size_t{kOutputs} * kInputs * BitsOf(format.dtype) / 8);
  for (uint8_t& code : codes) code = static_cast<uint8_t>(random() >> 8) & 0x77;
  // 0x3c3c3c3c is about 0.01 in f32 and bf16, 2^-67 in e8m0.
  const std::vector<uint8_t> scales(size_t{kOutputs} * kTiles * 4, 0x3c);
  const Panel panel{.codes = codes.data(),
                    .scales = scales.data(),
                    .zero_points = nullptr,
                    .bias = nullptr,
                    .blocks = kBlocks,
                    .k_tiles = kTiles,
                    .scale_groups = kTiles,
                    .tiles_per_scale = 1,
                    .scale_dtype = format.scale_dtype,
                    .scale_rows = static_cast<int>(format.scale_rows),
                    .global_scale = {1.0f, 1.0f},
                    .whole = true,
                    .next = {codes.data(), scales.data()},
                    .cached = false,
                    .few_fetches = few};
  std::vector<float> x(size_t{kMaxTokens} * kInputs);
  for (float& value : x) value = static_cast<float>(random() % 2001) / 1000 - 1;
  std::vector<int8_t> int8(x.size());
  std::vector<float> steps(kMaxTokens * kTiles);
  std::vector<int16_t> sums(2 * kMaxTokens * kTiles);
  const float* rows[kMaxTokens];
  Int8Row int8_rows[kMaxTokens];
  for (int t = 0; t < kMaxTokens; ++t) {
    rows[t] = x.data() + t * kInputs;
    int8_rows[t] = {&int8[t * kInputs], &steps[t * kTiles], &sums[2 * t * kTiles]};
    kernels.quantize_row(rows[t], kTiles, &int8[t * kInputs], &steps[t * kTiles],
                         &sums[2 * t * kTiles]);
  }
  std::vector<float> out(size_t{3} * kMaxTokens * kOutputs);
  float* y[3][kMaxTokens];
  for (int kind = 0; kind < 3; ++kind) {
    for (int t = 0; t < kMaxTokens; ++t) {
      y[kind][t] = out.data() + (kind * kMaxTokens + t) * kOutputs;
    }
  }
  const PanelKernels& panels = SelectPanelKernels(kernels, format);
  panels.f32(panel, rows, tokens, y[0], false);
  if (panels.int8 != nullptr) panels.int8(panel, int8_rows, tokens, y[1], false);
  if (panels.bf16 != nullptr) panels.bf16(panel, rows, tokens, y[2], false);
  return out;
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
