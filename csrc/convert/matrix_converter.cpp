#include "convert/matrix_converter.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <string>
#include <system_error>

#include "base/align.h"
#include "base/error.h"
#include "convert/finite.h"

namespace lsg {
namespace {

// fp8 blocks, 128 × 128; scales are stored for every 32 rows.
constexpr int kBlock = 128;
constexpr int kBlockScaleRows = 32;
// A group whose largest weight is below the first becomes zero, and a weight above the second is
// refused: far from where float would overflow or lose digits on the way, far beyond any model's.
constexpr float kSmallest = 0x1p-100f;
constexpr float kLargest = 0x1p100f;

std::string Text(const char* format, double value) {
  char text[32];
  std::snprintf(text, sizeof text, format, value);
  return text;
}

// From where on a number does not round to a finite one.
double EndOf(Dtype half) { return half == Dtype::kF16 ? 65520.0 : 0x1.ffp127; }

// Throws std::system_error unless there are so many.
void ReadAll(const FilePlace& place, uint8_t* data, size_t bytes) {
  for (off_t at = place.offset; bytes > 0;) {
    const ssize_t count = pread(place.fd, data, bytes, at);
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) throw std::system_error(count < 0 ? errno : ENODATA, std::generic_category());
    data += count;
    at += count;
    bytes -= static_cast<size_t>(count);
  }
}

int CodeBytes(const PanelFormat& format) { return BitsOf(format.dtype) == 16 ? 2 : 1; }

}  // namespace

MatrixConverter::MatrixConverter(const Kernels& kernels, const MatrixView& matrix,
                                 const std::optional<FilePlace>& codes_in_file,
                                 const PanelFormat& source, const PanelFormat& target, bool search)
    : kernels_(kernels.weights),
      matrix_(matrix),
      file_(codes_in_file),
      band_(matrix),
      source_(source),
      target_(target),
      search_(search),
      kept_(source == target) {
  RequireFiniteWhole(matrix, source);
  if (kept_) return;
  way_ = WayTo(target);
  if (way_ == Way::kFp8) row_block_ = kBlock;
  code_bytes_ = CodeBytes(target);
  scale_cols_ = SourceScaleCols(target, matrix.cols);
  const int groups = CeilDiv(matrix.cols, kWeightGroup);
  values_.resize(size_t{kWeightGroup} * groups);
  factors_.resize(size_t{2} * groups);
  exact_ = {values_.data(), factors_.data(), groups, source.scale_dtype == ScaleDtype::kNone};
  if (way_ != Way::kNvfp4) return;
  // The largest group's scale becomes the largest e4m3 number, 448, and its largest weight 6.
  float largest = kSmallest;
  std::vector<float> of_columns(CeilDiv(matrix.cols, kBlock));
  for (int first = 0; first < matrix.rows; first += row_block_) {
    const int end = std::min(first + row_block_, matrix.rows);
    Load(first, end - first);
    for (int row = first; row < end; ++row) {
      Expand(row);
      kernels_.largest(exact_, of_columns.data());
    }
  }
  for (const float found : of_columns) largest = std::max(largest, found);
  global_scale_ = static_cast<float>(static_cast<double>(largest) / (6.0 * 448.0));
}

MatrixConverter::Way MatrixConverter::WayTo(const PanelFormat& target) const {
  const auto is = [&](Dtype dtype, ScaleDtype scale, uint32_t rows, uint32_t k, bool global) {
    return target.dtype == dtype && target.scale_dtype == scale && target.scale_rows == rows &&
           target.scale_k == k && target.global_scale == global && !target.zero_point;
  };
  if (is(Dtype::kInt4, ScaleDtype::kBf16, 1, 32, false)) return Way::kInt4;
  if (is(Dtype::kInt8, ScaleDtype::kBf16, 1, 32, false)) return Way::kInt8;
  if (is(Dtype::kFp8E4m3, ScaleDtype::kF32, kBlockScaleRows, kBlock, false)) return Way::kFp8;
  if (is(Dtype::kFp4E2m1, ScaleDtype::kE8m0, 1, 32, false)) return Way::kMxfp4;
  if (is(Dtype::kFp4E2m1, ScaleDtype::kFp8E4m3, 1, 16, true)) return Way::kNvfp4;
  if (is(Dtype::kBf16, ScaleDtype::kNone, 1, 0, false) ||
      is(Dtype::kF16, ScaleDtype::kNone, 1, 0, false)) {
    return Way::kHalf;
  }
  throw FormatError("no conversion from " + std::string(NameOf(source_.dtype)) + " to " +
                    std::string(NameOf(target.dtype)) + " with " +
                    std::string(NameOf(target.scale_dtype)) + " scales for every " +
                    std::to_string(target.scale_k) + " inputs");
}

MatrixView MatrixConverter::Whole() {
  MatrixView view = matrix_;
  if (!kept_) {
    view.scales = view.zero_points = nullptr;
    view.global_scale = &global_scale_;
  }
  return view;
}

