// The kernels of one ISA level: a struct of function pointers, filled in kernels/<level>.cpp,
// chosen once.
//
// Kernels never allocate, throw, lock, log or read the environment. Shapes are in FORMAT.md's
// padded sizes: outputs in blocks of 64, inputs in tiles of 32. See README.md beside this file.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cpu/isa.h"
#include "format/layer_spec.h"
#include "kernels/weight_kernels.h"

namespace lsg {

// Tokens a panel kernel multiplies in one pass over the weights; more are taken in several passes.
inline constexpr int kMaxTokens = 4;

// A run of blocks of one panel, with its scales wherever they lie.
struct Panel {
  const uint8_t* codes;        // [blocks][k_tiles][4 tiles]
  const uint8_t* scales;       // [blocks][scale_groups][64 / scale_rows], or null
  const uint8_t* zero_points;  // as scales, or null
  const float* bias;           // [blocks][64], or null; added once per output
  int blocks;
  int k_tiles;
  int scale_groups;
  int tiles_per_scale;  // tiles of 32 inputs that share a scale
  ScaleDtype scale_dtype;
  int scale_rows;
  float global_scale[2];  // of a block's first and second 32 outputs
};

// One token's inputs, quantised: x[k] ≈ codes[k] · scales[k / 32].
struct Int8Row {
  const int8_t* codes;  // [k_tiles · 32]
  const float* scales;  // [k_tiles]
  const int32_t* sums;  // [k_tiles]: sum of the tile's codes, for weights stored with an offset
};

// y[t][n] = (accumulate ? y[t][n] : 0) + bias[n] + sum over k of w[n, k] · x[t][k], for 1 ≤ tokens
// ≤ kMaxTokens.
using PanelInt8Fn = void (*)(const Panel&, const Int8Row* x, int tokens, float* const* y,
                             bool accumulate);
using PanelFloatFn = void (*)(const Panel&, const float* const* x, int tokens, float* const* y,
                              bool accumulate);

// The formulas are FORMAT.md's.
enum class Activation { kSilu, kSwigluClamped, kSiluClamped, kSwigluOai, kGeluTanh, kRelu2, kSitu };

struct ActivationSpec {
  Activation kind = Activation::kSilu;
  float alpha = 1.0f;
  float limit = 0.0f;  // 0: no clamp
};

// act[u] = weight · f(gate[u], up[u]) for `unit_rows` neurons; gate_up is a gate_up panel's output
// for one token, [blocks][64] (gate's 32 then up's when gated).
using ActivateFn = void (*)(const ActivationSpec&, bool gated, int unit_rows, const float* gate_up,
                            float weight, float* act);

// Symmetric int8 in groups of 32, round to nearest even, scale = max |x| / 127. The same bits on
// every level. A group with a NaN or an infinity gets a non-finite scale, so the token's outputs
// are non-finite too.
using QuantizeRowFn = void (*)(const float* x, int k_tiles, int8_t* codes, float* scales,
                               int32_t* sums);

// The kernels for a weight format, by activation precision. int8 is null where only f32 exists.
struct PanelKernels {
  PanelInt8Fn int8 = nullptr;
  PanelFloatFn f32 = nullptr;
};

struct Kernels {
  Isa isa;
  // "halves": two scales a tile, that is groups of 16 inputs.
  PanelKernels int4, int4_halves, int8, uint8, fp8_e4m3, fp8_e5m2, fp4_e2m1, fp4_e2m1_halves, bf16,
      f16;
  ActivateFn activate;
  QuantizeRowFn quantize_row;
  WeightKernels weights;
};

// The kernels of a level, with levels that have none of their own falling to the one below.
const Kernels& KernelsOf(Isa isa);

// Kernels for a panel format. Throws FormatError when there are none yet.
const PanelKernels& SelectPanelKernels(const Kernels& kernels, const PanelFormat& format);

namespace scalar {
const Kernels& Table();
}
namespace avx2 {
const Kernels& Table();
}
namespace avx512 {
const Kernels& Table();
}
namespace vnni {
const Kernels& Table();
}

}  // namespace lsg
