// Weights from one format to another, a row at a time: how the converter makes what the engine
// reads.
//
// Every kernel gives the same bits on every level: each step is one correctly rounded operation on
// one weight, or a sum in an order that the source fixes. Numbers are finite; the caller has
// looked.
#pragma once

#include <cstdint>

#include "format/layer_spec.h"

namespace lsg {

// A row as it is stored. Scales and zero points are raw, one for every scale_k inputs.
struct StoredRow {
  const uint8_t* codes;  // one a byte, or a uint16
  const uint8_t* scales;
  const uint8_t* zero_points;
  Dtype dtype;
  ScaleDtype scale_dtype;
  int scale_k;  // a multiple of 16, or 0: one for the whole row
  float global_scale;
  int cols;
};

inline constexpr int kWeightGroup = 32;  // weights that are worked on together
inline constexpr int kFactorGroup = 16;  // weights that share a factor

// What a row is worth, exactly: weight k is values[k] · factors[k / 16]. Padded with zeros.
struct ExactRow {
  float* values;   // [groups · 32]
  float* factors;  // [groups · 2]
  int groups;
  bool plain;  // all factors are 1
};

// What a row lost: sums of squares over its weights.
struct RowError {
  double squared_error = 0;
  double squared_norm = 0;
};

// Where a row goes: codes [cols], one a byte or a uint16, and raw scales, one a group.
struct QuantizedRow {
  uint8_t* codes;
  uint8_t* scales;
  int cols;
};

struct WeightKernels {
  void (*expand)(const StoredRow&, const ExactRow&);
  // The largest magnitude of each 128 weights, or what `largest` already holds if that is more.
  void (*largest)(const ExactRow&, float* largest);
  // Groups of 32, codes q + 8, bf16 scales of either sign: each the one of least squared error over
  // 16 candidates, or with the weight of largest magnitude at -8.
  RowError (*int4)(const ExactRow&, bool search, const QuantizedRow&);
  // Groups of 32, bf16 scales that map the largest magnitude to 127.
  RowError (*int8)(const ExactRow&, const QuantizedRow&);
  // Groups of 32, e8m0 scales: the standard's, or the best of it and its neighbours.
  RowError (*mxfp4)(const ExactRow&, bool search, const QuantizedRow&);
  // Groups of 16, e4m3 scales beside the matrix's global scale: the one that maps the largest
  // magnitude to 6, or the best of it and its neighbours.
  RowError (*nvfp4)(const ExactRow&, bool search, float global_scale, const QuantizedRow&);
  // e4m3 codes; `exponents`: the power of two that scales each 128 weights.
  RowError (*fp8)(const ExactRow&, const int* exponents, const QuantizedRow&);
  // bf16 or f16, each weight rounded once, to nearest even. `largest` becomes the largest magnitude
  // that was asked for, if it is more; a weight beyond the format has no meaningful code.
  RowError (*half)(const ExactRow&, bool is_f16, double* largest, const QuantizedRow&);
};

}  // namespace lsg
