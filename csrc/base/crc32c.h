// CRC-32C (Castagnoli, RFC 3720 appendix B.4): the checksum of headers, tables and slabs.
#pragma once

#include <cstddef>
#include <cstdint>

namespace lsg {

// Checksum of `bytes` bytes, continuing from `crc` (0 to begin).
uint32_t Crc32c(const void* data, size_t bytes, uint32_t crc = 0);

// Checksum of two runs of bytes, one after the other, from theirs.
uint32_t Crc32cOfBoth(uint32_t first, uint32_t second, size_t second_bytes);

}  // namespace lsg
