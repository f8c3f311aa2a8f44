#include "memory/file_reader.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>
#include <vector>

#include "base/error.h"

namespace lsg {
namespace {

// Bytes read from `offset` on: less than asked for at the end of the file or after an error, which
// is then in `error`.
uint64_t ReadUpTo(int file, uint64_t offset, std::span<std::byte> out, int* error) {
  uint64_t done = 0;
  *error = 0;
  while (done < out.size()) {
    const ssize_t got =
        pread(file, out.data() + done, out.size() - done, static_cast<off_t>(offset + done));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) *error = errno;
    if (got <= 0) break;
    done += static_cast<uint64_t>(got);
  }
  return done;
}

}  // namespace

FileReader::FileReader(std::string path)
    : path_(std::move(path)),
      buffered_(open(path_.c_str(), O_RDONLY | O_CLOEXEC)),
      direct_(open(path_.c_str(), O_RDONLY | O_CLOEXEC | O_DIRECT)) {
  if (buffered_ < 0) {
    const std::string reason = std::strerror(errno);
    if (direct_ >= 0) close(direct_);
    throw FormatError(path_ + ": cannot be opened (" + reason + ")");
  }
}

FileReader::~FileReader() {
  close(buffered_);
  if (direct_ >= 0) close(direct_);
}

void FileReader::Read(uint64_t offset, std::span<std::byte> out, bool cached) const {
  uint64_t done = 0;
  int error = 0;
  if (direct_ >= 0 && !cached) done = ReadUpTo(direct_, offset, out, &error);
  // Some file systems open with O_DIRECT and then refuse to read.
  if (done < out.size() && (error == 0 || error == EINVAL)) {
    done += ReadUpTo(buffered_, offset + done, out.subspan(done), &error);
  }
  Drop(offset, out.size());
  if (done < out.size()) ThrowShort(offset + done, error);
}

void FileReader::Cache(uint64_t offset, uint64_t bytes) const {
  // Advice belongs to the open file, and the others want to read ahead.
  const int file = open(path_.c_str(), O_RDONLY | O_CLOEXEC);
  posix_fadvise(file, 0, 0, POSIX_FADV_RANDOM);
  std::vector<std::byte> unused(std::min(bytes, uint64_t{1} << 18));
  int error = 0;
  uint64_t done = 0;
  while (done < bytes) {
    const auto wanted = std::min<uint64_t>(unused.size(), bytes - done);
    const uint64_t got = ReadUpTo(file, offset + done, std::span(unused).first(wanted), &error);
    done += got;
    if (got < wanted) break;
  }
  close(file);
  if (done < bytes) ThrowShort(offset + done, error);
}

void FileReader::Drop(uint64_t offset, uint64_t bytes) const {
  const auto at = static_cast<off_t>(offset), count = static_cast<off_t>(bytes);
  // Pages that still have to be written do not go.
  sync_file_range(buffered_, at, count,
                  SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER);
  posix_fadvise(buffered_, at, count, POSIX_FADV_DONTNEED);
}

void FileReader::ThrowShort(uint64_t offset, int error) const {
  const std::string place = path_ + ": byte " + std::to_string(offset);
  if (error != 0) throw FormatError(place + " cannot be read (" + std::strerror(error) + ")");
  throw FormatError(place +
                    " is past its end, so it became shorter while it was loaded; copy or "
                    "convert it again");
}

}  // namespace lsg
