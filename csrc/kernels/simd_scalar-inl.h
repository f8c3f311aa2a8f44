// The vector vocabulary of the kernels, one lane wide. See README.md for the contract every level
// meets.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>

namespace lsg {
namespace {

struct Simd {
  static constexpr int kLanes = 1;
  using F = float;
  using I = uint32_t;

  static F Zero() { return 0.0f; }
  static F Set1(float x) { return x; }
  static F Load(const float* p) { return *p; }
  static void Store(float* p, F x) { *p = x; }
  static F Add(F a, F b) { return a + b; }
  static F Sub(F a, F b) { return a - b; }
  static F Mul(F a, F b) { return a * b; }
  static F Div(F a, F b) { return a / b; }
  static F Fma(F a, F b, F c) { return __builtin_fmaf(a, b, c); }
  static F Min(F a, F b) { return a < b ? a : b; }  // b when either is NaN, as x86's instructions
  static F Max(F a, F b) { return a > b ? a : b; }
  static F Round(F x) { return __builtin_rintf(x); }
  static F FromInt(I x) { return static_cast<float>(static_cast<int32_t>(x)); }
  static I ToInt(F x) { return static_cast<uint32_t>(static_cast<int32_t>(x)); }  // |x| < 2^31
  static F FromBits(I x) { return std::bit_cast<float>(x); }
  static I Bits(F x) { return std::bit_cast<uint32_t>(x); }

  static I ZeroBits() { return 0; }
  static I Set1Bits(uint32_t x) { return x; }
  static I LoadBits(const void* p) {
    uint32_t x;
    std::memcpy(&x, p, sizeof x);
    return x;
  }
  static void StoreBits(void* p, I x) { std::memcpy(p, &x, sizeof x); }
  static I Broadcast4(const int8_t* p) { return LoadBits(p); }
  static I LoadU16(const void* p) {
    uint16_t x;
    std::memcpy(&x, p, sizeof x);
    return x;
  }
  static F LoadF16(const void* p) {
    const uint32_t half = LoadU16(p);
    const float scaled = std::bit_cast<float>((half & 0x7fff) << 13) * 0x1p112f;
    return std::bit_cast<float>(std::bit_cast<uint32_t>(scaled) | (half & 0x8000) << 16);
  }
  static I LoadU8(const uint8_t* p) { return *p; }
  // table[low four bits of each lane], from 16 floats.
  static F Lookup16(const float* table, I index) { return table[index & 15]; }
  static I And(I a, I b) { return a & b; }
  static I Or(I a, I b) { return a | b; }
  static I Xor(I a, I b) { return a ^ b; }
  static I AddInt(I a, I b) { return a + b; }
  static I MaxInt(I a, I b) { return static_cast<int32_t>(a) > static_cast<int32_t>(b) ? a : b; }
  // Over all lanes.
  static int32_t SumInt(I x) { return static_cast<int32_t>(x); }
  static int32_t LargestInt(I x) { return static_cast<int32_t>(x); }
  // The low byte of each lane.
  static void StoreBytes(void* p, I x) { std::memcpy(p, &x, 1); }
  template <int kBits>
  static I ShiftLeft(I x) {
    return x << kBits;
  }
  template <int kBits>
  static I ShiftRight(I x) {
    return x >> kBits;
  }
  template <int kBits>
  static I ShiftRightSigned(I x) {
    return static_cast<uint32_t>(static_cast<int32_t>(x) >> kBits);
  }
  // Both 16-bit halves of a lane, signed. MulRound16: (a · b + 2^14) >> 15.
  template <typename Operation>
  static I ForHalves(I a, I b, Operation&& operation) {
    const auto half = [&](int shift) {
      const int32_t result = operation(int32_t{static_cast<int16_t>(a >> shift)},
                                       int32_t{static_cast<int16_t>(b >> shift)});
      return (static_cast<uint32_t>(result) & 0xffff) << shift;
    };
    return half(0) | half(16);
  }
  static I MulRound16(I a, I b) {
    return ForHalves(a, b, [](int32_t x, int32_t y) { return (x * y + (1 << 14)) >> 15; });
  }
  static I Min16(I a, I b) {
    return ForHalves(a, b, [](int32_t x, int32_t y) { return x < y ? x : y; });
  }
  static I Max16(I a, I b) {
    return ForHalves(a, b, [](int32_t x, int32_t y) { return x > y ? x : y; });
  }
  // Per lane: acc + the two products.
  static I Dot16(I acc, I a, I b) {
    for (int shift = 0; shift < 32; shift += 16) {
      const int32_t product = static_cast<int16_t>(a >> shift) * static_cast<int16_t>(b >> shift);
      acc += static_cast<uint32_t>(product);
    }
    return acc;
  }
  // Per lane: acc + sum of four products of unsigned and signed bytes, at most eight times before
  // FinishDot.
  static constexpr int kDotBits = 32;
  static I Dot(I acc, I u8, I s8) {
    for (int i = 0; i < 4; ++i) {
      const auto product = static_cast<int32_t>((u8 >> (8 * i)) & 0xff) *
                           static_cast<int8_t>((s8 >> (8 * i)) & 0xff);
      acc += static_cast<uint32_t>(product);
    }
    return acc;
  }
  static I FinishDot(I acc) { return acc; }
  // Per lane: acc + sum of four products of weights - kWideOffset and signed bytes, all 32 bits.
  static constexpr int kWideOffset = 0;
  static I DotWide(I acc, I s8, I x) {
    for (int i = 0; i < 4; ++i) {
      const auto product =
          static_cast<int8_t>((s8 >> (8 * i)) & 0xff) * static_cast<int8_t>((x >> (8 * i)) & 0xff);
      acc += static_cast<uint32_t>(product);
    }
    return acc;
  }
  // table[byte] for bytes up to 15.
  static I LookupBytes(const uint8_t* table, I bytes) {
    I out = 0;
    for (int i = 0; i < 4; ++i) out |= uint32_t{table[(bytes >> (8 * i)) & 15]} << (8 * i);
    return out;
  }
};

}  // namespace
}  // namespace lsg
