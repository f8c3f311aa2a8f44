// One expert's matrices into its records and back: a permutation, nothing is rounded.
//
// Invariant: UnpackExpert(PackExpert(m)) == m, the expert table's share included.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "format/layer_spec.h"

namespace lsg {

// One projection, row-major, or `first_row` and some rows after it. codes: one code a byte (4 and 8
// bits) or a uint16 (16 bits), [rows, cols]. scales: [ceil(rows / scale_rows), scale_cols] of the
// format's scale dtype; zero_points alike, one byte each.
struct MatrixView {
  uint8_t* codes = nullptr;
  uint8_t* scales = nullptr;
  uint8_t* zero_points = nullptr;
  float* bias = nullptr;
  float* global_scale = nullptr;    // one value
  uint32_t* input_order = nullptr;  // [cols]: the input that each column takes
  int rows = 0;
  int cols = 0;
  int scale_cols = 0;
  int first_row =
      0;  // of codes, scales and zero points; a multiple of scale_rows. bias has all rows
};

struct ExpertView {
  MatrixView gate;  // [I, H]; absent (codes null) when the layer is not gated
  MatrixView up;    // [I, H]
  MatrixView down;  // [H, I]
};

// A run of bytes of an expert in the expert table.
struct TableEntry {
  uint64_t offset;  // from the table's start
  void* data;       // in the matrix's arrays
  size_t bytes;
};

// What the expert table holds of one expert: global scales, down's bias, down's row scales, the
// order of gate's and up's inputs (up's is taken). Copy from `data` to pack, to `data` to unpack.
std::vector<TableEntry> TableEntries(const LayerSpec& spec, uint32_t expert_index,
                                     const ExpertView& expert);

// Throws FormatError, naming `where`, unless `order` is a permutation of 0 … inputs - 1.
void CheckInputOrder(const uint32_t* order, int inputs, const std::string& where);

// Groups of inputs a row of `cols` inputs has in a source matrix of this format.
int SourceScaleCols(const PanelFormat& format, int cols);

// records: num_units × record_bytes, contiguous. Writes every byte of it.
void PackExpert(const LayerSpec& spec, const ExpertView& expert, std::byte* records);

// The same in pieces, for a record that begins with zeros: the rows of gate and up that a unit
// has, and the part of its down panel that `blocks` blocks of 64 outputs from `first_block` are.
void ClearRecord(const LayerSpec& spec, std::byte* record);
void PackGateUp(const LayerSpec& spec, const ExpertView& expert, int unit, std::byte* record);
void PackDown(const LayerSpec& spec, const ExpertView& expert, int unit, int first_block,
              int blocks, std::byte* record);

// Fills the views' arrays, which have the shapes above.
void UnpackExpert(const LayerSpec& spec, const std::byte* records, const ExpertView& expert);

}  // namespace lsg