MatrixView MatrixConverter::Rows(int first, int count) {
  count = std::min(count, matrix_.rows - first);
  Load(first, count);
  if (kept_) return band_;
  const int scale_bytes = BytesOf(target_.scale_dtype);
  const size_t code_stride = size_t{1} * matrix_.cols * code_bytes_;
  const size_t scale_stride = size_t{1} * scale_cols_ * scale_bytes;
  codes_.resize(code_stride * count);
  scales_.resize(scale_stride * CeilDiv(count, static_cast<int>(target_.scale_rows)));
  if (way_ == Way::kFp8) {
    for (int block = 0; block < count; block += kBlock) {
      ConvertFp8(first + block, std::min(kBlock, count - block), block);
    }
  } else {
    for (int row = 0; row < count; ++row) {
      Expand(first + row);
      Add(Convert(
          {codes_.data() + row * code_stride, scales_.data() + row * scale_stride, matrix_.cols}));
    }
  }
  MatrixView view = Whole();
  view.codes = codes_.data();
  view.scales = scales_.data();
  view.scale_cols = scale_cols_;
  view.first_row = first;
  return view;
}

void MatrixConverter::Load(int first, int count) {
  if (file_) {
    const ptrdiff_t stride = ptrdiff_t{matrix_.cols} * CodeBytes(source_);
    read_.resize(stride * count);
    // Whoever takes rows of scales counts them from the same row on.
    const int scale_row = first / static_cast<int>(source_.scale_rows);
    const ptrdiff_t at = ptrdiff_t{scale_row} * matrix_.scale_cols;
    band_.first_row = first;
    band_.codes = read_.data();
    if (matrix_.scales) band_.scales = matrix_.scales + at * BytesOf(source_.scale_dtype);
    if (matrix_.zero_points) band_.zero_points = matrix_.zero_points + at;
    ReadAll({file_->fd, file_->offset + first * stride}, read_.data(), read_.size());
  }
  RequireFiniteRows(band_, source_, first - band_.first_row, count);
}

void MatrixConverter::Expand(int row) {
  const ptrdiff_t scale_row = row / static_cast<int>(source_.scale_rows);
  const ptrdiff_t at = scale_row * matrix_.scale_cols;
  kernels_.expand(
      {.codes = band_.codes + ptrdiff_t{row - band_.first_row} * matrix_.cols * CodeBytes(source_),
       .scales = matrix_.scales ? matrix_.scales + at * BytesOf(source_.scale_dtype) : nullptr,
       .zero_points = matrix_.zero_points ? matrix_.zero_points + at : nullptr,
       .dtype = source_.dtype,
       .scale_dtype = source_.scale_dtype,
       .scale_k = static_cast<int>(source_.scale_k),
       .global_scale = matrix_.global_scale ? *matrix_.global_scale : 1.0f,
       .cols = matrix_.cols},
      exact_);
}

RowError MatrixConverter::Convert(const QuantizedRow& out) {
  switch (way_) {
    case Way::kInt4:
      return kernels_.int4(exact_, search_, out);
    case Way::kInt8:
      return kernels_.int8(exact_, out);
    case Way::kMxfp4:
      return kernels_.mxfp4(exact_, search_, out);
    case Way::kNvfp4:
      return kernels_.nvfp4(exact_, search_, global_scale_, out);
    case Way::kFp8:  // by blocks
    case Way::kHalf:
      break;
  }
  double largest = 0;
  const RowError error = kernels_.half(exact_, target_.dtype == Dtype::kF16, &largest, out);
  if (largest >= EndOf(target_.dtype)) {
    const bool f16 = target_.dtype == Dtype::kF16;
    throw CheckpointError("a weight of " + Text("%.4g", largest) + " is beyond " +
                          (f16 ? "fp16, which ends at 65504; convert with --experts bf16"
                               : "bf16, which ends at 3.3895e+38; the file is damaged"));
  }
  return error;
}

// The smallest power of two with which the largest magnitude of a block fits into e4m3.
void MatrixConverter::ConvertFp8(int first, int count, int at) {
  std::vector<float> largest(CeilDiv(matrix_.cols, kBlock));
  for (int row = 0; row < count; ++row) {
    Expand(first + row);
    kernels_.largest(exact_, largest.data());
  }
  std::vector<int> exponents;
  std::vector<float> scales;
  for (const float found : largest) {
    // 448 is 0.875 · 2⁹: a mantissa above that needs the next power of two.
    int exponent;
    const float mantissa = std::frexp(std::clamp(found, kSmallest, kLargest), &exponent);
    exponent += (mantissa > 0.875f ? 1 : 0) - 9;
    exponents.push_back(exponent);
    scales.push_back(std::ldexp(1.0f, exponent));
  }
  for (int row = 0; row < count; ++row) {
    Expand(first + row);
    Add(kernels_.fp8(exact_, exponents.data(),
                     {codes_.data() + ptrdiff_t{at + row} * matrix_.cols, nullptr, matrix_.cols}));
  }
  for (int row = 0; row < count; row += kBlockScaleRows) {
    const ptrdiff_t place = ptrdiff_t{(at + row) / kBlockScaleRows} * scale_cols_;
    std::memcpy(scales_.data() + place * sizeof(float), scales.data(),
                scales.size() * sizeof(float));
  }
}

void MatrixConverter::Add(const RowError& error) {
  total_.squared_error += error.squared_error;
  total_.squared_norm += error.squared_norm;
  // A row of ordinary weights is far from it, so it is looked at only when its norm is not.
  if (way_ == Way::kHalf || error.squared_norm <= double{kLargest} * kLargest) return;
  std::vector<float> largest(CeilDiv(matrix_.cols, kBlock));
  kernels_.largest(exact_, largest.data());
  const float found = *std::max_element(largest.begin(), largest.end());
  if (found > kLargest) {
    throw CheckpointError("a weight of " + Text("%.4g", found) +
                          " is far beyond any model's; the file is damaged, download it again");
  }
}

}  // namespace lsg
