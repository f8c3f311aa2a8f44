// Which NUMA node pages come from, by raw system calls.
//
// Invariant: placement is a request, not a fact: kernels without NUMA and containers whose seccomp
// profile forbids these calls leave it undone. What counts is what residency.h sees afterwards.
#pragma once

#include <sched.h>

#include <cstddef>

namespace lsg {

// Stands for "any node": nothing is asked of the kernel.
inline constexpr int kAnyNode = -1;

// Pages of [data, data + bytes) that do not exist yet come from `node` and from nowhere else. False
// when the kernel refuses to be asked.
bool BindMemory(void* data, size_t bytes, int node);

// Binds threads to one node after another.
class ThreadBinder {
 public:
  // Threads may run where the constructing thread may.
  ThreadBinder();

  // The calling thread runs on CPUs of `node`, where there are any for it, and the pages it causes
  // to be read into the page cache come from there. False when part of it was refused.
  bool Bind(int node) const;

 private:
  cpu_set_t allowed_;
};

}  // namespace lsg
