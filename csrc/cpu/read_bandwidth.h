// The machine's limit: how fast memory can be read.
#pragma once

#include <cstdint>

namespace lsg {

// Bytes per second that `threads` pinned readers take together from `bytes` of memory (2 MiB pages
// where the system gives them), each reading its part in `streams` streams, over and over for about
// `seconds`. Throws CapacityError without memory.
double ReadBandwidth(int threads, uint64_t bytes, int streams, double seconds);

}  // namespace lsg
