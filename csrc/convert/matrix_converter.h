// One matrix from the format it is stored in to the one it becomes, some rows at a time.
//
// Invariant: what a row becomes depends on the matrix and the formats alone, not on the rows that
// are asked for with it.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "convert/mapped_range.h"
#include "format/expert_packer.h"
#include "kernels/kernels.h"

namespace lsg {

class MatrixConverter {
 public:
  // The same format keeps the numbers. Codes that are in a file are read from there and not from
  // memory. Throws FormatError when there is no way from one format to the other, CheckpointError
  // for a bias or a global scale that is no number.
  MatrixConverter(const Kernels& kernels, const MatrixView& matrix,
                  const std::optional<FilePlace>& codes_in_file, const PanelFormat& source,
                  const PanelFormat& target, bool search);

  // Rows must be asked for from a multiple of this.
  int row_block() const { return row_block_; }

  // Rows first … first + count - 1, as far as there are any; valid until the next call. Throws
  // CheckpointError for numbers that are none, or that the format cannot hold; std::system_error
  // for a file that cannot be read.
  MatrixView Rows(int first, int count);

  // What the expert table needs: bias, global scale, and scales where they are kept.
  MatrixView Whole();

  // What the rows so far have lost; nothing where they are kept.
  std::optional<RowError> error() const { return kept_ ? std::nullopt : std::optional(total_); }

 private:
  enum class Way { kInt4, kInt8, kFp8, kMxfp4, kNvfp4, kHalf };

  Way WayTo(const PanelFormat& target) const;
  // Makes `band_` hold these rows, of numbers all.
  void Load(int first, int count);
  void Expand(int row);
  RowError Convert(const QuantizedRow& out);
  // A block of rows, which become those from `at` on of what Rows gives.
  void ConvertFp8(int first, int count, int at);
  void Add(const RowError& error);

  const WeightKernels& kernels_;
  MatrixView matrix_;
  std::optional<FilePlace> file_;
  // Of the source: rows that are at hand, all of them where it is in memory.
  MatrixView band_;
  PanelFormat source_, target_;
  bool search_;
  bool kept_;
  Way way_ = Way::kHalf;
  int row_block_ = 32;
  int code_bytes_ = 1;
  int scale_cols_ = 0;
  float global_scale_ = 1.0f;
  RowError total_;
  std::vector<float> values_, factors_;
  ExactRow exact_{};
  std::vector<uint8_t> read_, codes_, scales_;
};

}  // namespace lsg
