// Reads a file once, into memory that will be its only copy.
//
// Invariant: what was read does not stay in the page cache, except for pages that another process
// has mapped.
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

  // Fills `out` from `offset`; both are multiples of 4096, as is out's address. Past the page cache
  // where the file system allows it (O_DIRECT), unless `cached` says that the bytes are in it. Safe
  // to call from several threads. Throws FormatError when the file is shorter or cannot be read.
  void Read(uint64_t offset, std::span<std::byte> out, bool cached) const;

 private:
  std::string path_;
  int buffered_;
  int direct_;  // -1 where O_DIRECT is refused
};

}  // namespace lsg
