#include <immintrin.h>

#include "limits/loops.h"

namespace lsg::vnni {
namespace {

constexpr int kSums = 16;

void Dpbusd(int64_t turns) {
  const __m512i a = _mm512_set1_epi8(5), b = _mm512_set1_epi8(3);
  __m512i sums[kSums];
#pragma GCC unroll 16
  for (int i = 0; i < kSums; ++i) sums[i] = b;
  for (int64_t turn = 0; turn < turns; ++turn) {
#pragma GCC unroll 16
    for (int i = 0; i < kSums; ++i) {
      __asm__ volatile("vpdpbusd %2, %1, %0" : "+v"(sums[i]) : "v"(a), "v"(b));
    }
  }
}

}  // namespace

Loop DpbusdLoop() { return {&Dpbusd, kSums * 64 * 2}; }

}  // namespace lsg::vnni
