#include "base/crc32c.h"

#include <immintrin.h>

#include <array>
#include <cstring>

namespace lsg {
namespace {

constexpr std::array<uint32_t, 256> MakeTable() {
  std::array<uint32_t, 256> table{};
  for (uint32_t i = 0; i < 256; ++i) {
    uint32_t crc = i;
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ (crc & 1 ? 0x82f63b78u : 0);
    table[i] = crc;
  }
  return table;
}

uint32_t CrcTable(const uint8_t* data, size_t bytes, uint32_t crc) {
  static constexpr auto kTable = MakeTable();
  for (size_t i = 0; i < bytes; ++i) crc = (crc >> 8) ^ kTable[(crc ^ data[i]) & 0xff];
  return crc;
}

// The instruction takes 8 bytes every 3 cycles: several GB/s on one core, far above any disk.
__attribute__((target("sse4.2"))) uint32_t CrcInstruction(const uint8_t* data, size_t bytes,
                                                          uint32_t crc) {
  uint64_t wide = crc;
  for (; bytes >= 8; bytes -= 8, data += 8) {
    uint64_t word;
    std::memcpy(&word, data, 8);
    wide = _mm_crc32_u64(wide, word);
  }
  crc = static_cast<uint32_t>(wide);
  for (; bytes > 0; --bytes, ++data) crc = _mm_crc32_u8(crc, *data);
  return crc;
}

}  // namespace

uint32_t Crc32c(const void* data, size_t bytes, uint32_t crc) {
  static const bool has_instruction = __builtin_cpu_supports("sse4.2");
  const auto* begin = static_cast<const uint8_t*>(data);
  crc = ~crc;
  crc = has_instruction ? CrcInstruction(begin, bytes, crc) : CrcTable(begin, bytes, crc);
  return ~crc;
}

}  // namespace lsg
