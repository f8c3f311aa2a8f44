#include "kernels/kernels.h"

#include <malloc.h>
#include <pybind11/native_enum.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cmath>
#include <string>
#include <vector>

#include "base/align.h"
#include "base/error.h"
#include "bindings/bindings.h"
#include "cpu/isa.h"

namespace py = pybind11;

namespace lsg {
namespace {

constexpr int kGroup = 32;

py::tuple QuantizeInt4(const py::array_t<uint16_t, py::array::c_style>& weight, Dtype source,
                       bool search, const std::string& isa) {
  if (weight.ndim() != 2)
    throw FormatError("weight must have two dimensions, found " + std::to_string(weight.ndim()));
  if (source != Dtype::kBf16 && source != Dtype::kF16) {
    throw FormatError("quantize_int4 takes bf16 or f16 weights, not " +
                      std::string(NameOf(source)));
  }
  const py::ssize_t rows = weight.shape(0), cols = weight.shape(1);
  const int groups = CeilDiv(static_cast<int>(cols), kGroup);
  py::array_t<uint8_t> codes({rows, cols});
  py::array_t<uint16_t> scales({rows, py::ssize_t{groups}});
  const uint16_t* bits = weight.data();
  uint8_t* code_out = codes.mutable_data();
  uint16_t* scale_out = scales.mutable_data();
  const Kernels& kernels = KernelsOf(SelectIsa(isa));
  RowError total;
  {
    const py::gil_scoped_release release;
    for (py::ssize_t row = 0; row < rows; ++row) {
      const RowError error = kernels.quantize_int4_row(
          bits + row * cols, source == Dtype::kF16, static_cast<int>(cols), search,
          code_out + row * cols, scale_out + row * groups);
      total.squared_error += error.squared_error;
      total.squared_norm += error.squared_norm;
    }
  }
  if (!std::isfinite(total.squared_error)) {
    throw CheckpointError("the weight has a NaN, an infinity, or values too large to square");
  }
  return py::make_tuple(codes, scales, total.squared_error, total.squared_norm);
}

}  // namespace

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

  module.def("quantize_int4", &QuantizeInt4, py::arg("weight"), py::arg("source"), py::kw_only(),
             py::arg("search") = true, py::arg("isa") = "");

  // Large arrays that come and go are otherwise mapped, faulted in page by page, and unmapped each
  // time: half of a conversion's time.
  module.def("keep_freed_memory", [] {
    constexpr int kLargestMmapThreshold = 32 << 20;  // glibc's limit
    mallopt(M_MMAP_THRESHOLD, kLargestMmapThreshold);
    mallopt(M_TRIM_THRESHOLD, 1 << 30);
  });
}

}  // namespace lsg
