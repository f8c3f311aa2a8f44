// Which NUMA node pages come from, by raw system calls.
//
// Invariant: placement is a request, not a fact: kernels without NUMA and containers whose seccomp
// profile forbids these calls leave it undone. What counts is what residency.h sees afterwards.
#pragma once

#include <cstddef>
#include <vector>

namespace lsg {

// Stands for "any node": nothing is asked of the kernel.
inline constexpr int kAnyNode = -1;

// Logical CPUs of `node` that this thread may run on; empty for a node without any.
std::vector<int> CpusOfNode(int node);

// Pages of [data, data + bytes) that do not exist yet come from `nodes`, the nearest to the thread
// that touches them first, and from nowhere else. False when the kernel refuses to be asked.
bool BindMemory(void* data, size_t bytes, const std::vector<int>& nodes);

// The calling thread runs on CPUs of `node` (where it has any), and the pages it causes to be read
// into the page cache come from there. False when part of it was refused.
bool BindThread(int node);

}  // namespace lsg
