// The vector vocabulary of the kernels on AVX-512 (F, BW, VL, DQ), and on VNNI where the compiler
// may use it: 16 lanes.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace lsg {
namespace {

struct Simd {
  static constexpr int kLanes = 16;
  using F = __m512;
  using I = __m512i;

  static F Zero() { return _mm512_setzero_ps(); }
  static F Set1(float x) { return _mm512_set1_ps(x); }
  static F Load(const float* p) { return _mm512_loadu_ps(p); }
  static void Store(float* p, F x) { _mm512_storeu_ps(p, x); }
  static F Add(F a, F b) { return _mm512_add_ps(a, b); }
  static F Sub(F a, F b) { return _mm512_sub_ps(a, b); }
  static F Mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static F Div(F a, F b) { return _mm512_div_ps(a, b); }
  static F Fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  static F Min(F a, F b) { return _mm512_min_ps(a, b); }
  static F Max(F a, F b) { return _mm512_max_ps(a, b); }
  static F Round(F x) {
    return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  static F FromInt(I x) { return _mm512_cvtepi32_ps(x); }
  static I ToInt(F x) { return _mm512_cvtps_epi32(x); }
  static F FromBits(I x) { return _mm512_castsi512_ps(x); }
  static I Bits(F x) { return _mm512_castps_si512(x); }

  static I ZeroBits() { return _mm512_setzero_si512(); }
  static I Set1Bits(uint32_t x) { return _mm512_set1_epi32(static_cast<int>(x)); }
  static I LoadBits(const void* p) { return _mm512_loadu_si512(p); }
  static void StoreBits(void* p, I x) { _mm512_storeu_si512(p, x); }
  static I Broadcast4(const int8_t* p) {
    return _mm512_castps_si512(_mm512_set1_ps(*reinterpret_cast<const float*>(p)));
  }
  static I LoadU16(const void* p) {
    return _mm512_cvtepu16_epi32(_mm256_loadu_si256(static_cast<const __m256i*>(p)));
  }
  static F LoadF16(const void* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(static_cast<const __m256i*>(p)));
  }
  static I LoadU8(const uint8_t* p) {
    return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  // table[low four bits of each lane], from 16 floats.
  static F Lookup16(const float* table, I index) {
    return _mm512_permutexvar_ps(index, Load(table));
  }
  static I And(I a, I b) { return _mm512_and_si512(a, b); }
  static I Or(I a, I b) { return _mm512_or_si512(a, b); }
  static I Xor(I a, I b) { return _mm512_xor_si512(a, b); }
  static I AddInt(I a, I b) { return _mm512_add_epi32(a, b); }
  static I MaxInt(I a, I b) { return _mm512_max_epi32(a, b); }
  static int32_t SumInt(I x) { return _mm512_reduce_add_epi32(x); }
  static int32_t LargestInt(I x) { return _mm512_reduce_max_epi32(x); }
  static void StoreBytes(void* p, I x) {
    _mm_storeu_si128(static_cast<__m128i*>(p), _mm512_cvtepi32_epi8(x));
  }
  template <int kBits>
  static I ShiftLeft(I x) {
    return _mm512_slli_epi32(x, kBits);
  }
  template <int kBits>
  static I ShiftRight(I x) {
    return _mm512_srli_epi32(x, kBits);
  }
  template <int kBits>
  static I ShiftRightSigned(I x) {
    return _mm512_srai_epi32(x, kBits);
  }
  // Both 16-bit halves of a lane, signed. MulRound16: (a · b + 2^14) >> 15.
  static I MulRound16(I a, I b) { return _mm512_mulhrs_epi16(a, b); }
  static I Min16(I a, I b) { return _mm512_min_epi16(a, b); }
  static I Max16(I a, I b) { return _mm512_max_epi16(a, b); }
#ifdef __AVX512VNNI__
  // Per lane: acc + the two products.
  static I Dot16(I acc, I a, I b) { return _mm512_dpwssd_epi32(acc, a, b); }
  static constexpr int kDotBits = 32;
  static I Dot(I acc, I u8, I s8) { return _mm512_dpbusd_epi32(acc, u8, s8); }
  static I FinishDot(I acc) { return acc; }
  // The instruction takes unsigned weights.
  static constexpr int kWideOffset = 128;
  static I DotWide(I acc, I u8, I x) { return _mm512_dpbusd_epi32(acc, u8, x); }
#else
  static I Dot16(I acc, I a, I b) { return _mm512_add_epi32(acc, _mm512_madd_epi16(a, b)); }
  // 16-bit sums as on AVX2; eight fit.
  static constexpr int kDotBits = 16;
  static I Dot(I acc, I u8, I s8) { return _mm512_add_epi16(acc, _mm512_maddubs_epi16(u8, s8)); }
  static I FinishDot(I acc) { return _mm512_madd_epi16(acc, _mm512_set1_epi16(1)); }
  // |w| · (x with w's sign): two products are at most 2 · 128 · 127 < 32768.
  static constexpr int kWideOffset = 0;
  static I DotWide(I acc, I s8, I x) {
    const I signed_x = _mm512_mask_sub_epi8(x, _mm512_movepi8_mask(s8), _mm512_setzero_si512(), x);
    const I pairs = _mm512_maddubs_epi16(_mm512_abs_epi8(s8), signed_x);
    return _mm512_add_epi32(acc, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)));
  }
#endif
  static I LookupBytes(const uint8_t* table, I bytes) {
    const __m128i values = _mm_load_si128(reinterpret_cast<const __m128i*>(table));
    return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(values), bytes);
  }
};

}  // namespace
}  // namespace lsg
