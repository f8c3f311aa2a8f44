// How a line of a format's codes becomes int8, in steps of a group's (int8_groups-inl.h).
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>

namespace lsg {
namespace {

// An output's factor for each of its inputs: of the low and the high eight bytes of 16, as a row
// has four inputs of an output side by side.
struct Factors {
  __m512i low, high;

  explicit Factors(__m512 factor) {
    const __m512i whole = _mm512_cvtps_epi32(factor);
    const __m512i halves = _mm512_mask_blend_epi16(0xaaaaaaaa, whole, _mm512_slli_epi32(whole, 16));
    low = _mm512_unpacklo_epi32(halves, halves);
    high = _mm512_unpackhi_epi32(halves, halves);
  }
};

// Integer formats: Integers turns a line of codes into kRows rows of integers, which times kUnit
// are the weights' values before their scales. Scaled makes a row steps of the largest scale, kStep
// long: kOneFactor is the factor of that scale itself.

// Values of at most kReach in magnitude: zero points are at most 16 (FORMAT.md).
template <bool kInteger, bool kHasZeroPoints>
struct NibbleIntegers {
  static constexpr int kBits = 4;
  static constexpr int kRows = 2;
  static constexpr int kReach = !kInteger ? 12 : kHasZeroPoints ? 16 : 8;
  // What a code of kReach with the largest scale becomes: a multiple, so that all with that scale
  // are exact.
  static constexpr int kLargest = kHasZeroPoints ? 112 : 120;
  static_assert(kLargest % kReach == 0);
  static constexpr float kStep = 1.0f * kReach / kLargest;
  // Products of integer · 2^8 and a factor are rounded at bit 15.
  static constexpr float kOneFactor = 128.0f / kStep;
  static constexpr float kUnit = kInteger ? 1.0f : 0.5f;
  static constexpr bool kZeroPoints = kHasZeroPoints;

  // zero_point: of a lane's output, in each of its bytes.
  static void Integers(__m512i codes, __m512i zero_point, __m512i* rows) {
    const __m512i low_nibbles = _mm512_set1_epi8(0x0f);
    rows[0] = Value(_mm512_and_si512(codes, low_nibbles), zero_point);
    rows[1] = Value(_mm512_and_si512(_mm512_srli_epi16(codes, 4), low_nibbles), zero_point);
  }
  static __m512i Scaled(__m512i row, const Factors& factors) {
    const __m512i zero = _mm512_setzero_si512();
    return _mm512_packs_epi16(_mm512_mulhrs_epi16(_mm512_unpacklo_epi8(zero, row), factors.low),
                              _mm512_mulhrs_epi16(_mm512_unpackhi_epi8(zero, row), factors.high));
  }

 private:
  static __m512i Value(__m512i nibbles, __m512i zero_point) {
    if constexpr (kInteger) {
      return _mm512_sub_epi8(nibbles, kHasZeroPoints ? zero_point : _mm512_set1_epi8(8));
    } else {
      alignas(16) static constexpr int8_t kDoubled[16] = {0, 1,  2,  3,  4,  6,  8,  12,
                                                          0, -1, -2, -3, -4, -6, -8, -12};
      const __m128i table = _mm_load_si128(reinterpret_cast<const __m128i*>(kDoubled));
      return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(table), nibbles);
    }
  }
};

struct Int8Integers {
  static constexpr int kBits = 8;
  static constexpr int kRows = 1;
  // -128 times a negative factor has to fit.
  static constexpr float kStep = 128.0f / 127.0f;
  static constexpr float kOneFactor = 32768.0f / kStep;
  static constexpr float kUnit = 1.0f;
  static constexpr bool kZeroPoints = false;

  static void Integers(__m512i codes, __m512i, __m512i* rows) { rows[0] = codes; }
  static __m512i Scaled(__m512i row, const Factors& factors) {
    const __m512i low = _mm512_srai_epi16(_mm512_unpacklo_epi8(row, row), 8);
    const __m512i high = _mm512_srai_epi16(_mm512_unpackhi_epi8(row, row), 8);
    return _mm512_packs_epi16(_mm512_mulhrs_epi16(low, factors.low),
                              _mm512_mulhrs_epi16(high, factors.high));
  }
};

// Magnitudes of 8-bit floats as they are stored, 0 … 127.
template <int kExponentBits>
struct Fp8Magnitude {
  static constexpr int kMantissaBits = 7 - kExponentBits;
  static constexpr int kBias = (1 << (kExponentBits - 1)) - 1;
  // A power of two.
  static constexpr int kTwice = 1 << kMantissaBits;

