// A layer file's geometry and formats, and every offset that follows from them. See FORMAT.md
// (normative).
//
// Invariant: a LayerSpec that exists is valid, and all its sizes fit 63 bits.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "layout/tile.h"

namespace lsg {

inline constexpr size_t kHeaderBytes = 4096;
inline constexpr uint64_t kPageBytes = 4096;
inline constexpr uint64_t kSectionAlignment = 64;
inline constexpr uint32_t kFormatVersion = 1;

enum class Dtype : uint32_t {
  kInt4 = 1,
  kInt8 = 2,
  kFp8E4m3 = 3,
  kFp8E5m2 = 4,
  kBf16 = 5,
  kF16 = 6,
  kFp4E2m1 = 7,
};
int BitsOf(Dtype dtype);
std::string_view NameOf(Dtype dtype);

enum class ScaleDtype : uint32_t {
  kNone = 0,
  kF32 = 1,
  kF16 = 2,
  kBf16 = 3,
  kFp8E4m3 = 4,
  kE8m0 = 5
};
int BytesOf(ScaleDtype dtype);
std::string_view NameOf(ScaleDtype dtype);

struct PanelFormat {
  Dtype dtype = Dtype::kBf16;
  ScaleDtype scale_dtype = ScaleDtype::kNone;
  uint32_t scale_rows = 1;  // outputs that share a scale
  uint32_t scale_k = 0;     // inputs that share a scale; 0: the whole row
  bool zero_point = false;
  bool bias = false;
  bool global_scale = false;
  bool k_permutation = false;  // inputs in an order of each expert's own

  bool operator==(const PanelFormat&) const = default;
};

// One panel's place inside a record: offsets in bytes from the record's start, sizes before
// alignment.
struct PanelSections {
  uint64_t codes = 0, scales = 0, zero_points = 0, bias = 0;
  uint64_t codes_bytes = 0, scales_bytes = 0, zero_points_bytes = 0, bias_bytes = 0;
  int blocks = 0;                // of 64 outputs
  int k_tiles = 0;               // of 32 inputs
  int scale_groups = 0;          // along K; 0 when there are none in the record
  int scales_per_block_row = 0;  // 64 / scale_rows
};

// Offsets in bytes from the expert table's start.
struct TableSections {
  uint64_t gate_up_global = 0, down_global = 0, down_bias = 0, down_scales = 0,
           down_zero_points = 0, input_order = 0;
  uint64_t end = 0;
};

struct LayerGeometry {
  uint32_t layer_index = 0;
  uint32_t num_experts = 0;
  uint32_t hidden_size = 0;
  uint32_t intermediate_size = 0;
  uint32_t unit_rows = 0;
  bool gated = true;
};

class LayerSpec {
 public:
  // unit_rows 0 picks the smallest of 32, 64, 128 that gives at most 48 units, or a larger one
  // where records are short: a layer then has enough units to share among threads, and records long
  // enough to stream. Throws FormatError when a field is out of range.
  LayerSpec(LayerGeometry geometry, PanelFormat gate_up, PanelFormat down);

  // Reads a header; throws FormatError, naming `where`, unless every byte is as FORMAT.md says.
  static LayerSpec Decode(std::span<const std::byte, kHeaderBytes> header, std::string_view where);
  std::array<std::byte, kHeaderBytes> Encode() const;

  const LayerGeometry& geometry() const { return geometry_; }
  const PanelFormat& gate_up() const { return gate_up_; }
  const PanelFormat& down() const { return down_; }
  const PanelSections& gate_up_sections() const { return gate_up_sections_; }
  const PanelSections& down_sections() const { return down_sections_; }
  const TableSections& table_sections() const { return table_; }

  uint32_t num_units() const { return num_units_; }
  uint32_t hidden_padded() const;  // ceil(H, 64)
  uint64_t record_bytes() const { return record_bytes_; }
  uint64_t unit_bytes() const { return unit_bytes_; }
  uint64_t table_offset() const { return kHeaderBytes + num_units_ * unit_bytes_; }
  uint64_t table_bytes() const { return table_bytes_; }
  uint64_t file_bytes() const { return table_offset() + table_bytes_; }
  uint64_t record_offset(uint32_t unit, uint32_t expert) const {
    return kHeaderBytes + unit * unit_bytes_ + expert * record_bytes_;
  }

 private:
  void Derive();

  LayerGeometry geometry_;
  PanelFormat gate_up_, down_;
  PanelSections gate_up_sections_, down_sections_;
  TableSections table_;
  uint32_t num_units_ = 0;
  uint64_t record_bytes_ = 0, unit_bytes_ = 0, table_bytes_ = 0;
};

}  // namespace lsg
