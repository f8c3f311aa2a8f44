// Hidden states in the caller's dtype, as floats and back. Rounding is to nearest even.
#pragma once

#include <cstdint>

#include "engine/batch.h"

namespace lsg {

// out[i] = source[offset + i]
void ToFloat(const void* source, FloatDtype dtype, int64_t offset, int count, float* out);
// out[offset + i] = source[i]
void FromFloat(const float* source, FloatDtype dtype, int64_t offset, int count, void* out);

}  // namespace lsg
