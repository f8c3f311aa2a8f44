#include <cstring>
#include <string>

#include "base/error.h"
#include "kernels/kernels.h"
#include "layout/tile.h"

namespace lsg {

namespace {

template <int kBytes>
void CopyCodes(const uint8_t* from, int64_t from_step, uint8_t* to, int64_t to_step, int groups) {
  for (int group = 0; group < groups; ++group, from += from_step, to += to_step) {
    std::memcpy(to, from, kBytes);
  }
}

}  // namespace

void SweepKernels::CopyRow(const PackedRows& from, int from_row, const PackedRows& to, int to_row,
                           int k_tiles) const {
  const int groups = Groups(k_tiles);
  // Copies of a known size are a few instructions, others a call.
  const auto copy = code_bytes == kTileK       ? &CopyCodes<kTileK>
                    : code_bytes == 2 * kTileK ? &CopyCodes<2 * kTileK>
                                               : &CopyCodes<4 * kTileK>;
  copy(from.codes + int64_t{from_row} * code_bytes, int64_t{from.rows} * code_bytes,
       to.codes + int64_t{to_row} * code_bytes, int64_t{to.rows} * code_bytes, groups);
  if (meta_bytes == 0) return;
  for (int64_t group = 0; group < groups; ++group) {
    std::memcpy(to.metas + (group * to.rows + to_row) * meta_bytes,
                from.metas + (group * from.rows + from_row) * meta_bytes, meta_bytes);
  }
}

Panel Panel::Blocks(int begin, int end, int bits) const {
  const int64_t block_codes = int64_t{k_tiles} * kTilesPerBlock * TileBytes(bits);
  const int64_t first_scale = int64_t{begin} * scale_groups * (kBlockN / scale_rows);
  Panel part = *this;
  if (end - begin == blocks) return part;
  part.codes += begin * block_codes;
  part.scales += first_scale * BytesOf(scale_dtype);
  if (zero_points != nullptr) part.zero_points += first_scale;
  if (bias != nullptr) part.bias += int64_t{begin} * kBlockN;
  part.blocks = end - begin;
  part.whole = false;
  part.cached = false;
  if (end < blocks) part.next = {};
  return part;
}

const Kernels& KernelsOf(Isa isa) {
  switch (isa) {
    case Isa::kScalar:
      return scalar::Table();
    case Isa::kAvx2:
      return avx2::Table();
    case Isa::kAvx512:
      return avx512::Table();
    case Isa::kVnni:
      return vnni::Table();
    case Isa::kBf16:
      return bf16::Table();
    case Isa::kAmx:
      return amx::Table();
  }
  throw UnsupportedIsaError("no kernels for ISA level " + std::to_string(static_cast<int>(isa)));
}

const PanelKernels& SelectPanelKernels(const Kernels& kernels, const PanelFormat& format) {
  const bool scaled = format.scale_dtype != ScaleDtype::kNone;
  const bool halves = format.scale_k == 16;
  switch (format.dtype) {
    case Dtype::kInt4:
      if (scaled) return halves ? kernels.int4_halves : kernels.int4;
      break;
    case Dtype::kFp4E2m1:
      if (scaled && !format.zero_point) return halves ? kernels.fp4_e2m1_halves : kernels.fp4_e2m1;
      break;
    case Dtype::kInt8:
      if (scaled && !halves) return format.zero_point ? kernels.uint8 : kernels.int8;
      break;
    case Dtype::kFp8E4m3:
      if (scaled && !halves && !format.zero_point) return kernels.fp8_e4m3;
      break;
    case Dtype::kFp8E5m2:
      if (scaled && !halves && !format.zero_point) return kernels.fp8_e5m2;
      break;
    case Dtype::kBf16:
      if (!scaled && !format.global_scale) return kernels.bf16;
      break;
    case Dtype::kF16:
      if (!scaled && !format.global_scale) return kernels.f16;
      break;
  }
  throw FormatError("the engine has no kernel for " + std::string(NameOf(format.dtype)) + " with " +
                    std::string(NameOf(format.scale_dtype)) + " scales, scale_k " +
                    std::to_string(format.scale_k) + (format.zero_point ? " and zero points" : "") +
                    (format.global_scale ? " and global scales" : ""));
}

}  // namespace lsg
