#include "kernels/simd_avx512-inl.h"
// The vocabulary comes first: the templates below are written in it.
#include "kernels/sweep_amx_bf16-inl.h"
#include "kernels/table-inl.h"

namespace lsg::amx {
namespace {

template <auto sweep, class Order>
constexpr void UseSweep(PanelKernels& kernels) {
  kernels.f32_sweep = &kBf16Sweep<sweep, Order>;
  // What few tokens meet as int8, many meet as bf16: more exact, and faster here.
  if (kernels.int8 != nullptr) kernels.int8_sweep = kernels.f32_sweep;
}

template <class Format, int kGroups = 1>
constexpr void UseSweep(PanelKernels& kernels) {
  UseSweep<&SweepBf16<Format, kGroups>, typename Format::Order>(kernels);
}

// Few tokens read weights faster than any unit multiplies them: only the sweeps differ from VNNI's.
constexpr Kernels WithMatrixUnit() {
  Kernels table = MakeTable(Isa::kAmx);
  UseSweep<&SweepInt4<1>, NibbleOrder>(table.int4);
  UseSweep<&SweepInt4<2>, NibbleOrder>(table.int4_halves);
  UseSweep<Int8Pairs<false>>(table.int8);
  UseSweep<Int8Pairs<true>>(table.uint8);
  UseSweep<Fp8Pairs<4>>(table.fp8_e4m3);
  UseSweep<Fp8Pairs<5>>(table.fp8_e5m2);
  UseSweep<NibblePairs<false, false>>(table.fp4_e2m1);
  UseSweep<NibblePairs<false, false>, 2>(table.fp4_e2m1_halves);
  UseSweep<Bf16Pairs>(table.bf16);
  UseSweep<F16Pairs>(table.f16);
  return table;
}

}  // namespace

const Kernels& Table() {
  static constexpr Kernels kTable = WithMatrixUnit();
  return kTable;
}

}  // namespace lsg::amx
