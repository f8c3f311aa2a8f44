#include "base/crc32c.h"

#include <immintrin.h>

#include <array>
#include <cstring>

namespace lsg {
namespace {

// A register is a polynomial over GF(2) whose constant term is the highest bit; this is it times x.
constexpr uint32_t TimesX(uint32_t crc) { return (crc >> 1) ^ (crc & 1 ? 0x82f63b78u : 0); }

constexpr std::array<uint32_t, 256> MakeTable() {
  std::array<uint32_t, 256> table{};
  for (uint32_t i = 0; i < 256; ++i) {
    uint32_t crc = i;
    for (int bit = 0; bit < 8; ++bit) crc = TimesX(crc);
    table[i] = crc;
  }
  return table;
}

uint32_t Product(uint32_t a, uint32_t b) {
  uint32_t product = 0;
  for (uint32_t term = 1u << 31; term != 0; term >>= 1) {
    if (a & term) product ^= b;
    b = TimesX(b);
  }
  return product;
}

uint32_t CrcTable(const uint8_t* data, size_t bytes, uint32_t crc) {
  static constexpr auto kTable = MakeTable();
  for (size_t i = 0; i < bytes; ++i) crc = (crc >> 8) ^ kTable[(crc ^ data[i]) & 0xff];
  return crc;
}

// Bytes of each of the three runs that are summed side by side.
constexpr size_t kStripe = 1024;

// What a register becomes when a stripe of zeros passes through it: linear in its bits, so the sum
// of what its four bytes become.
class StripeOfZeros {
 public:
  StripeOfZeros() {
    const std::array<uint8_t, kStripe> zeros{};
    for (int byte = 0; byte < 4; ++byte) {
      for (uint32_t value = 0; value < 256; ++value) {
        becomes_[byte][value] = CrcTable(zeros.data(), zeros.size(), value << (8 * byte));
      }
    }
  }

  uint32_t operator()(uint32_t crc) const {
    return becomes_[0][crc & 0xff] ^ becomes_[1][crc >> 8 & 0xff] ^ becomes_[2][crc >> 16 & 0xff] ^
           becomes_[3][crc >> 24];
  }

 private:
  std::array<std::array<uint32_t, 256>, 4> becomes_;
};

__attribute__((target("sse4.2"))) uint64_t Crc8(uint64_t crc, const uint8_t* data) {
  uint64_t word;
  std::memcpy(&word, data, 8);
  return _mm_crc32_u64(crc, word);
}

// The instruction takes a cycle, its result three: three runs side by side keep it busy.
__attribute__((target("sse4.2"))) uint32_t CrcInstruction(const uint8_t* data, size_t bytes,
                                                          uint32_t crc) {
  static const StripeOfZeros pass;
  for (; bytes >= 3 * kStripe; bytes -= 3 * kStripe, data += 3 * kStripe) {
    uint64_t first = crc, second = 0, third = 0;
    for (size_t at = 0; at < kStripe; at += 8) {
      first = Crc8(first, data + at);
      second = Crc8(second, data + kStripe + at);
      third = Crc8(third, data + 2 * kStripe + at);
    }
    crc = pass(static_cast<uint32_t>(first)) ^ static_cast<uint32_t>(second);
    crc = pass(crc) ^ static_cast<uint32_t>(third);
  }
  uint64_t wide = crc;
  for (; bytes >= 8; bytes -= 8, data += 8) wide = Crc8(wide, data);
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

uint32_t Crc32cOfBoth(uint32_t first, uint32_t second, size_t second_bytes) {
  // A byte of zeros multiplies by x⁸, so the second run multiplies what came before by a power of
  // it.
  uint32_t power = 1u << 31, square = 1u << 23;
  for (; second_bytes > 0; second_bytes >>= 1, square = Product(square, square)) {
    if (second_bytes & 1) power = Product(power, square);
  }
  return Product(power, first) ^ second;
}

}  // namespace lsg
