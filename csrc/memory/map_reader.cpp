#include "memory/map_reader.h"

#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <vector>

#include "base/error.h"
#include "memory/residency.h"

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22  // Linux 5.14
#endif

namespace lsg {
namespace {

constexpr int kAttempts = 3;

}  // namespace

bool IsCached(const std::byte* data, uint64_t bytes) {
  std::vector<unsigned char> pages(bytes / kPageBytes);
  if (mincore(const_cast<std::byte*>(data), bytes, pages.data()) != 0) return false;
  return std::all_of(pages.begin(), pages.end(), [](unsigned char page) { return page & 1; });
}

void PopulateMapping(std::byte* data, uint64_t bytes, const std::string& path) {
  if (madvise(data, bytes, MADV_POPULATE_READ) == 0) return;
  if (errno == EFAULT) {
    throw FormatError(path +
                      ": became shorter while it was loaded, or cannot be read; copy or convert it "
                      "again");
  }
  if (errno == ENOMEM) {
    throw CapacityError(path + ": its pages cannot be brought into memory (" +
                        std::strerror(errno) + ")");
  }
  // An older kernel: a read of each page does the same, one fault at a time.
  for (uint64_t at = 0; at < bytes; at += kPageBytes) {
    static_cast<void>(*reinterpret_cast<const volatile std::byte*>(data + at));
  }
}

MapReader::MapReader(const LayerMemory& layer) : layer_(layer), file_(layer.path()) {}

bool MapReader::Bring(uint64_t offset, uint64_t bytes, int node) const {
  auto* data = const_cast<std::byte*>(layer_.file_data(offset));
  PopulateMapping(data, bytes, layer_.path());
  return node == kAnyNode || ResidencyOf(data, bytes).Only(node);
}

void MapReader::Settle(uint64_t offset, const ThreadBinder& binder) const {
  const uint64_t end = std::min(offset + kHugePageBytes, layer_.spec().file_bytes());
  const bool shared =
      std::none_of(layer_.parts().begin(), layer_.parts().end(), [&](const LayerPart& part) {
        return part.offset <= offset && end <= part.offset + part.bytes;
      });
  for (int attempt = 1;; ++attempt) {
    bool right = true;
    for (const LayerPart& part : layer_.parts()) {
      const uint64_t from = std::max(offset, part.offset),
                     to = std::min(end, part.offset + part.bytes);
      if (from >= to) continue;
      binder.Bind(part.node);
      // A page fault reads the whole window, so the next node's pages too.
      if (shared) file_.Cache(from, to - from);
      right &= Bring(from, to - from, part.node);
    }
    if (right || attempt == kAttempts) return;
    // A page that this process has mapped would not go.
    madvise(const_cast<std::byte*>(layer_.file_data(offset)), end - offset, MADV_DONTNEED);
    file_.Drop(offset, end - offset);
  }
}

}  // namespace lsg
