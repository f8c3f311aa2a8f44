#include "limits/limits.h"

#include <pybind11/native_enum.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <vector>

#include "bindings/bindings.h"

namespace py = pybind11;

namespace lsg {

void BindLimits(py::module_& module) {
  py::native_enum<Instruction>(module, "Instruction", "enum.Enum")
      .value("FMA_YMM", Instruction::kFmaYmm)
      .value("MADDUBS_YMM", Instruction::kMaddUbsYmm)
      .value("FMA_ZMM", Instruction::kFmaZmm)
      .value("MADDUBS_ZMM", Instruction::kMaddUbsZmm)
      .value("DPBUSD_ZMM", Instruction::kDpbusdZmm)
      .value("DPBF16_ZMM", Instruction::kDpbf16Zmm)
      .value("TILE_BF16", Instruction::kTileBf16)
      .value("TILE_INT8", Instruction::kTileInt8)
      .finalize();
  module.def("instruction_isa", &IsaOf, py::arg("instruction"));
  module.def("arithmetic_peak", &ArithmeticPeak, py::arg("instruction"), py::arg("threads"),
             py::kw_only(), py::arg("cores") = std::vector<int>{}, py::arg("seconds") = 0.2,
             py::call_guard<py::gil_scoped_release>());
  py::class_<ReadProbe>(module, "ReadProbe")
      .def(py::init([](int threads, double gib, int streams, const std::vector<int>& cores) {
             const auto bytes = static_cast<uint64_t>(gib * (1ull << 30));
             return std::make_unique<ReadProbe>(threads, cores, bytes, streams);
           }),
           py::arg("threads"), py::arg("gib") = 1.0, py::arg("streams") = 4, py::kw_only(),
           py::arg("cores") = std::vector<int>{})
      .def("measure", &ReadProbe::Measure, py::arg("seconds") = 1.0,
           py::call_guard<py::gil_scoped_release>());
}

}  // namespace lsg
