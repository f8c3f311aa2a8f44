// Floating-point formats of a few bits, over the Simd of the including level.
#pragma once

#include <bit>
#include <cstdint>

namespace lsg {
namespace {

constexpr float PowerOfTwo(int exponent) {
  return std::bit_cast<float>(static_cast<uint32_t>(exponent + 127) << 23);
}

inline Simd::I SignOf(Simd::F x) { return Simd::And(Simd::Bits(x), Simd::Set1Bits(0x80000000u)); }

inline Simd::F Magnitude(Simd::F x) {
  return Simd::FromBits(Simd::And(Simd::Bits(x), Simd::Set1Bits(0x7fffffffu)));
}

// kLargestCode is the pattern of the largest finite number.
template <int kExponentBits, int kMantissaBits, int kLargestCode>
struct SmallFloat {
  static constexpr int kBias = (1 << (kExponentBits - 1)) - 1;
  static constexpr int kSignBit = kExponentBits + kMantissaBits;
  static constexpr int kShift = 23 - kMantissaBits;

  // Exact, subnormals included: exponent and mantissa in float's places, read 2^(127 - bias) too
  // small.
  static constexpr float Value(uint32_t code) {
    const uint32_t magnitude = code & ((1u << kSignBit) - 1);
    const float value = std::bit_cast<float>(magnitude << kShift) * PowerOfTwo(127 - kBias);
    return std::bit_cast<float>(std::bit_cast<uint32_t>(value) | (code >> kSignBit) << 31);
  }
  static constexpr float kLargest = Value(kLargestCode);

  static Simd::F Decode(Simd::I code) {
    const Simd::I magnitude = Simd::And(code, Simd::Set1Bits((1u << kSignBit) - 1));
    const Simd::F value = Simd::Mul(Simd::FromBits(Simd::ShiftLeft<kShift>(magnitude)),
                                    Simd::Set1(PowerOfTwo(127 - kBias)));
    const Simd::I sign =
        Simd::ShiftLeft<31 - kSignBit>(Simd::And(code, Simd::Set1Bits(1u << kSignBit)));
    return Simd::FromBits(Simd::Or(Simd::Bits(value), sign));
  }

  // The nearest value, ties to even, of a magnitude that is at most the largest. Adding 1.5 powers
  // of two pushes the digits that do not fit out at the right.
  static Simd::F Rounded(Simd::F magnitude) {
    const Simd::F power =
        Simd::FromBits(Simd::And(Simd::Bits(magnitude), Simd::Set1Bits(0x7f800000u)));
    const Simd::F push = Simd::Mul(Simd::Max(power, Simd::Set1(PowerOfTwo(1 - kBias))),
                                   Simd::Set1(1.5f * PowerOfTwo(kShift)));
    return Simd::Sub(Simd::Add(magnitude, push), push);
  }

  // The code of a value that Rounded gave. As integers a float and its code differ by the biases,
  // but for subnormals, which count in steps of their own; there what the bits give is too small.
  static Simd::I CodeOf(Simd::F rounded) {
    constexpr int kBiases = (127 - kBias) << kMantissaBits;
    const Simd::I normal = Simd::AddInt(Simd::ShiftRight<kShift>(Simd::Bits(rounded)),
                                        Simd::Set1Bits(static_cast<uint32_t>(-kBiases)));
    const Simd::F steps = Simd::Mul(rounded, Simd::Set1(PowerOfTwo(kBias - 1 + kMantissaBits)));
    constexpr float kFirstNormal = 1 << kMantissaBits;
    // Codes fit 15 bits, so the maximum of both halves is that of the whole.
    return Simd::Max16(normal, Simd::ToInt(Simd::Min(steps, Simd::Set1(kFirstNormal))));
  }
};

using E4m3 = SmallFloat<4, 3, 0x7e>;
using E5m2 = SmallFloat<5, 2, 0x7b>;
using E2m1 = SmallFloat<2, 1, 0x7>;

// The power of two of an e8m0 code; its smallest is below float's normal numbers.
inline float E8m0ToF32(uint32_t code) {
  return std::bit_cast<float>(code == 0 ? 0x00400000u : code << 23);
}

}  // namespace
}  // namespace lsg
