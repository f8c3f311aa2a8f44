// Brings layers into memory, all nodes at the same time.
//
// Invariant: either every layer is loaded when LoadLayers returns, or it throws and none of them
// has gained memory.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "memory/layer_memory.h"

namespace lsg {

struct NodeProgress {
  int node;
  uint64_t done_bytes;
  uint64_t total_bytes;
};

// Called on the calling thread several times a second, and at the end; may throw to stop the load.
using LoadPoll = std::function<void(const std::vector<NodeProgress>&)>;

// `threads_per_node` 0: as many as keep a disk busy. Throws CapacityError when memory cannot be
// had, FormatError when a file changes meanwhile, and whatever `poll` throws.
void LoadLayers(const std::vector<LayerMemory*>& layers, int threads_per_node,
                const LoadPoll& poll);

}  // namespace lsg
