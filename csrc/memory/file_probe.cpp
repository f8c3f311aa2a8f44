#include "memory/file_probe.h"

#include <linux/magic.h>
#include <sys/mman.h>
#include <sys/vfs.h>

#include <algorithm>
#include <vector>

#include "memory/arena.h"
#include "memory/map_reader.h"
#include "memory/residency.h"

namespace lsg {
namespace {

constexpr uint64_t kPagesPerCall = 16384;

}  // namespace

uint64_t CachedBytes(const LayerFile& file) {
  const uint64_t total = file.spec().file_bytes();
  std::vector<unsigned char> pages(kPagesPerCall);
  uint64_t cached = 0;
  for (uint64_t at = 0; at < total; at += kPagesPerCall * kPageBytes) {
    const uint64_t bytes = std::min(kPagesPerCall * kPageBytes, total - at);
    if (mincore(const_cast<std::byte*>(file.data() + at), bytes, pages.data()) != 0) continue;
    const auto end = pages.begin() + static_cast<int64_t>(bytes / kPageBytes);
    cached += kPageBytes * std::count_if(pages.begin(), end, [](unsigned char p) { return p & 1; });
  }
  return cached;
}

bool LivesInMemory(const LayerFile& file) {
  struct statfs info;
  if (statfs(file.path().c_str(), &info) != 0) return false;
  return info.f_type == TMPFS_MAGIC || info.f_type == RAMFS_MAGIC || info.f_type == HUGETLBFS_MAGIC;
}

bool MapsHuge(const LayerFile& file) {
  const uint64_t middle = file.spec().file_bytes() / 2 / kHugePageBytes * kHugePageBytes;
  if (middle == 0) return false;
  // The advice makes the window a mapping of its own, which smaps tells about alone.
  auto* window = const_cast<std::byte*>(file.data() + middle);
  madvise(window, kHugePageBytes, MADV_HUGEPAGE);
  PopulateMapping(window, kHugePageBytes, file.path());
  return HugeBytes(HugeShares(), window, kHugePageBytes) == kHugePageBytes;
}

}  // namespace lsg
