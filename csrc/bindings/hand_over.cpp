#include "gpu/hand_over.h"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <optional>
#include <string>

#include "base/error.h"
#include "bindings/bindings.h"
#include "engine/moe_engine.h"

namespace py = pybind11;

namespace lsg {
namespace {

Way ParseWay(const std::string& name) {
  if (name == "hostfunc") return Way::kHostFunc;
  if (name == "memops") return Way::kMemOps;
  if (name == "kernels") return Way::kKernels;
  throw Error("a hand-over is hostfunc, memops or kernels, not '" + name + "'");
}

int64_t EntriesOf(int tokens, int top_k) { return int64_t{tokens} * top_k; }

int64_t BytesOf(int tokens, int hidden_size) {
  return int64_t{tokens} * hidden_size * static_cast<int64_t>(sizeof(float));
}

}  // namespace

void BindHandOver(py::module_& module) {
  py::class_<HandOver>(module, "HandOver")
      .def(py::init([](MoeEngine& engine, const std::string& way, int tokens, int hidden_size,
                       int top_k, int core, const std::string& library) {
             const HandOverOptions options{ParseWay(way), BytesOf(tokens, hidden_size),
                                           EntriesOf(tokens, top_k), core, library};
             return std::make_unique<HandOver>(
                 [&engine](int layer, const Batch& batch) { engine.Forward(layer, batch); },
                 options);
           }),
           py::keep_alive<1, 2>(), py::arg("engine"), py::kw_only(), py::arg("way"),
           py::arg("tokens"), py::arg("hidden_size"), py::arg("top_k"), py::arg("core") = -1,
           py::arg("library") = "libcuda.so.1")
      .def(
          "reserve",
          [](HandOver& self, int tokens, int hidden_size, int top_k) {
            self.Reserve(BytesOf(tokens, hidden_size), EntriesOf(tokens, top_k));
          },
          py::kw_only(), py::arg("tokens"), py::arg("hidden_size"), py::arg("top_k"))
      .def(
          "submit",
          [](HandOver& self, int layer, uintptr_t stream, uintptr_t hidden, uintptr_t topk_ids,
             uintptr_t topk_weights, uintptr_t out, int tokens, int top_k, int hidden_size,
             const std::string& dtype) {
            if (tokens < 1 || top_k < 1) throw Error("tokens and top_k must be positive");
            self.Submit(reinterpret_cast<CuStream>(stream), layer,
                        {hidden, topk_ids, topk_weights, out, tokens, top_k, hidden_size,
                         ParseFloatDtype(dtype)});
          },
          py::arg("layer"), py::kw_only(), py::arg("stream"), py::arg("hidden"),
          py::arg("topk_ids"), py::arg("topk_weights"), py::arg("out"), py::arg("tokens"),
          py::arg("top_k"), py::arg("hidden_size"), py::arg("dtype"))
      .def("wait_for_failure", &HandOver::WaitForFailure, py::call_guard<py::gil_scoped_release>())
      .def("stop", &HandOver::Stop, py::call_guard<py::gil_scoped_release>())
      .def("close", &HandOver::Close, py::call_guard<py::gil_scoped_release>());
}

}  // namespace lsg
