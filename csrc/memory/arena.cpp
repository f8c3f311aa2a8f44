#include "memory/arena.h"

#include <sys/mman.h>

#include <cerrno>
#include <cstring>
#include <string>

#include "base/align.h"
#include "base/error.h"
#include "memory/node_policy.h"

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25  // Linux 6.1
#endif

namespace lsg {

Arena::Arena(uint64_t bytes, int node)
    : bytes_(AlignUp(bytes, kHugePageBytes)), reserved_bytes_(bytes_ + 2 * kHugePageBytes) {
  // The reservation leaves room to align, and at least a page on each side that stays inaccessible.
  reserved_ = mmap(nullptr, reserved_bytes_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  const bool reserved = reserved_ != MAP_FAILED;
  const auto address = reinterpret_cast<uintptr_t>(reserved_) + 1;
  data_ = reinterpret_cast<std::byte*>(AlignUp(address, kHugePageBytes));
  if (!reserved || (bytes_ > 0 && mprotect(data_, bytes_, PROT_READ | PROT_WRITE) != 0)) {
    const std::string reason = std::strerror(errno);
    if (reserved) munmap(reserved_, reserved_bytes_);
    throw CapacityError("cannot get " + std::to_string(bytes_ >> 20) + " MiB for experts (" +
                        reason + "); see ulimit -v and /proc/sys/vm/overcommit_memory");
  }
  madvise(data_, bytes_, MADV_HUGEPAGE);
  BindMemory(data_, bytes_, node);
}

Arena::~Arena() { munmap(reserved_, reserved_bytes_); }

void Arena::Seal() {
  // Costs next to nothing where pages are huge already.
  for (uint64_t at = 0; at < bytes_; at += kHugePageBytes) {
    madvise(data_ + at, kHugePageBytes, MADV_COLLAPSE);
  }
  mprotect(data_, bytes_, PROT_READ);
}

}  // namespace lsg
