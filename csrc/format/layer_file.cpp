#include "format/layer_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <utility>

#include "base/align.h"
#include "base/crc32c.h"
#include "base/error.h"

namespace lsg {
namespace {

// A 2 MiB page of the file is one in memory only when both begin at a multiple of that.
constexpr uint64_t kAlignment = uint64_t{2} << 20;

class OpenFile {
 public:
  explicit OpenFile(const std::string& path) : file(open(path.c_str(), O_RDONLY | O_CLOEXEC)) {
    if (file < 0) throw FormatError(path + ": cannot be opened (" + std::strerror(errno) + ")");
  }
  OpenFile(const OpenFile&) = delete;
  OpenFile& operator=(const OpenFile&) = delete;
  ~OpenFile() { close(file); }

  const int file;
};

LayerSpec ReadSpec(const std::string& path) {
  const OpenFile opened(path);
  // What is read ahead here would stay on this thread's node.
  posix_fadvise(opened.file, 0, 0, POSIX_FADV_RANDOM);
  struct stat info;
  const bool regular = fstat(opened.file, &info) == 0 && S_ISREG(info.st_mode);
  const auto bytes = regular ? static_cast<uint64_t>(info.st_size) : 0;
  std::array<std::byte, kHeaderBytes> header;
  if (bytes < kHeaderBytes ||
      pread(opened.file, header.data(), kHeaderBytes, 0) != static_cast<ssize_t>(kHeaderBytes)) {
    throw FormatError(path + ": " + std::to_string(bytes) +
                      " bytes, shorter than the 4096-byte header of an expert blob");
  }
  LayerSpec spec = LayerSpec::Decode(header, path);
  if (bytes != spec.file_bytes()) {
    throw FormatError(path + ": " + std::to_string(bytes) + " bytes, but its header says " +
                      std::to_string(spec.file_bytes()) + "; copy or convert it again");
  }
  return spec;
}

}  // namespace

LayerFile::LayerFile(std::string path) : path_(std::move(path)), spec_(ReadSpec(path_)) {
  const OpenFile opened(path_);
  const uint64_t bytes = spec_.file_bytes();
  reserved_bytes_ = bytes + kAlignment;
  reserved_ = mmap(nullptr, reserved_bytes_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  void* data = MAP_FAILED;
  if (reserved_ != MAP_FAILED) {
    const auto address = AlignUp(reinterpret_cast<uintptr_t>(reserved_), kAlignment);
    data = mmap(reinterpret_cast<void*>(address), bytes, PROT_READ, MAP_SHARED | MAP_FIXED,
                opened.file, 0);
  }
  if (data == MAP_FAILED) {
    const std::string reason = std::strerror(errno);
    if (reserved_ != MAP_FAILED) munmap(reserved_, reserved_bytes_);
    throw FormatError(path_ + ": cannot be mapped (" + reason + ")");
  }
  data_ = static_cast<const std::byte*>(data);
}

LayerFile::~LayerFile() { munmap(reserved_, reserved_bytes_); }

uint32_t LayerFile::header_crc32c() const {
  uint32_t crc;
  std::memcpy(&crc, data_ + kHeaderBytes - sizeof crc, sizeof crc);
  return crc;
}

uint32_t LayerFile::SlabCrc32c(uint32_t expert) const {
  uint32_t crc = 0;
  for (uint32_t unit = 0; unit < spec_.num_units(); ++unit) {
    const auto bytes = record(unit, expert);
    crc = Crc32c(bytes.data(), bytes.size(), crc);
  }
  return crc;
}

uint32_t LayerFile::TableCrc32c() const { return Crc32c(table().data(), table().size()); }

}  // namespace lsg
