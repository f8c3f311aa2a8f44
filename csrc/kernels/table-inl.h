// The kernel table of the including level.
#pragma once

#include "kernels/activate-inl.h"
#include "kernels/kernels.h"
#include "kernels/panel-inl.h"
#include "kernels/quantize-inl.h"

namespace lsg {
namespace {

constexpr Kernels MakeTable(Isa isa) {
  return {
      .isa = isa,
      .int4_bf16_scales = {&Int4Int8Entry<ScaleBf16>, &Int4FloatEntry<ScaleBf16>},
      .int4_f16_scales = {&Int4Int8Entry<ScaleF16>, &Int4FloatEntry<ScaleF16>},
      .int4_f32_scales = {&Int4Int8Entry<ScaleF32>, &Int4FloatEntry<ScaleF32>},
      .bf16 = {nullptr, &HalfFloatEntry<Bf16Pair>},
      .f16 = {nullptr, &HalfFloatEntry<F16Pair>},
      .activate = &Activate,
      .quantize_row = &QuantizeRow,
      .quantize_int4_group = &QuantizeInt4Group,
  };
}

}  // namespace
}  // namespace lsg
