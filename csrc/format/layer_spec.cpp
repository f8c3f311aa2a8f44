#include "format/layer_spec.h"

#include <bit>
#include <cstring>
#include <string>

#include "base/align.h"
#include "base/crc32c.h"
#include "base/error.h"

namespace lsg {
namespace {

static_assert(std::endian::native == std::endian::little, "the engine runs on x86-64 only");

constexpr char kMagic[8] = {'L', 'S', 'G', 'B', 'L', 'O', 'B', '\0'};
constexpr uint32_t kEndianTag = 0x01020304;
constexpr uint32_t kLayoutTile16x32 = 1;
constexpr uint32_t kLayoutVersion = 1;
constexpr uint32_t kFlagGated = 1;
constexpr uint32_t kMaxExperts = 65536;
constexpr uint32_t kMaxSize = 1u << 20;
constexpr uint32_t kMaxUnits = 48;
// A worker reads a record from front to back, then one elsewhere. Measured with 128 experts of 4
// bits, H 2048, I 768: two Zen 4 cores read 7 % more in records of 221 KB than of 111, 16 Xeon
// cores 2 to 9.
constexpr uint64_t kShortRecord = 160 << 10;
// Records are made longer while at least so many units remain, a multiple of four as before: NUMA
// nodes and tensor-parallel ranks share them.
constexpr uint32_t kManyUnits = 16;

struct RawPanelFormat {
  uint32_t dtype, scale_dtype, scale_rows, scale_k, zero_point, bias, global_scale, k_permutation;
};

struct RawHeader {
  char magic[8];
  uint32_t version, endian_tag, header_bytes, layout_id, layout_version, flags;
  uint32_t layer_index, num_experts, hidden_size, intermediate_size, unit_rows, num_units;
  RawPanelFormat gate_up, down;
  uint64_t record_bytes, unit_bytes, table_offset, table_bytes, file_bytes;
  uint8_t zero[4092 - 160];
  uint32_t header_crc32c;
};
static_assert(sizeof(RawHeader) == kHeaderBytes);
static_assert(offsetof(RawHeader, gate_up) == 56 && offsetof(RawHeader, record_bytes) == 120 &&
              offsetof(RawHeader, zero) == 160);

void Require(bool holds, const std::string& sentence) {
  if (!holds) throw FormatError(sentence);
}

void CheckPanel(const PanelFormat& format, const std::string& name) {
  const auto dtype = static_cast<uint32_t>(format.dtype);
  Require(dtype >= 1 && dtype <= 7, name + ": unknown dtype " + std::to_string(dtype));
  const auto scale_dtype = static_cast<uint32_t>(format.scale_dtype);
  Require(scale_dtype <= 5, name + ": unknown scale dtype " + std::to_string(scale_dtype));
  Require(format.scale_rows == 1 || format.scale_rows == 32,
          name + ": scale_rows must be 1 or 32, found " + std::to_string(format.scale_rows));
  Require(format.scale_k == 0 || (format.scale_k >= 16 && std::has_single_bit(format.scale_k) &&
                                  format.scale_k <= kMaxSize),
          name + ": scale_k must be 0 or a power of two from 16, found " +
              std::to_string(format.scale_k));
  if (format.scale_dtype == ScaleDtype::kNone) {
    Require(format.scale_rows == 1 && format.scale_k == 0 && !format.zero_point,
            name + ": without scales there are no scale groups and no zero points");
  }
}

// Sizes of one panel; offsets are filled in by the caller's running position.
PanelSections MeasurePanel(const PanelFormat& format, int blocks, int k_tiles,
                           bool row_scales_in_record) {
  PanelSections s;
  s.blocks = blocks;
  s.k_tiles = k_tiles;
  s.codes_bytes = uint64_t(blocks) * k_tiles * kTilesPerBlock * TileBytes(BitsOf(format.dtype));
  if (format.scale_dtype != ScaleDtype::kNone && (format.scale_k != 0 || row_scales_in_record)) {
    const int k = k_tiles * kTileK;
    const bool whole_row = format.scale_k == 0 || format.scale_k >= static_cast<uint32_t>(k);
    s.scale_groups = whole_row ? 1 : CeilDiv(k, static_cast<int>(format.scale_k));
    s.scales_per_block_row = kBlockN / static_cast<int>(format.scale_rows);
    const uint64_t scales = uint64_t(blocks) * s.scale_groups * s.scales_per_block_row;
    s.scales_bytes = scales * BytesOf(format.scale_dtype);
    s.zero_points_bytes = format.zero_point ? scales : 0;
  }
  return s;
}

uint64_t Place(uint64_t& position, uint64_t bytes) {
  const uint64_t at = position;
  position += AlignUp(bytes, kSectionAlignment);
  return at;
}

RawPanelFormat ToRaw(const PanelFormat& f) {
  return {static_cast<uint32_t>(f.dtype),
          static_cast<uint32_t>(f.scale_dtype),
          f.scale_rows,
          f.scale_k,
          f.zero_point,
          f.bias,
          f.global_scale,
          f.k_permutation};
}

PanelFormat FromRaw(const RawPanelFormat& raw, const std::string& where) {
  Require(raw.zero_point <= 1 && raw.bias <= 1 && raw.global_scale <= 1 && raw.k_permutation <= 1,
          where + ": a zero_point, bias, global_scale or k_permutation flag is neither 0 nor 1");
  return {static_cast<Dtype>(raw.dtype),
          static_cast<ScaleDtype>(raw.scale_dtype),
          raw.scale_rows,
          raw.scale_k,
          raw.zero_point == 1,
          raw.bias == 1,
          raw.global_scale == 1,
          raw.k_permutation == 1};
}

}  // namespace

int BitsOf(Dtype dtype) {
  switch (dtype) {
    case Dtype::kInt4:
    case Dtype::kFp4E2m1:
      return 4;
    case Dtype::kInt8:
    case Dtype::kFp8E4m3:
    case Dtype::kFp8E5m2:
      return 8;
    case Dtype::kBf16:
    case Dtype::kF16:
      return 16;
  }
  throw FormatError("unknown dtype " + std::to_string(static_cast<uint32_t>(dtype)));
}

std::string_view NameOf(Dtype dtype) {
  constexpr std::string_view kNames[] = {"?",        "int4", "int8", "fp8_e4m3",
                                         "fp8_e5m2", "bf16", "f16",  "fp4_e2m1"};
  return kNames[static_cast<uint32_t>(dtype)];
}

int BytesOf(ScaleDtype dtype) {
  constexpr int kBytes[] = {0, 4, 2, 2, 1, 1};
  return kBytes[static_cast<uint32_t>(dtype)];
}

std::string_view NameOf(ScaleDtype dtype) {
  constexpr std::string_view kNames[] = {"none", "f32", "f16", "bf16", "fp8_e4m3", "e8m0"};
  return kNames[static_cast<uint32_t>(dtype)];
}

LayerSpec::LayerSpec(LayerGeometry geometry, PanelFormat gate_up, PanelFormat down)
    : geometry_(geometry), gate_up_(gate_up), down_(down) {
  LayerGeometry& g = geometry_;
  Require(g.num_experts >= 1 && g.num_experts <= kMaxExperts,
          "num_experts must be 1 to 65536, found " + std::to_string(g.num_experts));
  Require(g.hidden_size >= 1 && g.hidden_size <= kMaxSize,
          "hidden_size must be 1 to 2^20, found " + std::to_string(g.hidden_size));
  Require(g.intermediate_size >= 1 && g.intermediate_size <= kMaxSize,
          "intermediate_size must be 1 to 2^20, found " + std::to_string(g.intermediate_size));
  const bool choose = g.unit_rows == 0;
  if (choose) {
    g.unit_rows = g.gated ? 32 : 64;
    while (g.unit_rows < 128 && g.intermediate_size > g.unit_rows * kMaxUnits) g.unit_rows *= 2;
  }
  const bool known_unit = g.unit_rows == 32 || g.unit_rows == 64 || g.unit_rows == 128;
  Require(known_unit && (g.gated || g.unit_rows >= 64),
          "unit_rows must be 32, 64 or 128 (64 or 128 without gate), found " +
              std::to_string(g.unit_rows));
  CheckPanel(gate_up_, "gate_up");
  CheckPanel(down_, "down");
  Require(
      !down_.k_permutation,
      "down: k_permutation must be 0, since the order of its inputs is the order of the neurons");
  Derive();
  while (choose && g.unit_rows < 128 && record_bytes_ < kShortRecord && num_units_ >= kManyUnits &&
         num_units_ % 8 == 0) {
    g.unit_rows *= 2;
    Derive();
  }
}

uint32_t LayerSpec::hidden_padded() const {
  return static_cast<uint32_t>(AlignUp(geometry_.hidden_size, kBlockN));
}

void LayerSpec::Derive() {
  const LayerGeometry& g = geometry_;
  const int unit_rows = static_cast<int>(g.unit_rows);
  num_units_ = (g.intermediate_size + g.unit_rows - 1) / g.unit_rows;
  gate_up_sections_ = MeasurePanel(gate_up_, g.gated ? unit_rows / 32 : unit_rows / kBlockN,
                                   CeilDiv(static_cast<int>(g.hidden_size), kTileK), true);
  down_sections_ =
      MeasurePanel(down_, static_cast<int>(hidden_padded()) / kBlockN, unit_rows / kTileK, false);

  // With the limits above a record stays under 2^37 bytes and a file under 2^58: no sum here can
  // overflow.
  uint64_t position = 0;
  PanelSections& gu = gate_up_sections_;
  gu.bias_bytes = gate_up_.bias ? uint64_t(gu.blocks) * kBlockN * sizeof(float) : 0;
  gu.codes = Place(position, gu.codes_bytes);
  gu.scales = Place(position, gu.scales_bytes);
  gu.zero_points = Place(position, gu.zero_points_bytes);
  gu.bias = Place(position, gu.bias_bytes);
  PanelSections& d = down_sections_;
  d.codes = Place(position, d.codes_bytes);
  d.scales = Place(position, d.scales_bytes);
  d.zero_points = Place(position, d.zero_points_bytes);
  record_bytes_ = position;
  unit_bytes_ = AlignUp(g.num_experts * record_bytes_, kPageBytes);

  const uint64_t experts = g.num_experts;
  const uint64_t row_scales = down_.scale_dtype != ScaleDtype::kNone && down_.scale_k == 0
                                  ? experts * (hidden_padded() / down_.scale_rows)
                                  : 0;
  position = 0;
  table_.gate_up_global = Place(position, gate_up_.global_scale ? experts * 2 * sizeof(float) : 0);
  table_.down_global = Place(position, down_.global_scale ? experts * sizeof(float) : 0);
  table_.down_bias = Place(position, down_.bias ? experts * hidden_padded() * sizeof(float) : 0);
  table_.down_scales = Place(position, row_scales * BytesOf(down_.scale_dtype));
  table_.down_zero_points = Place(position, down_.zero_point ? row_scales : 0);
  table_.input_order =
      Place(position, gate_up_.k_permutation ? experts * g.hidden_size * sizeof(uint32_t) : 0);
  table_.end = position;
  table_bytes_ = AlignUp(position, kPageBytes);
}

std::array<std::byte, kHeaderBytes> LayerSpec::Encode() const {
  const LayerGeometry& g = geometry_;
  RawHeader raw{};
  std::memcpy(raw.magic, kMagic, sizeof kMagic);
  raw.version = kFormatVersion;
  raw.endian_tag = kEndianTag;
  raw.header_bytes = kHeaderBytes;
  raw.layout_id = kLayoutTile16x32;
  raw.layout_version = kLayoutVersion;
  raw.flags = g.gated ? kFlagGated : 0;
  raw.layer_index = g.layer_index;
  raw.num_experts = g.num_experts;
  raw.hidden_size = g.hidden_size;
  raw.intermediate_size = g.intermediate_size;
  raw.unit_rows = g.unit_rows;
  raw.num_units = num_units_;
  raw.gate_up = ToRaw(gate_up_);
  raw.down = ToRaw(down_);
  raw.record_bytes = record_bytes_;
  raw.unit_bytes = unit_bytes_;
  raw.table_offset = table_offset();
  raw.table_bytes = table_bytes_;
  raw.file_bytes = file_bytes();
  raw.header_crc32c = Crc32c(&raw, offsetof(RawHeader, header_crc32c));
  return std::bit_cast<std::array<std::byte, kHeaderBytes>>(raw);
}

LayerSpec LayerSpec::Decode(std::span<const std::byte, kHeaderBytes> header,
                            std::string_view where) {
  RawHeader raw;
  std::memcpy(&raw, header.data(), sizeof raw);
  const std::string file(where);
  Require(std::memcmp(raw.magic, kMagic, sizeof kMagic) == 0,
          file + ": not an expert blob (no LSGBLOB magic)");
  Require(raw.endian_tag == kEndianTag, file + ": written with another byte order");
  // The version comes before the checksum: a newer header may put its checksum elsewhere.
  Require(raw.version == kFormatVersion, file + ": format version " + std::to_string(raw.version) +
                                             ", but this lsg reads version " +
                                             std::to_string(kFormatVersion) +
                                             "; upgrade lsg or convert the model again");
  Require(
      raw.header_crc32c == Crc32c(&raw, offsetof(RawHeader, header_crc32c)),
      file +
          ": the header's checksum does not match; the file is damaged, convert the model again");
  Require(raw.header_bytes == kHeaderBytes && raw.layout_id == kLayoutTile16x32 &&
              raw.layout_version == kLayoutVersion,
          file + ": layout " + std::to_string(raw.layout_id) + " version " +
              std::to_string(raw.layout_version) + " is not known to this lsg");
  Require((raw.flags & ~kFlagGated) == 0, file + ": unknown flags in the header");
  Require(raw.unit_rows != 0, file + ": unit_rows is 0");

  const LayerSpec spec = [&] {
    try {
      return LayerSpec({raw.layer_index, raw.num_experts, raw.hidden_size, raw.intermediate_size,
                        raw.unit_rows, (raw.flags & kFlagGated) != 0},
                       FromRaw(raw.gate_up, "gate_up"), FromRaw(raw.down, "down"));
    } catch (const FormatError& error) {
      throw FormatError(file + ": " + error.what() + "; the file is damaged");
    }
  }();
  // Everything derived, and the zero bytes, at once: the one right header for this geometry is
  // known.
  const auto expected = spec.Encode();
  Require(std::memcmp(expected.data(), header.data(), kHeaderBytes) == 0,
          file + ": the header's sizes do not follow from its geometry; the file is damaged");
  return spec;
}

}  // namespace lsg
