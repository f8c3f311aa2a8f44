// Brings a mapped file's pages into memory, on the nodes they belong to, in 2 MiB pages where the
// file system and the kernel can.
//
// Page-cache pages follow the policy of the thread that causes them to be read; mbind does nothing
// for them, and a page that is cached already stays where it is until it is dropped.
#pragma once

#include <cstdint>
#include <string>

#include "memory/file_reader.h"
#include "memory/layer_memory.h"
#include "memory/node_policy.h"

namespace lsg {

// Whether all of [data, data + bytes) of a file mapping is in the page cache. The kernel tells the
// file's owner only; everybody else hears yes.
bool IsCached(const std::byte* data, uint64_t bytes);

// Brings pages of a mapped file in, wherever this thread's policy puts them. Throws FormatError
// when the file is shorter, CapacityError when there is no memory.
void PopulateMapping(std::byte* data, uint64_t bytes, const std::string& path);

class MapReader {
 public:
  // The layer is of LoadMode::kMap and outlives this.
  explicit MapReader(const LayerMemory& layer);

  // Brings a range in by the calling thread, which is bound to `node`. False when pages of it are
  // on other nodes afterwards. Throws as PopulateMapping does.
  bool Bring(uint64_t offset, uint64_t bytes, int node) const;

  // Puts the pages of the window of 2 MiB that begins at `offset` on the nodes of the parts that
  // they belong to, dropping what is elsewhere and reading it again a bounded number of times.
  // Binds the calling thread to those nodes in turn.
  void Settle(uint64_t offset, const ThreadBinder& binder) const;

 private:
  const LayerMemory& layer_;
  FileReader file_;
};

}  // namespace lsg
