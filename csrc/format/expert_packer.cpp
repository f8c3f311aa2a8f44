#include "format/expert_packer.h"

#include <algorithm>
#include <cstring>

#include "base/align.h"
#include "base/error.h"

namespace lsg {
namespace {

// Packing and unpacking walk the same tiles and scales; `kPack` says which way the bytes go.
template <bool kPack>
struct Mover {
  static void Tile(int bits, const MatrixView& m, int row, int col, uint8_t* tile) {
    const int n_valid = std::clamp(m.rows - row, 0, kTileN);
    const int k_valid = std::clamp(m.cols - col, 0, kTileK);
    const ptrdiff_t at =
        n_valid > 0 && k_valid > 0 ? ptrdiff_t{row - m.first_row} * m.cols + col : 0;
    uint8_t* codes = m.codes + at;
    if (bits == 16) {
      auto* wide = reinterpret_cast<uint16_t*>(m.codes) + at;
      if constexpr (kPack) {
        PackTile16(wide, m.cols, n_valid, k_valid, tile);
      } else {
        UnpackTile16(tile, n_valid, k_valid, wide, m.cols);
      }
    } else if (bits == 8) {
      if constexpr (kPack) {
        PackTile8(codes, m.cols, n_valid, k_valid, tile);
      } else {
        UnpackTile8(tile, n_valid, k_valid, codes, m.cols);
      }
    } else {
      if constexpr (kPack) {
        PackTile4(codes, m.cols, n_valid, k_valid, tile);
      } else {
        UnpackTile4(tile, n_valid, k_valid, codes, m.cols);
      }
    }
  }

  template <size_t kBytes>
  static void Copy(uint8_t* in_matrix, uint8_t* in_record) {
    if constexpr (kPack) {
      std::memcpy(in_record, in_matrix, kBytes);
    } else {
      std::memcpy(in_matrix, in_record, kBytes);
    }
  }

