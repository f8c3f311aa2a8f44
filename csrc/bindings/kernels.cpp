#include "kernels/kernels.h"

#include <malloc.h>
#include <pybind11/native_enum.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "bindings/bindings.h"
#include "cpu/isa.h"

namespace py = pybind11;

namespace lsg {

void BindKernels(py::module_& module) {
  py::native_enum<Isa>(module, "Isa", "enum.Enum")
      .value("SCALAR", Isa::kScalar)
      .value("AVX2", Isa::kAvx2)
      .value("AVX512", Isa::kAvx512)
      .value("VNNI", Isa::kVnni)
      .value("BF16", Isa::kBf16)
      .value("AMX", Isa::kAmx)
      .finalize();
  module.def("isa_levels", &UsableIsas);
  module.def("select_isa", &SelectIsa, py::arg("name") = "");
  module.def(
      "kernel_isa", [](const std::string& name) { return KernelsOf(SelectIsa(name)).isa; },
      py::arg("name") = "");

  // Large arrays that come and go are otherwise mapped, faulted in page by page, and unmapped each
  // time: half of a conversion's time.
  module.def("keep_freed_memory", [] {
    constexpr int kLargestMmapThreshold = 32 << 20;  // glibc's limit
    mallopt(M_MMAP_THRESHOLD, kLargestMmapThreshold);
    mallopt(M_TRIM_THRESHOLD, 1 << 30);
  });
}

}  // namespace lsg
