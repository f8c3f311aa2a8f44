#include <immintrin.h>

#include "limits/loops.h"

namespace lsg::avx512 {
namespace {

constexpr int kSums = 16;

void Fma(int64_t turns) {
  const __m512 a = _mm512_set1_ps(1.0f), b = _mm512_set1_ps(1e-6f);
  __m512 sums[kSums];
#pragma GCC unroll 16
  for (int i = 0; i < kSums; ++i) sums[i] = b;
  for (int64_t turn = 0; turn < turns; ++turn) {
#pragma GCC unroll 16
    for (int i = 0; i < kSums; ++i) {
      __asm__ volatile("vfmadd231ps %2, %1, %0" : "+v"(sums[i]) : "v"(a), "v"(b));
    }
  }
}

// As in avx2.cpp.
constexpr int kMaddSums = 8;
constexpr int kAdditions = 8;

void MaddUbs(int64_t turns) {
  const __m512i a = _mm512_set1_epi8(5), b = _mm512_set1_epi8(3), ones = _mm512_set1_epi16(1);
  __m512i wide[kMaddSums];
#pragma GCC unroll 8
  for (int i = 0; i < kMaddSums; ++i) wide[i] = b;
  for (int64_t turn = 0; turn < turns; ++turn) {
    __m512i sums[kMaddSums];
#pragma GCC unroll 8
    for (int i = 0; i < kMaddSums; ++i) {
      __asm__ volatile("vpmaddubsw %2, %1, %0" : "=v"(sums[i]) : "v"(a), "v"(b));
    }
#pragma GCC unroll 7
    for (int k = 1; k < kAdditions; ++k) {
#pragma GCC unroll 8
      for (int i = 0; i < kMaddSums; ++i) {
        __m512i product;
        __asm__ volatile("vpmaddubsw %3, %2, %1\n\tvpaddw %1, %0, %0"
                         : "+v"(sums[i]), "=&v"(product)
                         : "v"(a), "v"(b));
      }
    }
#pragma GCC unroll 8
    for (int i = 0; i < kMaddSums; ++i) {
      wide[i] = _mm512_add_epi32(wide[i], _mm512_madd_epi16(sums[i], ones));
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < kMaddSums; ++i) __asm__ volatile("" : : "v"(wide[i]));
}

}  // namespace

Loop FmaLoop() { return {&Fma, kSums * 16 * 2}; }
Loop MaddUbsLoop() { return {&MaddUbs, kMaddSums * kAdditions * 64 * 2}; }

}  // namespace lsg::avx512
