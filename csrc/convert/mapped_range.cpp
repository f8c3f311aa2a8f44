#include "convert/mapped_range.h"

#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>

namespace lsg {
namespace {

// Linux 5.14; older C libraries do not name it.
constexpr int kPopulateRead = 22;

}  // namespace

MappedRange::MappedRange(int fd, off_t offset, size_t bytes, bool populate)
    : fd_(fd), offset_(offset) {
  // Behind its end, the last page would read as zeros.
  struct stat file;
  if (fstat(fd, &file) != 0) throw std::system_error(errno, std::generic_category());
  if (offset + static_cast<off_t>(bytes) > file.st_size) {
    throw std::system_error(ENODATA, std::generic_category());
  }
  const off_t into_page = offset % sysconf(_SC_PAGESIZE);
  page_bytes_ = bytes + static_cast<size_t>(into_page);
  pages_ = mmap(nullptr, page_bytes_, PROT_READ, MAP_SHARED, fd, offset - into_page);
  if (pages_ == MAP_FAILED) throw std::system_error(errno, std::generic_category());
  data_ = static_cast<const uint8_t*>(pages_) + into_page;
  if (!populate) return;
  // From the disk they come in larger runs than a fault fetches.
  madvise(pages_, page_bytes_, MADV_SEQUENTIAL);
  if (madvise(pages_, page_bytes_, kPopulateRead) != 0) {
    const int error = errno;
    munmap(pages_, page_bytes_);
    throw std::system_error(error, std::generic_category());
  }
}

MappedRange::~MappedRange() { munmap(pages_, page_bytes_); }

}  // namespace lsg
