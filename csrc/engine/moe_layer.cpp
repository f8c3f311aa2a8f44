#include "engine/moe_layer.h"

#include <algorithm>
#include <utility>

#include "base/error.h"
#include "cpu/isa.h"
#include "format/expert_packer.h"

namespace lsg {
namespace {

PanelKernels KernelsFor(const Kernels& kernels, const PanelFormat& format, bool rounds,
                        const std::string& path) {
  try {
    PanelKernels panel = SelectPanelKernels(kernels, format);
    if (!rounds) {
      panel.int8 = nullptr;
      panel.int8_sweep = nullptr;
    } else if (panel.bf16 != nullptr) {
      panel.f32 = panel.bf16;
    }
    return panel;
  } catch (const FormatError& error) {
    throw FormatError(path + ": " + error.what());
  }
}

// One of a record's panels.
Panel PanelAt(const PanelFormat& format, const PanelSections& s, const std::byte* record) {
  const auto* base = reinterpret_cast<const uint8_t*>(record);
  return {.codes = base + s.codes,
          .scales = base + s.scales,
          .zero_points = format.zero_point ? base + s.zero_points : nullptr,
          .bias = s.bias_bytes > 0 ? reinterpret_cast<const float*>(base + s.bias) : nullptr,
          .blocks = s.blocks,
          .k_tiles = s.k_tiles,
          .scale_groups = s.scale_groups,
          .tiles_per_scale = s.scale_groups <= 1
                                 ? s.k_tiles
                                 : std::max(static_cast<int>(format.scale_k) / kTileK, 1),
          .scale_dtype = format.scale_dtype,
          .scale_rows = static_cast<int>(format.scale_rows),
          .global_scale = {1.0f, 1.0f},
          .whole = true,
          .next = {},
          .cached = false,
          .few_fetches = NeedsFewFetches()};
}

}  // namespace

MoeLayer::MoeLayer(LayerMemory memory, const Kernels& kernels, const ActivationSpec& activation,
                   bool rounds, int nodes, std::vector<int> node_units)
    : memory_(std::move(memory)),
      activation_(activation),
      gate_up_(KernelsFor(kernels, spec().gate_up(), rounds, memory_.path())),
      down_(KernelsFor(kernels, spec().down(), rounds, memory_.path())) {
  const std::vector<NodeUnits>& ranges = memory_.units();
  if (node_units.empty()) {
    const bool by_node = static_cast<int>(ranges.size()) == nodes;
    for (int node = 0; node < nodes; ++node) {
      node_units.push_back(by_node ? ranges[node].end - ranges[node].begin
                                   : units() / nodes + (node < units() % nodes));
    }
  }
  int begin = unit_begin();
  for (int count : node_units) {
    const UnitRange mine{begin, begin + std::max(count, 0)};
    const int first_piece = static_cast<int>(pieces_.size());
    AppendPieces(unit_range(), mine, pieces_);
    nodes_.push_back({mine, first_piece, static_cast<int>(pieces_.size())});
    begin = mine.end;
  }
  if (begin != unit_range().end || static_cast<int>(nodes_.size()) != nodes) {
    throw Error(memory_.path() + ": " + std::to_string(nodes_.size()) + " nodes take " +
                std::to_string(begin - unit_begin()) + " units, but " + std::to_string(nodes) +
                " nodes are to take " + std::to_string(units()));
  }
  if (!spec().gate_up().k_permutation) return;
  // A layer that is copied has no table before it is loaded; its file has.
  const uint64_t orders = memory_.parts().back().offset + spec().table_sections().input_order;
  const auto* order = reinterpret_cast<const uint32_t*>(memory_.file_data(orders));
  for (int expert = 0; expert < num_experts(); ++expert, order += hidden_size()) {
    CheckInputOrder(order, hidden_size(), memory_.path() + ": expert " + std::to_string(expert));
  }
}

Panel MoeLayer::GateUpPanel(int unit, int expert) const {
  const PanelSections& s = spec().gate_up_sections();
  Panel panel = PanelAt(spec().gate_up(), s, memory_.record(unit, expert));
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
  Panel panel = PanelAt(format, spec().down_sections(), memory_.record(unit, expert));
  const TableSections& table = spec().table_sections();
  if (format.global_scale) {
    panel.global_scale[0] = panel.global_scale[1] = TableAt<float>(table.down_global)[expert];
  }
  if (format.scale_dtype != ScaleDtype::kNone && format.scale_k == 0) {
    // One scale a row does not belong to a slice of I, so it lies in the table.
    const int scale_rows = static_cast<int>(format.scale_rows);
    const int64_t first = int64_t{expert} * (out_stride() / scale_rows);
    panel.scales = TableAt<uint8_t>(table.down_scales) + first * BytesOf(format.scale_dtype);
    if (format.zero_point) panel.zero_points = TableAt<uint8_t>(table.down_zero_points) + first;
    panel.scale_groups = 1;
    panel.tiles_per_scale = panel.k_tiles;
  }
  return panel.Blocks(block_begin, block_end, BitsOf(format.dtype));
}

const float* MoeLayer::DownBias(int expert) const {
  if (!spec().down().bias || unit_begin() != 0) return nullptr;
  return TableAt<float>(spec().table_sections().down_bias) + int64_t{expert} * out_stride();
}

const uint32_t* MoeLayer::InputOrder(int expert) const {
  if (!spec().gate_up().k_permutation) return nullptr;
  return TableAt<uint32_t>(spec().table_sections().input_order) + int64_t{expert} * hidden_size();
}

}  // namespace lsg
