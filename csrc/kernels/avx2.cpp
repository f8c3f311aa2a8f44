#include "kernels/simd_avx2-inl.h"
// The vocabulary comes first: the templates below are written in it.
#include "kernels/table-inl.h"

namespace lsg::avx2 {

const Kernels& Table() {
  static constexpr Kernels kTable = MakeTable(Isa::kAvx2);
  return kTable;
}

}  // namespace lsg::avx2
