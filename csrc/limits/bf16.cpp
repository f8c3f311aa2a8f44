#include <immintrin.h>

#include "limits/loops.h"

namespace lsg::bf16 {
namespace {

constexpr int kSums = 16;

void Dpbf16(int64_t turns) {
  const __m512 a = _mm512_set1_ps(1.0f), b = _mm512_set1_ps(1e-6f);
  __m512 sums[kSums];
#pragma GCC unroll 16
  for (int i = 0; i < kSums; ++i) sums[i] = b;
  for (int64_t turn = 0; turn < turns; ++turn) {
#pragma GCC unroll 16
    for (int i = 0; i < kSums; ++i) {
      __asm__ volatile("vdpbf16ps %2, %1, %0" : "+v"(sums[i]) : "v"(a), "v"(b));
    }
  }
}

}  // namespace

Loop Dpbf16Loop() { return {&Dpbf16, kSums * 32 * 2}; }

}  // namespace lsg::bf16
