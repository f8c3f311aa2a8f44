#include "kernels/simd_avx512-inl.h"
// The vocabulary comes first: the templates below are written in it.
#include "kernels/sweep_amx_bf16-inl.h"
#include "kernels/sweep_amx_int8-inl.h"
#include "kernels/table-inl.h"

namespace lsg::amx {
namespace {

template <auto sweep, class Order>
constexpr void UseForFloats(PanelKernels& kernels) {
  kernels.f32_sweep = &kBf16Sweep<sweep, Order>;
}

template <class Format, int kGroups = 1>
constexpr void UseForFloats(PanelKernels& kernels) {
  UseForFloats<&SweepBf16<Format, kGroups>, typename Format::Order>(kernels);
}

// Weights of int8 or fewer bits meet int8 inputs.
template <auto sweep>
constexpr void UseInt8(PanelKernels& kernels) {
  kernels.int8_sweep = &kInt8GroupSweep<sweep>;
}

// Few tokens read weights faster than any unit multiplies them: only the sweeps differ from VNNI's.
// The BF16 level's panels gained nothing on 16 threads, and fp8 lost 10 % with 64 tokens.
constexpr Kernels WithMatrixUnit() {
  Kernels table = MakeTable(Isa::kAmx);
  UseForFloats<kSweepInt4Bf16<1>, NibbleOrder>(table.int4);
  UseForFloats<kSweepInt4Bf16<2>, NibbleOrder>(table.int4_halves);
  UseForFloats<Int8Pairs<false>>(table.int8);
  UseForFloats<Int8Pairs<true>>(table.uint8);
  UseForFloats<Fp8Pairs<4>>(table.fp8_e4m3);
  UseForFloats<Fp8Pairs<5>>(table.fp8_e5m2);
  UseForFloats<NibblePairs<false, false>>(table.fp4_e2m1);
  UseForFloats<NibblePairs<false, false>, 2>(table.fp4_e2m1_halves);
  UseInt8<kSweepInt4Groups<1>>(table.int4);
  UseInt8<kSweepInt4Groups<2>>(table.int4_halves);
  UseInt8<&SweepGroups<Int8Integers, 1>>(table.int8);
  // Zero points leave integers of nine bits.
  table.uint8.int8_sweep = table.uint8.f32_sweep;
  UseInt8<&SweepGroups<Fp8Integers<4>, 1>>(table.fp8_e4m3);
  UseInt8<&SweepGroups<Fp8Integers<5>, 1>>(table.fp8_e5m2);
  UseInt8<&SweepGroups<NibbleIntegers<false, false>, 1>>(table.fp4_e2m1);
  UseInt8<&SweepGroups<NibbleIntegers<false, false>, 2>>(table.fp4_e2m1_halves);
  UseForFloats<Bf16Pairs>(table.bf16);
  UseForFloats<F16Pairs>(table.f16);
  return table;
}

}  // namespace

const Kernels& Table() {
  static constexpr Kernels kTable = WithMatrixUnit();
  return kTable;
}

}  // namespace lsg::amx
