#include "kernels/simd_avx512-inl.h"
// The vocabulary comes first: the templates below are written in it.
#include "kernels/sweep_amx_bf16-inl.h"
#include "kernels/sweep_amx_int8-inl.h"
#include "kernels/table-inl.h"

namespace lsg::amx {
namespace {

// Few tokens read weights faster than any unit multiplies them: only the sweeps differ from VNNI's.
constexpr Kernels WithMatrixUnit() {
  Kernels table = MakeTable(Isa::kAmx);
  table.int4.int8_sweep = &kAmxInt8Sweep<Int4Operand, 1>;
  table.int4_halves.int8_sweep = &kAmxInt8Sweep<Int4Operand, 2>;
  table.int8.int8_sweep = &kAmxInt8Sweep<Int8Operand, 1>;
  table.uint8.int8_sweep = &kAmxInt8Sweep<UInt8Operand, 1>;
  table.fp4_e2m1.int8_sweep = &kAmxInt8Sweep<E2m1Operand, 1>;
  table.fp4_e2m1_halves.int8_sweep = &kAmxInt8Sweep<E2m1Operand, 2>;
  table.bf16.f32_sweep = &kBf16Sweep<Bf16Pairs>;
  table.f16.f32_sweep = &kBf16Sweep<F16Pairs>;
  table.fp8_e4m3.f32_sweep = &kBf16Sweep<Fp8Pairs<4>>;
  table.fp8_e5m2.f32_sweep = &kBf16Sweep<Fp8Pairs<5>>;
  table.int4.f32_sweep = &kBf16Sweep<NibblePairs<true>>;
  table.fp4_e2m1.f32_sweep = &kBf16Sweep<NibblePairs<false>>;
  table.int8.f32_sweep = &kBf16Sweep<Int8Pairs>;
  return table;
}

}  // namespace

const Kernels& Table() {
  static constexpr Kernels kTable = WithMatrixUnit();
  return kTable;
}

}  // namespace lsg::amx
