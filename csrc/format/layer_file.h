// A layer file, mapped read-only.
//
// Invariant: an open LayerFile has passed every check of FORMAT.md except the slab checksums, so
// each span it hands out lies inside the file.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "format/layer_spec.h"

namespace lsg {

class LayerFile {
 public:
  // Throws FormatError when the file is missing, unreadable or not as its header says.
  explicit LayerFile(std::string path);
  LayerFile(const LayerFile&) = delete;
  LayerFile& operator=(const LayerFile&) = delete;
  ~LayerFile();

  const std::string& path() const { return path_; }
  const LayerSpec& spec() const { return spec_; }
  uint32_t header_crc32c() const;

  std::span<const std::byte> record(uint32_t unit, uint32_t expert) const {
    return {data_ + spec_.record_offset(unit, expert), spec_.record_bytes()};
  }
  std::span<const std::byte> table() const {
    return {data_ + spec_.table_offset(), spec_.table_bytes()};
  }

  // Over the expert's records in unit order.
  uint32_t SlabCrc32c(uint32_t expert) const;
  uint32_t TableCrc32c() const;

  const std::byte* data() const { return data_; }  // the whole file

 private:
  std::string path_;
  LayerSpec spec_;
  void* reserved_;
  size_t reserved_bytes_;
  const std::byte* data_;
};

}  // namespace lsg
