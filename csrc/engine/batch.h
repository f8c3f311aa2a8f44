// One batch of tokens for routed experts, in host memory.
#pragma once

#include <cstdint>

namespace lsg {

enum class FloatDtype { kF32, kBf16, kF16 };

struct Batch {
  const void* hidden;         // [tokens, H]
  const int32_t* topk_ids;    // [tokens, top_k], negative: none
  const float* topk_weights;  // [tokens, top_k]
  void* out;                  // [tokens, H]
  int tokens;
  int top_k;
  FloatDtype dtype;  // of hidden and out
};

}  // namespace lsg
