// The vector vocabulary of the kernels on AVX2, FMA and F16C: eight lanes.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace lsg {
namespace {

struct Simd {
  static constexpr int kLanes = 8;
  using F = __m256;
  using I = __m256i;

  static F Zero() { return _mm256_setzero_ps(); }
  static F Set1(float x) { return _mm256_set1_ps(x); }
  static F Load(const float* p) { return _mm256_loadu_ps(p); }
  static void Store(float* p, F x) { _mm256_storeu_ps(p, x); }
  static F Add(F a, F b) { return _mm256_add_ps(a, b); }
  static F Sub(F a, F b) { return _mm256_sub_ps(a, b); }
  static F Mul(F a, F b) { return _mm256_mul_ps(a, b); }
  static F Div(F a, F b) { return _mm256_div_ps(a, b); }
  static F Fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
  static F Min(F a, F b) { return _mm256_min_ps(a, b); }
  static F Max(F a, F b) { return _mm256_max_ps(a, b); }
  static F Round(F x) { return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  static F FromInt(I x) { return _mm256_cvtepi32_ps(x); }
  static I ToInt(F x) { return _mm256_cvtps_epi32(x); }
  static F FromBits(I x) { return _mm256_castsi256_ps(x); }
  static I Bits(F x) { return _mm256_castps_si256(x); }

  static I ZeroBits() { return _mm256_setzero_si256(); }
  static I Set1Bits(uint32_t x) { return _mm256_set1_epi32(static_cast<int>(x)); }
  static I LoadBits(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
  static void StoreBits(void* p, I x) { _mm256_storeu_si256(static_cast<__m256i*>(p), x); }
  static I Broadcast4(const int8_t* p) {
    return _mm256_castps_si256(_mm256_broadcast_ss(reinterpret_cast<const float*>(p)));
  }
  static I LoadU16(const void* p) {
    return _mm256_cvtepu16_epi32(_mm_loadu_si128(static_cast<const __m128i*>(p)));
  }
  static F LoadF16(const void* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(static_cast<const __m128i*>(p)));
  }
  static I LoadU8(const uint8_t* p) {
    return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
  }
  // table[low four bits of each lane], from 16 floats.
  static F Lookup16(const float* table, I index) {
    const F low = _mm256_permutevar8x32_ps(Load(table), index);
    const F high = _mm256_permutevar8x32_ps(Load(table + 8), index);
    return _mm256_blendv_ps(low, high, FromBits(_mm256_slli_epi32(index, 28)));
  }
  static I And(I a, I b) { return _mm256_and_si256(a, b); }
  static I Or(I a, I b) { return _mm256_or_si256(a, b); }
  static I Xor(I a, I b) { return _mm256_xor_si256(a, b); }
  static I AddInt(I a, I b) { return _mm256_add_epi32(a, b); }
  static I MaxInt(I a, I b) { return _mm256_max_epi32(a, b); }
  static int32_t SumInt(I x) {
    const __m128i four = _mm_add_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
    const __m128i two = _mm_add_epi32(four, _mm_unpackhi_epi64(four, four));
    return _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32(two, 1)));
  }
  static int32_t LargestInt(I x) {
    const __m128i four = _mm_max_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
    const __m128i two = _mm_max_epi32(four, _mm_unpackhi_epi64(four, four));
    return _mm_cvtsi128_si32(_mm_max_epi32(two, _mm_shuffle_epi32(two, 1)));
  }
  static void StoreBytes(void* p, I x) {
    const __m128i low_bytes =
        _mm_setr_epi8(0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1);
    const __m128i low = _mm_shuffle_epi8(_mm256_castsi256_si128(x), low_bytes);
    const __m128i high = _mm_shuffle_epi8(_mm256_extracti128_si256(x, 1), low_bytes);
    _mm_storel_epi64(static_cast<__m128i*>(p), _mm_unpacklo_epi32(low, high));
  }
  template <int kBits>
  static I ShiftLeft(I x) {
    return _mm256_slli_epi32(x, kBits);
  }
  template <int kBits>
  static I ShiftRight(I x) {
    return _mm256_srli_epi32(x, kBits);
  }
  template <int kBits>
  static I ShiftRightSigned(I x) {
    return _mm256_srai_epi32(x, kBits);
  }
  // Both 16-bit halves of a lane, signed. MulRound16: (a · b + 2^14) >> 15.
  static I MulRound16(I a, I b) { return _mm256_mulhrs_epi16(a, b); }
  static I Min16(I a, I b) { return _mm256_min_epi16(a, b); }
  static I Max16(I a, I b) { return _mm256_max_epi16(a, b); }
  // Per lane: acc + the two products.
  static I Dot16(I acc, I a, I b) { return _mm256_add_epi32(acc, _mm256_madd_epi16(a, b)); }
  // Sums of two products in 16 bits: with weights ≤ 15 and |x| ≤ 127, eight of them reach 30480 <
  // 32768.
  static constexpr int kDotBits = 16;
  static I Dot(I acc, I u8, I s8) { return _mm256_add_epi16(acc, _mm256_maddubs_epi16(u8, s8)); }
  static I FinishDot(I acc) { return _mm256_madd_epi16(acc, _mm256_set1_epi16(1)); }
  // |w| · (x with w's sign): two products are at most 2 · 128 · 127 < 32768.
  static constexpr int kWideOffset = 0;
  static I DotWide(I acc, I s8, I x) {
    const I pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(s8), _mm256_sign_epi8(x, s8));
    return _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
  }
  static I LookupBytes(const uint8_t* table, I bytes) {
    const __m128i values = _mm_load_si128(reinterpret_cast<const __m128i*>(table));
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(values), bytes);
  }
};

}  // namespace
}  // namespace lsg
