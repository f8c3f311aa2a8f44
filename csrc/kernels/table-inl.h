// The kernel table of the including level.
#pragma once

#include "kernels/activate-inl.h"
#include "kernels/kernels.h"
#include "kernels/panel_float-inl.h"
#include "kernels/panel_int8-inl.h"
#include "kernels/quantize-inl.h"
#include "kernels/quantize_formats-inl.h"
#include "kernels/quantize_int4-inl.h"

namespace lsg {
namespace {

constexpr Kernels MakeTable(Isa isa) {
  return {
      .isa = isa,
      .int4 = {&Int8Entry, &FloatEntry<Int4Weight, 1>},
      .int4_halves = {nullptr, &FloatEntry<Int4Weight, 2>},
      .int8 = {nullptr, &FloatEntry<Int8Weight, 1>},
      .uint8 = {nullptr, &FloatEntry<UInt8Weight, 1>},
      .fp8_e4m3 = {nullptr, &FloatEntry<E4m3Weight, 1>},
      .fp8_e5m2 = {nullptr, &FloatEntry<E5m2Weight, 1>},
      .fp4_e2m1 = {nullptr, &FloatEntry<E2m1Weight, 1>},
      .fp4_e2m1_halves = {nullptr, &FloatEntry<E2m1Weight, 2>},
      .bf16 = {nullptr, &FloatEntry<Bf16Weight, 1>},
      .f16 = {nullptr, &FloatEntry<F16Weight, 1>},
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
