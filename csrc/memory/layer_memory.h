// The bytes of one layer that the engine reads, and where they are.
//
// Invariant: `record` and `table` are valid once the layer is loaded (loader.h), until it is
// destroyed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "format/layer_file.h"
#include "memory/arena.h"

namespace lsg {

// kMap: the file's own pages, shared with every process that maps it. kHuge: a copy in 2 MiB pages.
enum class LoadMode { kMap, kHuge };

// Units [begin, end), which belong to a node; kAnyNode: wherever there is room.
struct NodeUnits {
  int node;
  int begin;
  int end;
};

// A contiguous piece of a layer file and the node that it belongs to.
struct LayerPart {
  int node;
  uint64_t offset;
  uint64_t bytes;
  const std::byte* data = nullptr;  // once loaded; kMap: from the start
};

class LayerMemory {
 public:
  // `units`: ranges in order, without gaps; a last end of -1 means the file's last unit. Throws
  // FormatError for a file that is not valid, and Error for ranges that are not in it.
  LayerMemory(const std::string& path, LoadMode mode, std::vector<NodeUnits> units);

  const std::string& path() const { return path_; }
  const LayerSpec& spec() const { return spec_; }
  LoadMode mode() const { return mode_; }
  bool loaded() const { return loaded_; }
  int unit_begin() const { return units_.front().begin; }
  int unit_end() const { return units_.back().end; }

  const std::vector<NodeUnits>& units() const { return units_; }
  // The unit ranges in order, then the expert table, which lies with the last of them.
  const std::vector<LayerPart>& parts() const { return parts_; }

  const std::byte* record(int unit, int expert) const {
    return unit_data_[unit - unit_begin()] + expert * spec_.record_bytes();
  }
  const std::byte* table() const { return parts_.back().data; }

  // Keeps the unit ranges and the table in memory until the layer is destroyed; the bytes that the
  // limit on locked memory permits.
  uint64_t Lock();

  // The file's own page at `offset`, while it is mapped.
  const std::byte* file_data(uint64_t offset) const { return file_->data() + offset; }

  // kMap: the bytes are in memory. kHuge: part i is now at data[i], in arenas that this shares.
  void SetLoaded();
  void SetLoaded(const std::vector<const std::byte*>& data,
                 std::vector<std::shared_ptr<const Arena>> arenas);

 private:
  std::string path_;
  LoadMode mode_;
  std::vector<NodeUnits> units_;
  std::unique_ptr<LayerFile> file_;  // kMap, and kHuge until loaded
  LayerSpec spec_;
  std::vector<LayerPart> parts_;
  std::vector<std::shared_ptr<const Arena>> arenas_;
  std::vector<const std::byte*> unit_data_;  // of each unit in the range
  bool loaded_ = false;
};

}  // namespace lsg
