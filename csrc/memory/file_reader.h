// Reads a file so that its bytes are in memory once: in ours, or in the page cache.
//
// Invariant: what others keep is theirs; pages that another process has mapped stay in the page
// cache.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

namespace lsg {

class FileReader {
 public:
  // Throws FormatError when the file cannot be opened.
  explicit FileReader(std::string path);
  FileReader(const FileReader&) = delete;
  FileReader& operator=(const FileReader&) = delete;
  ~FileReader();

  // Fills `out` from `offset` and leaves nothing of it in the page cache. Reads past the page cache
  // where the file system allows it (O_DIRECT), unless `cached` says that the bytes are in it.
  // Offset, size and address are multiples of 4096. Safe to call from several threads. Throws
  // FormatError when the file is shorter or cannot be read.
  void Read(uint64_t offset, std::span<std::byte> out, bool cached) const;

  // Brings exactly [offset, offset + bytes) into the page cache; nothing is read ahead.
  void Cache(uint64_t offset, uint64_t bytes) const;

  // Takes what lies whole in [offset, offset + bytes) out of the page cache.
  void Drop(uint64_t offset, uint64_t bytes) const;

 private:
  // `error` 0: the file ends at `offset`.
  [[noreturn]] void ThrowShort(uint64_t offset, int error) const;

  std::string path_;
  int buffered_;
  int direct_;  // -1 where O_DIRECT is refused
};

}  // namespace lsg
