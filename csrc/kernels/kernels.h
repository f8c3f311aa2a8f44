// The kernels of one ISA level: a struct of function pointers, filled in kernels/<level>.cpp,
// chosen once.
//
// Kernels never allocate, throw, lock, log or read the environment. Shapes are in FORMAT.md's
// padded sizes: outputs in blocks of 64, inputs in tiles of 32. See README.md beside this file.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "cpu/isa.h"
#include "format/layer_spec.h"
#include "kernels/weight_kernels.h"

namespace lsg {

// Tokens a panel kernel multiplies in one pass over the weights; more are taken in several passes.
inline constexpr int kMaxTokens = 4;

// How far ahead, into L2, panel kernels prefetch. Half of it costs int4 2 to 3 % on two Zen 4 cores
// and 1 % on 16 Xeon cores, a quarter 10 % there; non-temporal hints, past L2, a third.
inline constexpr int kPrefetchBytes = 8192;

// Where a panel's codes and scales begin, to be fetched before it is read; null: not known.
struct PanelStart {
  const uint8_t* codes = nullptr;
  const uint8_t* scales = nullptr;
};

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
  bool whole;             // the record's next section lies behind the codes: worth prefetching
  PanelStart next;        // what is read after these: prefetching goes on there
  bool cached;            // from a pass before: prefetching is in `next` from the start
  bool few_fetches;       // NeedsFewFetches()

  PanelStart start() const { return {codes, scales}; }
  // Blocks begin … end - 1, of codes of `bits`; what is read next is known of the last ones.
  Panel Blocks(int begin, int end, int bits) const;
};

// One token's inputs, quantised: x[k] ≈ codes[k] · scales[k / 32].
struct Int8Row {
  const int8_t* codes;       // [k_tiles · 32]
  const float* scales;       // [k_tiles]
  const int16_t* half_sums;  // [k_tiles][2]: sums of 16 codes, for weights stored with an offset
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
                               int16_t* half_sums);

// Tokens' inputs as a sweep reads them: codes [groups][rows][code_bytes], metas
// [groups][rows][meta_bytes]. Group by group, because whole rows lie a page apart: a tile of 16
// rows would then need 16 translations.
struct PackedRows {
  uint8_t* codes;
  uint8_t* metas;
  int rows;
};

// Some inputs' weights of a block of 64 outputs: tiles k_tile … k_tile + k_tiles - 1.
struct WeightRun {
  Panel panel;
  int block, k_tile, k_tiles;
};

struct ByteRange {
  const uint8_t* begin;
  const uint8_t* end;
};

// Weights that come after these: a sweep brings them to L2 meanwhile, as evenly as it can, because
// more lines than a core can wait for would hold up its other loads.
class Upcoming {
 public:
  Upcoming() = default;
  Upcoming(const ByteRange* ranges, int count) : range_(ranges), end_(ranges + count) {
    if (count > 0) at_ = ranges->begin;
  }

  // All lines are under way after so many calls of Fetch.
  void SpreadOver(int64_t steps) {
    lines_ = 0;
    for (const ByteRange* r = range_; r < end_; ++r) lines_ += (r->end - r->begin) / kLineBytes + 1;
    steps_ = std::max<int64_t>(steps, 1);
  }
  void Fetch() {
    for (due_ += lines_; due_ >= steps_ && range_ < end_; due_ -= steps_) {
      __builtin_prefetch(at_, 0, 2);
      at_ += kLineBytes;
      if (at_ >= range_->end && ++range_ < end_) at_ = range_->begin;
    }
  }

 private:
  const ByteRange* range_ = nullptr;
  const ByteRange* end_ = nullptr;
  const uint8_t* at_ = nullptr;
  int64_t lines_ = 0, steps_ = 1;
  int64_t due_ = 0;  // of a line, in steps_
};

// Many tokens through one panel: weights are unpacked once, into cache, and meet every token there.
struct SweepKernels {
  bool int8_inputs;            // whether it quantises them; else they are float or bf16
  int group_tiles;             // of inputs that are packed together
  int code_bytes, meta_bytes;  // of a token's group of them
  int max_tiles;               // of inputs in one call
  // Routed tokens an expert, on average, from which two passes that sweep are faster than one that
  // meets four tokens at a time.
  int worth_tokens;
  int weight_bytes;  // of scratch memory for each of them
  // Packs x[tiles · 32] as tiles first_tile … of a row: whole groups, but for the row's last.
  void (*pack)(const float* x, int tiles, const PackedRows& rows, int first_tile, int row);
  // y[t · y_stride + n] += sum over k of w[n, k] · x[t][k], n < 64, t < x.rows, where w are `count`
  // runs side by side; they meet tiles first_tile … of the rows. `scratch`, 64-byte aligned, holds
  // weight_bytes for each tile of inputs. Bias is not added.
  void (*sweep)(const WeightRun* runs, int count, const PackedRows& x, int first_tile,
                uint8_t* scratch, float* y, ptrdiff_t y_stride, Upcoming next);

  int Groups(int k_tiles) const { return (k_tiles + group_tiles - 1) / group_tiles; }
  int64_t RowBytes(int k_tiles) const {
    return int64_t{Groups(k_tiles)} * (code_bytes + meta_bytes);
  }
  // Rows packed in `memory` of rows · RowBytes(k_tiles) bytes.
  PackedRows RowsAt(uint8_t* memory, int rows, int k_tiles) const {
    return {memory, memory + int64_t{rows} * Groups(k_tiles) * code_bytes, rows};
  }
  // Copies row `from_row` to row `to_row`.
  void CopyRow(const PackedRows& from, int from_row, const PackedRows& to, int to_row,
               int k_tiles) const;
};

// The kernels for a weight format, by activation precision. int8 is null where only f32 exists, and
// so is int8_sweep, which fp8 has on AMX without the kernel. The sweeps give the same bits as the
// kernel beside them, unless the level's README says otherwise.
struct PanelKernels {
  PanelInt8Fn int8 = nullptr;
  PanelFloatFn f32 = nullptr;
  const SweepKernels* int8_sweep = nullptr;
  const SweepKernels* f32_sweep = nullptr;
  PanelFloatFn bf16 = nullptr;  // as f32, inputs rounded to bf16; null where that gains nothing

  const SweepKernels& sweep() const { return int8_sweep != nullptr ? *int8_sweep : *f32_sweep; }
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
namespace bf16 {
const Kernels& Table();
}
namespace amx {
const Kernels& Table();
}

}  // namespace lsg
