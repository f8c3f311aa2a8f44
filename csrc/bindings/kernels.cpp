#include <pybind11/native_enum.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cmath>
#include <string>
#include <vector>

#include "base/align.h"
#include "base/error.h"
#include "base/float16.h"
#include "bindings/bindings.h"
#include "cpu/isa.h"
#include "cpu/read_bandwidth.h"
#include "kernels/kernels.h"

namespace py = pybind11;

namespace lsg {
namespace {

constexpr int kGroup = 32;

py::tuple QuantizeInt4(const py::array_t<uint16_t, py::array::c_style>& weight, Dtype source, bool search,
                       const std::string& isa) {
  if (weight.ndim() != 2) throw FormatError("weight must have two dimensions, found " + std::to_string(weight.ndim()));
  if (source != Dtype::kBf16 && source != Dtype::kF16) {
    throw FormatError("quantize_int4 takes bf16 or f16 weights, not " + std::string(NameOf(source)));
  }
  const py::ssize_t rows = weight.shape(0), cols = weight.shape(1);
  const int groups = CeilDiv(static_cast<int>(cols), kGroup);
  py::array_t<uint8_t> codes({rows, cols});
  py::array_t<uint16_t> scales({rows, py::ssize_t{groups}});
  const uint16_t* bits = weight.data();
  uint8_t* code_out = codes.mutable_data();
  uint16_t* scale_out = scales.mutable_data();
  const Kernels& kernels = KernelsOf(SelectIsa(isa));
  double squared_error = 0, squared_norm = 0;
  bool finite = true;
  {
    const py::gil_scoped_release release;
    for (py::ssize_t row = 0; row < rows; ++row) {
      for (int group = 0; group < groups; ++group) {
        const py::ssize_t at = row * cols + group * kGroup;
        const int count = static_cast<int>(std::min<py::ssize_t>(kGroup, cols - group * kGroup));
        std::array<float, kGroup> w{};
        float norm[4] = {};
        for (int i = 0; i < count; ++i) {
          w[i] = source == Dtype::kBf16 ? Bf16ToF32(bits[at + i]) : F16ToF32(bits[at + i]);
          norm[i % 4] += w[i] * w[i];
        }
        std::array<uint8_t, kGroup> out;
        const float error =
            kernels.quantize_int4_group(w.data(), search, out.data(), scale_out + row * groups + group);
        finite &= std::isfinite(error);
        squared_error += error;
        squared_norm += (norm[0] + norm[1]) + (norm[2] + norm[3]);
        std::memcpy(code_out + at, out.data(), count);
      }
    }
  }
  if (!finite) throw CheckpointError("the weight has a NaN, an infinity, or values too large to square");
  return py::make_tuple(codes, scales, squared_error, squared_norm);
}

Isa IsaOf(const std::string& name) { return SelectIsa(name); }

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
  module.def("select_isa", &IsaOf, py::arg("name") = "");
  module.def("kernel_isa", [](const std::string& name) { return KernelsOf(SelectIsa(name)).isa; }, py::arg("name") = "");

  module.def("quantize_int4", &QuantizeInt4, py::arg("weight"), py::arg("source"), py::kw_only(),
             py::arg("search") = true, py::arg("isa") = "");

  module.def(
      "read_bandwidth",
      [](int threads, double gib, int streams, double seconds) {
        const py::gil_scoped_release release;
        return ReadBandwidth(threads, static_cast<uint64_t>(gib * (1ull << 30)), streams, seconds);
      },
      py::arg("threads"), py::arg("gib") = 1.0, py::arg("streams") = 4, py::arg("seconds") = 1.0);
}

}  // namespace lsg
