// A part of a file as memory: where the page cache has it, without a copy.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <cstdint>

namespace lsg {

// A byte of an open file.
struct FilePlace {
  int fd;
  off_t offset;
};

class MappedRange {
 public:
  // With `populate`, brings the pages in before it returns, so that a file that cannot be read
  // shows here and not as a signal. Without, the memory had better not be touched: it costs nothing
  // and says where to read. Throws std::system_error.
  MappedRange(int fd, off_t offset, size_t bytes, bool populate);
  MappedRange(const MappedRange&) = delete;
  MappedRange& operator=(const MappedRange&) = delete;
  ~MappedRange();

  const uint8_t* data() const { return data_; }

  // Where in the file one of its bytes is. The descriptor is the caller's who made it.
  FilePlace PlaceOf(const uint8_t* byte) const { return {fd_, offset_ + (byte - data_)}; }

 private:
  int fd_;
  off_t offset_;
  void* pages_;
  size_t page_bytes_;
  const uint8_t* data_;
};

}  // namespace lsg
