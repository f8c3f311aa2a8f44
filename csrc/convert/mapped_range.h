// A part of a file where the page cache has it: read without a copy.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <cstdint>

namespace lsg {

class MappedRange {
 public:
  // Brings the pages in before it returns, so that a file that cannot be read shows here and not as
  // a signal. Throws std::system_error.
  MappedRange(int fd, off_t offset, size_t bytes);
  MappedRange(const MappedRange&) = delete;
  MappedRange& operator=(const MappedRange&) = delete;
  ~MappedRange();

  const uint8_t* data() const { return data_; }

 private:
  void* pages_;
  size_t page_bytes_;
  const uint8_t* data_;
};

}  // namespace lsg
