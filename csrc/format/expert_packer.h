// One expert's matrices into its records and back: a permutation, nothing is rounded.
//
// Invariant: UnpackExpert(PackExpert(m)) == m.
#pragma once

#include <cstddef>
#include <cstdint>

#include "format/layer_spec.h"

namespace lsg {

// One projection, row-major. codes: one code a byte (4 and 8 bits) or a uint16 (16 bits), [rows, cols].
// scales: [ceil(rows / scale_rows), scale_cols] of the format's scale dtype; zero_points alike, one byte each.
struct MatrixView {
  uint8_t* codes = nullptr;
  uint8_t* scales = nullptr;
  uint8_t* zero_points = nullptr;
  float* bias = nullptr;
  int rows = 0;
  int cols = 0;
  int scale_cols = 0;
};

struct ExpertView {
  MatrixView gate;  // [I, H]; absent (codes null) when the layer is not gated
  MatrixView up;    // [I, H]
  MatrixView down;  // [H, I]
};

// Groups of inputs a row of `cols` inputs has in a source matrix of this format.
int SourceScaleCols(const PanelFormat& format, int cols);

// records: num_units × record_bytes, contiguous. Writes every byte of it.
void PackExpert(const LayerSpec& spec, const ExpertView& expert, std::byte* records);

// Fills the views' arrays, which have the shapes above.
void UnpackExpert(const LayerSpec& spec, const std::byte* records, const ExpertView& expert);

}  // namespace lsg
