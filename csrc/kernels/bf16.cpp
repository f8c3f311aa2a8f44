#include "kernels/simd_avx512-inl.h"
// The vocabulary comes first: the templates below are written in it.
#include "kernels/panel_bf16-inl.h"
#include "kernels/sweep_bf16-inl.h"
#include "kernels/table-inl.h"

namespace lsg::bf16 {
namespace {

// Formats that have no int8 kernels: products of int8 are twice as many an instruction, and exact.
constexpr Kernels WithBf16Products() {
  Kernels table = MakeTable(Isa::kBf16);
  UseBf16Panels(table);
  table.fp8_e4m3.f32_sweep = &kBf16Sweep<Fp8Pairs<4>>;
  table.fp8_e5m2.f32_sweep = &kBf16Sweep<Fp8Pairs<5>>;
  table.bf16.f32_sweep = &kBf16Sweep<Bf16Pairs>;
  table.f16.f32_sweep = &kBf16Sweep<F16Pairs>;
  return table;
}

}  // namespace

const Kernels& Table() {
  static constexpr Kernels kTable = WithBf16Products();
  return kTable;
}

}  // namespace lsg::bf16
