#include "engine/moe_layer.h"

#include <algorithm>

#include "base/error.h"

namespace lsg {
namespace {

PanelKernels KernelsFor(const Kernels& kernels, const PanelFormat& format, bool int8,
                        const std::string& path) {
  try {
    PanelKernels panel = SelectPanelKernels(kernels, format);
    if (!int8) panel.int8 = nullptr;
    return panel;
  } catch (const FormatError& error) {
    throw FormatError(path + ": " + error.what());
  }
}

// Blocks from `block_begin` of one of a record's panels.
Panel PanelAt(const PanelFormat& format, const PanelSections& s, const std::byte* record,
              int block_begin, int block_end) {
  const auto* base = reinterpret_cast<const uint8_t*>(record);
  const int64_t block_codes = int64_t{s.k_tiles} * kTilesPerBlock * TileBytes(BitsOf(format.dtype));
  const int64_t first_scale = int64_t{block_begin} * s.scale_groups * s.scales_per_block_row;
  const auto* bias = reinterpret_cast<const float*>(base + s.bias);
  return {.codes = base + s.codes + block_begin * block_codes,
          .scales = base + s.scales + first_scale * BytesOf(format.scale_dtype),
          .zero_points = format.zero_point ? base + s.zero_points + first_scale : nullptr,
          .bias = s.bias_bytes > 0 ? bias + block_begin * kBlockN : nullptr,
          .blocks = block_end - block_begin,
          .k_tiles = s.k_tiles,
          .scale_groups = s.scale_groups,
          .tiles_per_scale = s.scale_groups <= 1
                                 ? s.k_tiles
                                 : std::max(static_cast<int>(format.scale_k) / kTileK, 1),
          .scale_dtype = format.scale_dtype,
          .scale_rows = static_cast<int>(format.scale_rows),
          .global_scale = {1.0f, 1.0f}};
}

}  // namespace

MoeLayer::MoeLayer(const std::string& path, const Kernels& kernels,
                   const ActivationSpec& activation, bool int8, int unit_begin, int unit_end)
    : file_(path),
      activation_(activation),
      gate_up_(KernelsFor(kernels, spec().gate_up(), int8, path)),
      down_(KernelsFor(kernels, spec().down(), int8, path)),
      unit_begin_(unit_begin),
      unit_end_(unit_end < 0 ? static_cast<int>(spec().num_units()) : unit_end) {
  const int units_in_file = static_cast<int>(spec().num_units());
  if (unit_begin_ < 0 || unit_begin_ > unit_end_ || unit_end_ > units_in_file) {
    throw Error(path + ": units " + std::to_string(unit_begin_) + " to " +
                std::to_string(unit_end_) + " asked for, but it has " +
                std::to_string(units_in_file));
  }
  file_.Populate(unit_begin_, unit_end_);
}

Panel MoeLayer::GateUpPanel(int unit, int expert) const {
  const PanelSections& s = spec().gate_up_sections();
  Panel panel = PanelAt(spec().gate_up(), s, file_.record(unit, expert).data(), 0, s.blocks);
  if (spec().gate_up().global_scale) {
    const float* global = TableAt<float>(spec().table_sections().gate_up_global) + 2 * expert;
    // A block of a gated panel is gate's outputs, then up's; without gate all are up's.
    panel.global_scale[0] = gated() ? global[0] : global[1];
    panel.global_scale[1] = global[1];
  }
  return panel;
}

Panel MoeLayer::DownPanel(int unit, int expert, int block_begin, int block_end) const {
  const PanelFormat& format = spec().down();
  Panel panel = PanelAt(format, spec().down_sections(), file_.record(unit, expert).data(),
                        block_begin, block_end);
  const TableSections& table = spec().table_sections();
  if (format.global_scale) {
    panel.global_scale[0] = panel.global_scale[1] = TableAt<float>(table.down_global)[expert];
  }
  if (format.scale_dtype != ScaleDtype::kNone && format.scale_k == 0) {
    // One scale a row does not belong to a slice of I, so it lies in the table.
    const int scale_rows = static_cast<int>(format.scale_rows);
    const int64_t first =
        int64_t{expert} * (out_stride() / scale_rows) + block_begin * (kBlockN / scale_rows);
    panel.scales = TableAt<uint8_t>(table.down_scales) + first * BytesOf(format.scale_dtype);
    if (format.zero_point) panel.zero_points = TableAt<uint8_t>(table.down_zero_points) + first;
    panel.scale_groups = 1;
    panel.tiles_per_scale = panel.k_tiles;
  }
  return panel;
}

const float* MoeLayer::DownBias(int expert) const {
  if (!spec().down().bias || unit_begin_ != 0) return nullptr;
  return TableAt<float>(spec().table_sections().down_bias) + int64_t{expert} * out_stride();
}

}  // namespace lsg
