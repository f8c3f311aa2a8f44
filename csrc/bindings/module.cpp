#include <pybind11/pybind11.h>

#include "base/error.h"
#include "bindings/bindings.h"

namespace py = pybind11;

PYBIND11_MODULE(_core, module, py::mod_gil_not_used()) {
  module.doc() = "The C++ core: blob format, packing, quantisation, kernels and the expert engine.";
  module.attr("__version__") = LSG_VERSION;
  const auto& error = py::register_exception<lsg::Error>(module, "LsgError");
  py::register_exception<lsg::FormatError>(module, "FormatError", error);
  py::register_exception<lsg::CheckpointError>(module, "CheckpointError", error);
  py::register_exception<lsg::UnsupportedIsaError>(module, "UnsupportedIsaError", error);
  py::register_exception<lsg::CapacityError>(module, "CapacityError", error);
  py::register_exception<lsg::CompatError>(module, "CompatError", error);
  lsg::BindFormat(module);
  lsg::BindKernels(module);
  lsg::BindConvert(module);
  lsg::BindLimits(module);
  lsg::BindEngine(module);
  lsg::BindHandOver(module);
}
