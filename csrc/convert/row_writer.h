// Writes past the page cache where the file system lets.
//
// Through the cache, every byte is copied and its page found, marked and cleaned up again.
//
// Invariant: a page of the file is written either directly, and then whole, or through the cache,
// and then by every write that touches it; so neither way overwrites what the other has written.
#pragma once

#include <sys/types.h>

#include <cstddef>

namespace lsg {

// Runs of bytes, as far apart in memory and in the file as their strides say.
struct FileRows {
  const std::byte* data;
  size_t count, bytes;
  ptrdiff_t memory_stride;
  off_t offset, file_stride;
};

// Both descriptors are of one file; `direct`, opened past the page cache, is -1 where there is
// none. Bytes go directly that lie in memory as in the file, counted from a page's beginning. False
// if the file system refuses that only now; the rows are written all the same. Throws
// std::system_error.
bool WriteRows(const FileRows& rows, int cached, int direct);

}  // namespace lsg
