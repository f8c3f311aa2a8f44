#include "engine/float_rows.h"

#include <cstring>

#include "base/float16.h"

namespace lsg {

void ToFloat(const void* source, FloatDtype dtype, int64_t offset, int count, float* out) {
  switch (dtype) {
    case FloatDtype::kF32:
      std::memcpy(out, static_cast<const float*>(source) + offset, count * sizeof(float));
      return;
    case FloatDtype::kBf16: {
      const uint16_t* bits = static_cast<const uint16_t*>(source) + offset;
      for (int i = 0; i < count; ++i) out[i] = Bf16ToF32(bits[i]);
      return;
    }
    case FloatDtype::kF16: {
      const uint16_t* bits = static_cast<const uint16_t*>(source) + offset;
      for (int i = 0; i < count; ++i) out[i] = F16ToF32(bits[i]);
      return;
    }
  }
}

void FromFloat(const float* source, FloatDtype dtype, int64_t offset, int count, void* out) {
  switch (dtype) {
    case FloatDtype::kF32:
      std::memcpy(static_cast<float*>(out) + offset, source, count * sizeof(float));
      return;
    case FloatDtype::kBf16: {
      uint16_t* bits = static_cast<uint16_t*>(out) + offset;
      for (int i = 0; i < count; ++i) bits[i] = F32ToBf16(source[i]);
      return;
    }
    case FloatDtype::kF16: {
      uint16_t* bits = static_cast<uint16_t*>(out) + offset;
      for (int i = 0; i < count; ++i) bits[i] = F32ToF16(source[i]);
      return;
    }
  }
}

}  // namespace lsg
