#include "kernels/simd_scalar-inl.h"
// The vocabulary comes first: the templates below are written in it.
#include "kernels/table-inl.h"

namespace lsg::scalar {

const Kernels& Table() {
  static constexpr Kernels kTable = MakeTable(Isa::kScalar);
  return kTable;
}

}  // namespace lsg::scalar
