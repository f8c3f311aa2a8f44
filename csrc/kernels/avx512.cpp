#include "kernels/simd_avx512-inl.h"
// The vocabulary comes first: the templates below are written in it.
#include "kernels/table-inl.h"

namespace lsg::avx512 {

const Kernels& Table() {
  static constexpr Kernels kTable = MakeTable(Isa::kAvx512);
  return kTable;
}

}  // namespace lsg::avx512
