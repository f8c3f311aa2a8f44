// What is worth knowing about a layer file before choosing how to load it.
#pragma once

#include <cstdint>

#include "format/layer_file.h"

namespace lsg {

// Bytes of the file that are in the page cache. The kernel tells the file's owner only; everybody
// else hears all of them.
uint64_t CachedBytes(const LayerFile& file);

// Whether the file system has no disk: its files are in memory for good.
bool LivesInMemory(const LayerFile& file);

// Whether mapping the file gives 2 MiB pages: brings in the 2 MiB in its middle and looks. False
// for a file that is too short to have some.
bool MapsHuge(const LayerFile& file);

}  // namespace lsg
