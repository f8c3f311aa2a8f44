// Rounding sizes up.
#pragma once

#include <cstdint>

namespace lsg {

constexpr uint64_t AlignUp(uint64_t value, uint64_t alignment) {
  return (value + alignment - 1) / alignment * alignment;
}

constexpr int CeilDiv(int value, int divisor) { return (value + divisor - 1) / divisor; }

}  // namespace lsg
