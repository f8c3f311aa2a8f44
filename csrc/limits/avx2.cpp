#include <immintrin.h>

#include "limits/loops.h"

namespace lsg::avx2 {
namespace {

// Latency 4, two a cycle: 8 sums would do.
constexpr int kSums = 12;

void Fma(int64_t turns) {
  const __m256 a = _mm256_set1_ps(1.0f), b = _mm256_set1_ps(1e-6f);
  __m256 sums[kSums];
#pragma GCC unroll 12
  for (int i = 0; i < kSums; ++i) sums[i] = b;
  for (int64_t turn = 0; turn < turns; ++turn) {
#pragma GCC unroll 12
    for (int i = 0; i < kSums; ++i) {
      __asm__ volatile("vfmadd231ps %2, %1, %0" : "+x"(sums[i]) : "x"(a), "x"(b));
    }
  }
}

// Eight products of 4-bit and 8-bit codes fit into 16 bits: 8 · 2 · 15 · 127.
constexpr int kMaddSums = 6;
constexpr int kAdditions = 8;

void MaddUbs(int64_t turns) {
  const __m256i a = _mm256_set1_epi8(5), b = _mm256_set1_epi8(3), ones = _mm256_set1_epi16(1);
  __m256i wide[kMaddSums];
#pragma GCC unroll 6
  for (int i = 0; i < kMaddSums; ++i) wide[i] = b;
  for (int64_t turn = 0; turn < turns; ++turn) {
    __m256i sums[kMaddSums];
#pragma GCC unroll 6
    for (int i = 0; i < kMaddSums; ++i) {
      __asm__ volatile("vpmaddubsw %2, %1, %0" : "=x"(sums[i]) : "x"(a), "x"(b));
    }
#pragma GCC unroll 7
    for (int k = 1; k < kAdditions; ++k) {
#pragma GCC unroll 6
      for (int i = 0; i < kMaddSums; ++i) {
        __m256i product;
        __asm__ volatile("vpmaddubsw %3, %2, %1\n\tvpaddw %1, %0, %0"
                         : "+x"(sums[i]), "=&x"(product)
                         : "x"(a), "x"(b));
      }
    }
#pragma GCC unroll 6
    for (int i = 0; i < kMaddSums; ++i) {
      wide[i] = _mm256_add_epi32(wide[i], _mm256_madd_epi16(sums[i], ones));
    }
  }
#pragma GCC unroll 6
  for (int i = 0; i < kMaddSums; ++i) __asm__ volatile("" : : "x"(wide[i]));
}

}  // namespace

Loop FmaLoop() { return {&Fma, kSums * 8 * 2}; }
Loop MaddUbsLoop() { return {&MaddUbs, kMaddSums * kAdditions * 32 * 2}; }

}  // namespace lsg::avx2
