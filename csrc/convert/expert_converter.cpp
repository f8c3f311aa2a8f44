#include "convert/expert_converter.h"

#include <algorithm>
#include <string>
#include <vector>

#include "base/crc32c.h"
#include "base/error.h"

namespace lsg {
namespace {

MatrixView RowsOf(MatrixConverter& converter, int first, int count, const char* name) {
  try {
    return converter.Rows(first, count);
  } catch (const CheckpointError& error) {
    throw CheckpointError(std::string(name) + "_proj: " + error.what());
  }
}

}  // namespace

uint32_t ConvertExpert(const LayerSpec& spec, const ExpertConverters& expert, std::byte* records,
                       ptrdiff_t stride) {
  const LayerGeometry& geometry = spec.geometry();
  const auto units = static_cast<int>(spec.num_units());
  const auto unit_rows = static_cast<int>(geometry.unit_rows);
  for (int unit = 0; unit < units; ++unit) ClearRecord(spec, records + unit * stride);

  // Of what a record has so far, in its order: summed while it is still in the cache.
  std::vector<uint32_t> crcs(units);
  const PanelSections& down = spec.down_sections();

  // Both are powers of two.
  const int input_band = std::max(unit_rows, expert.up->row_block());
  for (int first = 0; first < static_cast<int>(geometry.intermediate_size); first += input_band) {
    ExpertView view;
    if (expert.gate) view.gate = RowsOf(*expert.gate, first, input_band, "gate");
    view.up = RowsOf(*expert.up, first, input_band, "up");
    for (int unit = first / unit_rows; unit < std::min(units, (first + input_band) / unit_rows);
         ++unit) {
      PackGateUp(spec, view, unit, records + unit * stride);
      crcs[unit] = Crc32c(records + unit * stride, down.codes);
    }
  }

  const size_t block_bytes = down.codes_bytes / down.blocks;
  const int down_band = std::max(kBlockN, expert.down->row_block());
  for (int first = 0; first < static_cast<int>(geometry.hidden_size); first += down_band) {
    ExpertView view;
    view.down = RowsOf(*expert.down, first, down_band, "down");
    const int block = first / kBlockN;
    const int count = std::min(down_band / kBlockN, down.blocks - block);
    for (int unit = 0; unit < units; ++unit) {
      PackDown(spec, view, unit, block, count, records + unit * stride);
      const std::byte* codes = records + unit * stride + down.codes + block_bytes * block;
      crcs[unit] = Crc32c(codes, block_bytes * count, crcs[unit]);
    }
  }

  uint32_t crc = 0;
  for (int unit = 0; unit < units; ++unit) {
    const uint64_t rest = down.codes + down.codes_bytes;
    const uint32_t whole =
        Crc32c(records + unit * stride + rest, spec.record_bytes() - rest, crcs[unit]);
    crc = Crc32cOfBoth(crc, whole, spec.record_bytes());
  }
  return crc;
}

}  // namespace lsg
