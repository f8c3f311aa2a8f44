// Anonymous memory of one NUMA node in 2 MiB pages.
//
// Invariant: an Arena is a mapping of its own, aligned to 2 MiB and apart from its neighbours, so
// /proc/self/smaps tells about it alone.
#pragma once

#include <cstddef>
#include <cstdint>

namespace lsg {

inline constexpr uint64_t kHugePageBytes = uint64_t{2} << 20;

class Arena {
 public:
  // Reserves `bytes`; pages come from `node` (or kAnyNode) when they are first written. Throws
  // CapacityError when the address space or the kernel's commit limit has no room for them.
  Arena(uint64_t bytes, int node);
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;
  ~Arena();

  std::byte* data() const { return data_; }
  uint64_t bytes() const { return bytes_; }

  // After the last write: merges what the kernel could only give in small pages, where it can, and
  // write-protects everything.
  void Seal();

 private:
  std::byte* data_;
  uint64_t bytes_;
  void* reserved_;
  uint64_t reserved_bytes_;
};

}  // namespace lsg
