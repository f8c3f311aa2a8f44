#include "convert/finite.h"

#include <algorithm>
#include <string>

#include "base/align.h"
#include "base/error.h"

namespace lsg {
namespace {

// Whether no magnitude reaches `end`, the smallest pattern, sign apart, that is no finite number.
// Signed: the maximum of 16-bit numbers then is one instruction on every x86-64.
template <typename Bits, typename Signed>
bool AllBelow(const uint8_t* data, ptrdiff_t count, int end) {
  const auto* bits = reinterpret_cast<const Bits*>(data);
  constexpr auto kMagnitude = static_cast<Bits>(~Bits{0}) >> 1;
  Signed largest = 0;
  for (ptrdiff_t i = 0; i < count; ++i) {
    largest = std::max(largest, static_cast<Signed>(bits[i] & kMagnitude));
  }
  return static_cast<int>(largest) < end;
}

bool AllBelow16(const uint8_t* data, ptrdiff_t count, int end) {
  return AllBelow<uint16_t, int16_t>(data, count, end);
}
bool AllBelow8(const uint8_t* data, ptrdiff_t count, int end) {
  return AllBelow<uint8_t, uint8_t>(data, count, end);
}
bool AllBelow32(const void* data, ptrdiff_t count) {
  return AllBelow<uint32_t, int32_t>(static_cast<const uint8_t*>(data), count, 0x7f800000);
}

bool CodesFinite(const uint8_t* codes, ptrdiff_t count, Dtype dtype) {
  switch (dtype) {
    case Dtype::kBf16:
      return AllBelow16(codes, count, 0x7f80);
    case Dtype::kF16:
      return AllBelow16(codes, count, 0x7c00);
    case Dtype::kFp8E4m3:
      return AllBelow8(codes, count, 0x7f);
    case Dtype::kFp8E5m2:
      return AllBelow8(codes, count, 0x7c);
    case Dtype::kInt4:
    case Dtype::kInt8:
    case Dtype::kFp4E2m1:
      return true;
  }
  return true;
}

bool ScalesFinite(const uint8_t* scales, ptrdiff_t count, ScaleDtype dtype) {
  switch (dtype) {
    case ScaleDtype::kF32:
      return AllBelow32(scales, count);
    case ScaleDtype::kF16:
      return AllBelow16(scales, count, 0x7c00);
    case ScaleDtype::kBf16:
      return AllBelow16(scales, count, 0x7f80);
    case ScaleDtype::kFp8E4m3:
      return AllBelow8(scales, count, 0x7f);
    case ScaleDtype::kE8m0:
      return std::find(scales, scales + count, 0xff) == scales + count;
    case ScaleDtype::kNone:
      return true;
  }
  return true;
}

constexpr int kLargestInt4ZeroPoint = 16;

void Require(bool finite, const std::string& what) {
  if (!finite) {
    throw CheckpointError("NaN or infinity among its " + what +
                          "; the file is damaged, download it again");
  }
}

}  // namespace

void RequireFiniteRows(const MatrixView& matrix, const PanelFormat& format, int first, int count) {
  const int code_bytes = BitsOf(format.dtype) == 16 ? 2 : 1;
  Require(CodesFinite(matrix.codes + ptrdiff_t{first} * matrix.cols * code_bytes,
                      ptrdiff_t{count} * matrix.cols, format.dtype),
          "weights");
  if (matrix.scales == nullptr) return;
  const auto rows = static_cast<int>(format.scale_rows);
  const ptrdiff_t begin = first / rows, end = CeilDiv(first + count, rows);
  Require(ScalesFinite(matrix.scales + begin * matrix.scale_cols * BytesOf(format.scale_dtype),
                       (end - begin) * matrix.scale_cols, format.scale_dtype),
          "scales");
  if (matrix.zero_points == nullptr || format.dtype != Dtype::kInt4) return;
  const uint8_t* zero_points = matrix.zero_points + begin * matrix.scale_cols;
  const uint8_t* last = zero_points + (end - begin) * matrix.scale_cols;
  if (zero_points == last) return;
  // A stored 15 means 16 in GPTQ's first version.
  if (const int largest = *std::max_element(zero_points, last); largest > kLargestInt4ZeroPoint) {
    throw CheckpointError("a zero point of " + std::to_string(largest) +
                          " among its 4-bit codes, "
                          "where at most " +
                          std::to_string(kLargestInt4ZeroPoint) +
                          " is possible; the file is damaged, download it again");
  }
}

void RequireFiniteWhole(const MatrixView& matrix, const PanelFormat& format) {
  if (format.global_scale) Require(AllBelow32(matrix.global_scale, 1), "global scale");
  if (format.bias) Require(AllBelow32(matrix.bias, matrix.rows), "bias");
}

}  // namespace lsg
