// Where pages really are: NUMA nodes by move_pages, page sizes by /proc/self/smaps.
//
// Invariant: observation only; nothing is touched, moved or brought into memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <vector>

#include "memory/layer_memory.h"

namespace lsg {

struct Residency {
  std::map<int, uint64_t> bytes_on;  // by NUMA node
  uint64_t absent_bytes = 0;         // not mapped in this process
  uint64_t unknown_bytes = 0;        // the kernel or a seccomp profile does not tell

  Residency& operator+=(const Residency& other);
  // Whether all pages that can be seen are on `node`.
  bool Only(int node) const;
};

// `data` and `bytes` are multiples of 4096.
Residency ResidencyOf(const std::byte* data, uint64_t bytes);

// One mapping of this process and how much of it is backed by pages of 2 MiB or more.
struct HugeShare {
  uintptr_t begin, end;
  uint64_t huge_bytes;
};
std::vector<HugeShare> HugeShares();

// Bytes of [data, data + bytes) in huge pages: exact for whole mappings such as an Arena; of a part
// of a mapping, its share by size.
uint64_t HugeBytes(const std::vector<HugeShare>& mappings, const std::byte* data, uint64_t bytes);

// A unit range of a layer, what it should be on and where it is.
struct PartResidency {
  int layer;  // index into what was asked about
  NodeUnits units;
  uint64_t bytes;
  Residency residency;
  uint64_t huge_bytes;
};

// Every unit range of loaded layers; expert tables, which all nodes read, are left out.
std::vector<PartResidency> Survey(const std::vector<const LayerMemory*>& layers);

}  // namespace lsg