  // Subnormal ones have the exponent of the smallest normal ones.
  static constexpr int Exponent(int code) { return std::max(code >> kMantissaBits, 1); }
  static constexpr int64_t Significand(int code) {
    return code % kTwice + (code >= kTwice ? kTwice : 0);
  }
  // In units of the smallest.
  static constexpr int64_t Integer(int code) { return Significand(code) << (Exponent(code) - 1); }
  // 2^power of a code's exponent, and so many bits more.
  static float PowerOfTwo(int exponent, int more) {
    return std::bit_cast<float>((exponent - kBias + more + 127) << 23);
  }
};

// Magnitudes with the codes' signs.
inline __m512i WithSigns(__m512i codes, __m512i magnitudes) {
  return _mm512_mask_sub_epi8(magnitudes, _mm512_movepi8_mask(codes), _mm512_setzero_si512(),
                              magnitudes);
}

// 8-bit floats in 127ths of one magnitude.
template <int kExponentBits>
class Fp8As127ths {
 public:
  using Magnitude = Fp8Magnitude<kExponentBits>;

  explicit Fp8As127ths(int largest)
      : low_(_mm512_load_si512(kTables[largest].at)),
        high_(_mm512_load_si512(kTables[largest].at + 64)) {}

  __m512i Rounded(__m512i codes) const {
    return WithSigns(codes, _mm512_permutex2var_epi8(low_, codes, high_));
  }

 private:
  struct alignas(64) Table {
    int8_t at[128] = {};
  };
  // For each largest magnitude.
  static constexpr std::array<Table, 128> kTables = [] {
    std::array<Table, 128> tables{};
    for (int largest = 1; largest < 128; ++largest) {
      const int64_t whole = Magnitude::Integer(largest);
      for (int code = 0; code <= largest; ++code) {
        tables[largest].at[code] =
            static_cast<int8_t>((2 * 127 * Magnitude::Integer(code) + whole) / (2 * whole));
      }
    }
    return tables;
  }();

  __m512i low_, high_;
};

// 8-bit floats as integers of 16 bits, which a factor makes 127ths of an output's own largest.
template <int kExponentBits>
class Fp8Integers {
 public:
  using Magnitude = Fp8Magnitude<kExponentBits>;
  using As127ths = Fp8As127ths<kExponentBits>;
  static constexpr int kBits = 8;
  static constexpr bool kZeroPoints = false;

  // `largest`: the largest magnitude of 16 outputs.
  explicit Fp8Integers(int largest) : exponent_(Magnitude::Exponent(largest)) {
    const Table& table = kTables[exponent_];
    low_[0] = _mm512_load_si512(table.low), low_[1] = _mm512_load_si512(table.low + 64);
    high_[0] = _mm512_load_si512(table.high), high_[1] = _mm512_load_si512(table.high + 64);
  }

  // What the integers count.
  float unit() const { return Magnitude::PowerOfTwo(exponent_, -kOneBits); }
  // The integers of magnitudes with three zero bytes behind each.
  __m512i Integers(__m512i magnitudes) const {
    return _mm512_or_si512(LowBytes(magnitudes), _mm512_slli_epi32(HighBytes(magnitudes), 8));
  }
  __m512i Rounded(__m512i codes, const Factors& factors) const {
    const __m512i low_bytes = LowBytes(codes), high_bytes = HighBytes(codes);
    const __m512i magnitudes = _mm512_packs_epi16(
        _mm512_mulhrs_epi16(_mm512_unpacklo_epi8(low_bytes, high_bytes), factors.low),
        _mm512_mulhrs_epi16(_mm512_unpackhi_epi8(low_bytes, high_bytes), factors.high));
    return WithSigns(codes, magnitudes);
  }

 private:
  // The largest magnitude's power of two is 2^12.
  static constexpr int kOneBits = 12;
  // Low and high bytes.
  struct Table {
    alignas(64) uint8_t low[128] = {};
    alignas(64) uint8_t high[128] = {};
  };
  // For each exponent of the largest.
  static constexpr std::array<Table, 1 << kExponentBits> kTables = [] {
    std::array<Table, 1 << kExponentBits> tables{};
    for (int exponent = 1; exponent < 1 << kExponentBits; ++exponent) {
      for (int code = 0; code < (exponent + 1) * Magnitude::kTwice; ++code) {
        const int below = exponent - Magnitude::Exponent(code);
        const int64_t twice =
            Magnitude::Significand(code) << (kOneBits + 1 - Magnitude::kMantissaBits) >> below;
        tables[exponent].low[code] = static_cast<uint8_t>((twice + 1) / 2 & 0xff);
        tables[exponent].high[code] = static_cast<uint8_t>((twice + 1) / 2 >> 8);
      }
    }
    return tables;
  }();

  __m512i LowBytes(__m512i codes) const {
    return _mm512_permutex2var_epi8(low_[0], codes, low_[1]);
  }
  __m512i HighBytes(__m512i codes) const {
    return _mm512_permutex2var_epi8(high_[0], codes, high_[1]);
  }

  int exponent_;
  __m512i low_[2], high_[2];
};

template <class Format>
constexpr bool kIsFp8 = false;
template <int kExponentBits>
constexpr bool kIsFp8<Fp8Integers<kExponentBits>> = true;

}  // namespace
}  // namespace lsg
