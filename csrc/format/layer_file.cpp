#include "format/layer_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "base/align.h"
#include "base/crc32c.h"
#include "base/error.h"

namespace lsg {
namespace {

struct Mapping {
  const std::byte* data;
  size_t bytes;
};

Mapping MapFile(const std::string& path) {
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) throw FormatError(path + ": cannot be opened (" + std::strerror(errno) + ")");
  struct stat info;
  const bool regular = fstat(fd, &info) == 0 && S_ISREG(info.st_mode);
  const auto bytes = regular ? static_cast<size_t>(info.st_size) : 0;
  if (bytes < kHeaderBytes) {
    close(fd);
    throw FormatError(path + ": " + std::to_string(bytes) +
                      " bytes, shorter than the 4096-byte header of an expert blob");
  }
  void* data = mmap(nullptr, bytes, PROT_READ, MAP_SHARED, fd, 0);
  const int error = errno;
  close(fd);
  if (data == MAP_FAILED)
    throw FormatError(path + ": cannot be mapped (" + std::strerror(error) + ")");
  return {static_cast<const std::byte*>(data), bytes};
}

LayerSpec ReadSpec(const Mapping& mapping, const std::string& path) {
  try {
    LayerSpec spec = LayerSpec::Decode(
        std::span<const std::byte, kHeaderBytes>(mapping.data, kHeaderBytes), path);
    if (mapping.bytes != spec.file_bytes()) {
      throw FormatError(path + ": " + std::to_string(mapping.bytes) +
                        " bytes, but its header says " + std::to_string(spec.file_bytes()) +
                        "; copy or convert it again");
    }
    return spec;
  } catch (...) {
    munmap(const_cast<std::byte*>(mapping.data), mapping.bytes);
    throw;
  }
}

}  // namespace

LayerFile::LayerFile(std::string path)
    : path_(std::move(path)), spec_([this] {
        const Mapping mapping = MapFile(path_);
        LayerSpec spec = ReadSpec(mapping, path_);
        data_ = mapping.data;
        bytes_ = mapping.bytes;
        return spec;
      }()) {}

LayerFile::~LayerFile() {
  if (data_ != nullptr) munmap(const_cast<std::byte*>(data_), bytes_);
}

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
