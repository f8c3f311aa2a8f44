// The kernel table of the including level.
#pragma once

#include "kernels/activate-inl.h"
#include "kernels/kernels.h"
#include "kernels/panel_float-inl.h"
#include "kernels/panel_int8-inl.h"
#include "kernels/quantize-inl.h"
#include "kernels/quantize_formats-inl.h"
#include "kernels/quantize_int4-inl.h"
#include "kernels/sweep_float-inl.h"
#include "kernels/sweep_int8-inl.h"

namespace lsg {
namespace {

template <class Integer, class Float, int kGroups>
constexpr PanelKernels Both() {
  return {&Int8Entry<Integer, kGroups>, &FloatEntry<Float, kGroups>, &kInt8Sweep<Integer, kGroups>,
          &kFloatSweep<Float, kGroups>};
}

template <class Float>
constexpr PanelKernels FloatOnly() {
  return {nullptr, &FloatEntry<Float, 1>, nullptr, &kFloatSweep<Float, 1>};
}

constexpr Kernels MakeTable(Isa isa) {
  return {
      .isa = isa,
      .int4 = Both<Int4Operand, Int4Weight, 1>(),
      .int4_halves = Both<Int4Operand, Int4Weight, 2>(),
      .int8 = Both<Int8Operand, Int8Weight, 1>(),
      .uint8 = Both<UInt8Operand, UInt8Weight, 1>(),
      .fp8_e4m3 = FloatOnly<E4m3Weight>(),
      .fp8_e5m2 = FloatOnly<E5m2Weight>(),
      .fp4_e2m1 = Both<E2m1Operand, E2m1Weight, 1>(),
      .fp4_e2m1_halves = Both<E2m1Operand, E2m1Weight, 2>(),
      .bf16 = FloatOnly<Bf16Weight>(),
      .f16 = FloatOnly<F16Weight>(),
      .activate = &Activate,
      .quantize_row = &QuantizeRow,
      .weights = {.expand = &ExpandRow,
                  .largest = &LargestOfRow,
                  .int4 = &QuantizeInt4,
                  .int8 = &QuantizeInt8,
                  .mxfp4 = &QuantizeMxfp4,
                  .nvfp4 = &QuantizeNvfp4,
                  .fp8 = &QuantizeFp8,
                  .half = &RoundToHalf},
  };
}

}  // namespace
}  // namespace lsg
