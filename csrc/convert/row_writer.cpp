#include "convert/row_writer.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <system_error>

namespace lsg {
namespace {

// What every disk's direct writes are content with, in memory and in the file.
constexpr size_t kPage = 4096;

// 0, or the error that ended it.
int WriteAll(int file, const std::byte* data, size_t bytes, off_t offset) {
  while (bytes > 0) {
    const ssize_t count = pwrite(file, data, bytes, offset);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return errno;
    data += count;
    bytes -= static_cast<size_t>(count);
    offset += count;
  }
  return 0;
}

void Require(int error) {
  if (error != 0) throw std::system_error(error, std::generic_category());
}

}  // namespace

bool WriteRows(const FileRows& rows, int cached, int direct) {
  const bool had_direct = direct >= 0;
  for (size_t row = 0; row < rows.count; ++row) {
    const std::byte* data = rows.data + static_cast<ptrdiff_t>(row) * rows.memory_stride;
    const off_t offset = rows.offset + static_cast<off_t>(row) * rows.file_stride;
    const auto at = static_cast<uint64_t>(offset);
    size_t begin = std::min<size_t>(-at % kPage, rows.bytes);
    size_t end = begin + (rows.bytes - begin) / kPage * kPage;
    const bool alike = (reinterpret_cast<uintptr_t>(data) - at) % kPage == 0;
    if (direct < 0 || !alike) begin = end = 0;
    Require(WriteAll(cached, data, begin, offset));
    if (begin < end) {
      const auto write = [&](int file) {
        return WriteAll(file, data + begin, end - begin, offset + static_cast<off_t>(begin));
      };
      int error = write(direct);
      if (error == EINVAL || error == EOPNOTSUPP) {
        direct = -1;
        error = write(cached);
      }
      Require(error);
    }
    Require(WriteAll(cached, data + end, rows.bytes - end, offset + static_cast<off_t>(end)));
  }
  return !had_direct || direct >= 0;
}

}  // namespace lsg