  // One scale. There are too many for a call of memcpy each.
  static void Scale(int bytes, uint8_t* in_matrix, uint8_t* in_record) {
    if (bytes == 1) return Copy<1>(in_matrix, in_record);
    if (bytes == 2) return Copy<2>(in_matrix, in_record);
    Copy<4>(in_matrix, in_record);
  }
};

// `units` outputs from `row` of matrix m, as column `slot` of a block's scales.
template <bool kPack>
void MoveScale(const PanelFormat& format, const MatrixView& m, int row, int group_col,
               uint8_t* scale, uint8_t* zero_point) {
  const int scale_row = (row - m.first_row) / static_cast<int>(format.scale_rows);
  if (row >= m.rows || group_col >= m.scale_cols) return;
  const ptrdiff_t at = ptrdiff_t{scale_row} * m.scale_cols + group_col;
  const int bytes = BytesOf(format.scale_dtype);
  Mover<kPack>::Scale(bytes, m.scales + at * bytes, scale);
  if (format.zero_point) Mover<kPack>::template Copy<1>(m.zero_points + at, zero_point);
}

template <bool kPack>
void MoveGateUp(const LayerSpec& spec, const ExpertView& expert, int unit, uint8_t* record) {
  const PanelFormat& format = spec.gate_up();
  const PanelSections& s = spec.gate_up_sections();
  const bool gated = spec.geometry().gated;
  const int bits = BitsOf(format.dtype);
  const size_t tile_bytes = TileBytes(bits);
  const int scale_bytes = BytesOf(format.scale_dtype);
  const int rows_per_block = gated ? kBlockN / 2 : kBlockN;
  uint8_t* tile = record + s.codes;
  for (int block = 0; block < s.blocks; ++block) {
    const int first = unit * static_cast<int>(spec.geometry().unit_rows) + block * rows_per_block;
    // Output n of a block: gate's 32 rows, then up's (or 64 of up).
    const auto source = [&](int n) {
      return gated ? std::pair<const MatrixView&, int>(n < 32 ? expert.gate : expert.up,
                                                       first + n % 32)
                   : std::pair<const MatrixView&, int>(expert.up, first + n);
    };
    for (int k_tile = 0; k_tile < s.k_tiles; ++k_tile) {
      for (int t = 0; t < kTilesPerBlock; ++t, tile += tile_bytes) {
        const auto [matrix, row] = source(t * kTileN);
        Mover<kPack>::Tile(bits, matrix, row, k_tile * kTileK, tile);
      }
    }
    for (int group = 0; group < s.scale_groups; ++group) {
      for (int i = 0; i < s.scales_per_block_row; ++i) {
        const auto [matrix, row] = source(i * static_cast<int>(format.scale_rows));
        const ptrdiff_t at = ptrdiff_t{block * s.scale_groups + group} * s.scales_per_block_row + i;
        MoveScale<kPack>(format, matrix, row, group, record + s.scales + at * scale_bytes,
                         record + s.zero_points + at);
      }
    }
    if (format.bias) {
      for (int n = 0; n < kBlockN; ++n) {
        const auto [matrix, row] = source(n);
        if (row >= matrix.rows) continue;
        Mover<kPack>::template Copy<sizeof(float)>(
            reinterpret_cast<uint8_t*>(matrix.bias + row),
            record + s.bias + (block * kBlockN + n) * sizeof(float));
      }
    }
  }
}

template <bool kPack>
void MoveDown(const LayerSpec& spec, const ExpertView& expert, int unit, int first_block,
              int blocks, uint8_t* record) {
  const PanelFormat& format = spec.down();
  const PanelSections& s = spec.down_sections();
  const int bits = BitsOf(format.dtype);
  const size_t tile_bytes = TileBytes(bits);
  const int scale_bytes = BytesOf(format.scale_dtype);
  const int first = unit * static_cast<int>(spec.geometry().unit_rows);
  uint8_t* tile = record + s.codes + tile_bytes * kTilesPerBlock * s.k_tiles * first_block;
  for (int block = first_block; block < first_block + blocks; ++block) {
    for (int k_tile = 0; k_tile < s.k_tiles; ++k_tile) {
      for (int t = 0; t < kTilesPerBlock; ++t, tile += tile_bytes) {
        Mover<kPack>::Tile(bits, expert.down, block * kBlockN + t * kTileN, first + k_tile * kTileK,
                           tile);
      }
    }
    if (s.scale_groups == 0) continue;
    const int group_inputs = s.k_tiles * kTileK / s.scale_groups;
    for (int group = 0; group < s.scale_groups; ++group) {
      const int source_group = (first + group * group_inputs) / static_cast<int>(format.scale_k);
      for (int i = 0; i < s.scales_per_block_row; ++i) {
        const int row = block * kBlockN + i * static_cast<int>(format.scale_rows);
        const ptrdiff_t at = ptrdiff_t{block * s.scale_groups + group} * s.scales_per_block_row + i;
        MoveScale<kPack>(format, expert.down, row, source_group,
                         record + s.scales + at * scale_bytes, record + s.zero_points + at);
      }
    }
  }
}

}  // namespace

void CheckInputOrder(const uint32_t* order, int inputs, const std::string& where) {
  std::vector<bool> seen(inputs);
  for (int k = 0; k < inputs; ++k) {
    if (order[k] >= static_cast<uint32_t>(inputs) || seen[order[k]]) {
      throw FormatError(where + ": its input order is no permutation of " + std::to_string(inputs) +
                        " inputs (" + std::to_string(order[k]) + " at " + std::to_string(k) +
                        "); the file is damaged, convert the model again");
    }
    seen[order[k]] = true;
  }
}

int SourceScaleCols(const PanelFormat& format, int cols) {
  if (format.scale_dtype == ScaleDtype::kNone) return 0;
  return format.scale_k == 0 ? 1 : CeilDiv(cols, static_cast<int>(format.scale_k));
}

std::vector<TableEntry> TableEntries(const LayerSpec& spec, uint32_t expert_index,
                                     const ExpertView& expert) {
  const TableSections& table = spec.table_sections();
  const uint64_t e = expert_index;
  std::vector<TableEntry> entries;
  if (spec.gate_up().global_scale) {
    const uint64_t pair = table.gate_up_global + e * 2 * sizeof(float);
    if (spec.geometry().gated) entries.push_back({pair, expert.gate.global_scale, sizeof(float)});
    entries.push_back({pair + sizeof(float), expert.up.global_scale, sizeof(float)});
  }
  const PanelFormat& down = spec.down();
  if (down.global_scale) {
    entries.push_back(
        {table.down_global + e * sizeof(float), expert.down.global_scale, sizeof(float)});
  }
  if (down.bias) {
    entries.push_back({table.down_bias + e * spec.hidden_padded() * sizeof(float), expert.down.bias,
                       spec.geometry().hidden_size * sizeof(float)});
  }
  if (down.scale_dtype != ScaleDtype::kNone && down.scale_k == 0) {
    const uint64_t first = e * (spec.hidden_padded() / down.scale_rows);
    const uint64_t count = (spec.geometry().hidden_size + down.scale_rows - 1) / down.scale_rows;
    const auto bytes = static_cast<uint64_t>(BytesOf(down.scale_dtype));
    entries.push_back({table.down_scales + first * bytes, expert.down.scales, count * bytes});
    if (down.zero_point)
      entries.push_back({table.down_zero_points + first, expert.down.zero_points, count});
  }
  if (spec.gate_up().k_permutation) {
    const uint64_t bytes = spec.geometry().hidden_size * sizeof(uint32_t);
    entries.push_back({table.input_order + e * bytes, expert.up.input_order, bytes});
  }
  return entries;
}

void ClearRecord(const LayerSpec& spec, std::byte* record) {
  // Tiles write every byte of the codes; the smaller sections only where there is a source.
  const PanelSections& gu = spec.gate_up_sections();
  const PanelSections& d = spec.down_sections();
  std::memset(record + gu.codes + gu.codes_bytes, 0, d.codes - gu.codes - gu.codes_bytes);
  std::memset(record + d.codes + d.codes_bytes, 0, spec.record_bytes() - d.codes - d.codes_bytes);
}

void PackGateUp(const LayerSpec& spec, const ExpertView& expert, int unit, std::byte* record) {
  MoveGateUp<true>(spec, expert, unit, reinterpret_cast<uint8_t*>(record));
}

void PackDown(const LayerSpec& spec, const ExpertView& expert, int unit, int first_block,
              int blocks, std::byte* record) {
  MoveDown<true>(spec, expert, unit, first_block, blocks, reinterpret_cast<uint8_t*>(record));
}

void PackExpert(const LayerSpec& spec, const ExpertView& expert, std::byte* records) {
  for (uint32_t u = 0; u < spec.num_units(); ++u) {
    const auto unit = static_cast<int>(u);
    std::byte* record = records + u * spec.record_bytes();
    ClearRecord(spec, record);
    PackGateUp(spec, expert, unit, record);
    PackDown(spec, expert, unit, 0, spec.down_sections().blocks, record);
  }
}

void UnpackExpert(const LayerSpec& spec, const std::byte* records, const ExpertView& expert) {
  for (uint32_t unit = 0; unit < spec.num_units(); ++unit) {
    auto* record = const_cast<uint8_t*>(reinterpret_cast<const uint8_t*>(records)) +
                   unit * spec.record_bytes();
    MoveGateUp<false>(spec, expert, static_cast<int>(unit), record);
    MoveDown<false>(spec, expert, static_cast<int>(unit), 0, spec.down_sections().blocks, record);
  }
}

}  // namespace lsg
