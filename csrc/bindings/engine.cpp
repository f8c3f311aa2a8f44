#include <pybind11/native_enum.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <chrono>
#include <exception>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "base/error.h"
#include "bindings/bindings.h"
#include "engine/moe_engine.h"
#include "memory/node_policy.h"

namespace py = pybind11;

namespace lsg {

FloatDtype ParseFloatDtype(const std::string& name) {
  if (name == "f32") return FloatDtype::kF32;
  if (name == "bf16") return FloatDtype::kBf16;
  if (name == "f16") return FloatDtype::kF16;
  throw Error("dtype must be f32, bf16 or f16, not '" + name + "'");
}

namespace {

ActivationPrecision ParsePrecision(const std::string& name) {
  if (name == "int8") return ActivationPrecision::kInt8;
  if (name == "float") return ActivationPrecision::kFloat;
  throw Error("activations must be int8 or float, not '" + name + "'");
}

LoadMode ParseLoadMode(const std::string& name) {
  if (name == "map") return LoadMode::kMap;
  if (name == "huge") return LoadMode::kHuge;
  throw Error("load must be map or huge, not '" + name + "'");
}

// Lets signals stop a load, and tells `progress` how far it is.
LoadPoll PollFor(const py::function* progress) {
  return [progress](const std::vector<NodeProgress>& nodes) {
    const py::gil_scoped_acquire acquire;
    if (PyErr_CheckSignals() != 0) throw py::error_already_set();
    if (progress == nullptr) return;
    py::list list;
    for (const NodeProgress& node : nodes) {
      list.append(py::make_tuple(node.node, node.done_bytes, node.total_bytes));
    }
    (*progress)(list);
  };
}

NodeWorkers Unpinned(int threads) {
  if (threads < 1) {
    throw CapacityError("an engine needs at least 1 thread, got " + std::to_string(threads));
  }
  return {0, std::vector<std::vector<int>>(threads)};
}

// As py::gil_scoped_release, but not in a destructor: a daemon thread that comes back while Python
// exits is unwound from here, which a destructor turns into an abort.
template <typename Function>
void WithoutGil(const Function& function) {
  std::exception_ptr failure;
  PyThreadState* state = PyEval_SaveThread();
  try {
    function();
  } catch (...) {
    failure = std::current_exception();
  }
  PyEval_RestoreThread(state);
  if (failure != nullptr) std::rethrow_exception(failure);
}

template <typename T>
T* Address(uintptr_t address, const char* what, bool required) {
  if (address == 0 && required) throw Error(std::string(what) + " is a null pointer");
  return reinterpret_cast<T*>(address);
}

}  // namespace

void BindEngine(py::module_& module) {
  py::native_enum<Activation>(module, "Activation", "enum.Enum")
      .value("SILU", Activation::kSilu)
      .value("SWIGLU_CLAMPED", Activation::kSwigluClamped)
      .value("SILU_CLAMPED", Activation::kSiluClamped)
      .value("SWIGLUOAI", Activation::kSwigluOai)
      .value("GELU_TANH", Activation::kGeluTanh)
      .value("RELU2", Activation::kRelu2)
      .value("SITU", Activation::kSitu)
      .finalize();

  py::class_<PartResidency>(module, "PartResidency")
      .def_readonly("layer", &PartResidency::layer)
      .def_property_readonly("node", [](const PartResidency& part) { return part.units.node; })
      .def_property_readonly("unit_begin",
                             [](const PartResidency& part) { return part.units.begin; })
      .def_property_readonly("unit_end", [](const PartResidency& part) { return part.units.end; })
      .def_readonly("bytes", &PartResidency::bytes)
      .def_property_readonly("bytes_on",
                             [](const PartResidency& part) { return part.residency.bytes_on; })
      .def_property_readonly("absent_bytes",
                             [](const PartResidency& part) { return part.residency.absent_bytes; })
      .def_property_readonly("unknown_bytes",
                             [](const PartResidency& part) { return part.residency.unknown_bytes; })
      .def_readonly("huge_bytes", &PartResidency::huge_bytes);

  py::class_<NodeWorkers>(module, "NodeWorkers")
      .def(py::init([](int node, std::vector<std::vector<int>> cpus) {
             return NodeWorkers{node, std::move(cpus)};
           }),
           py::arg("node"), py::arg("cpus"))
      .def_readonly("node", &NodeWorkers::node)
      .def_readonly("cpus", &NodeWorkers::cpus);

  py::class_<MoeEngine>(module, "Engine")
      .def(py::init([](int threads, std::vector<NodeWorkers> nodes, const std::string& isa,
                       const std::string& activations, int spin_us) {
             if (!nodes.empty() && threads != 0) {
               throw Error("an engine takes either threads or nodes, not both");
             }
             if (spin_us < 0) throw Error("spin_us must not be negative");
             if (nodes.empty()) nodes.push_back(Unpinned(threads));
             return std::make_unique<MoeEngine>(
                 EngineOptions{{std::move(nodes), std::chrono::microseconds(spin_us)},
                               SelectIsa(isa),
                               ParsePrecision(activations)});
           }),
           py::kw_only(), py::arg("threads") = 0, py::arg("nodes") = std::vector<NodeWorkers>{},
           py::arg("isa") = "", py::arg("activations") = "int8", py::arg("spin_us") = 50)
      .def(
          "add_layer",
          [](MoeEngine& engine, const std::string& path, Activation activation, float alpha,
             float limit, int unit_begin, int unit_end, const std::string& load,
             const std::vector<std::tuple<int, int, int>>& nodes, std::vector<int> node_units,
             bool defer) {
            const LoadMode mode = ParseLoadMode(load);
            std::vector<NodeUnits> units;
            for (const auto& [node, begin, end] : nodes) units.push_back({node, begin, end});
            if (units.empty()) units.push_back({kAnyNode, unit_begin, unit_end});
            const py::gil_scoped_release release;
            const int handle = engine.AddLayer(LayerMemory(path, mode, std::move(units)),
                                               {activation, alpha, limit}, std::move(node_units));
            if (!defer) engine.Load(0, false, PollFor(nullptr));
            return handle;
          },
          py::arg("path"), py::kw_only(), py::arg("activation") = Activation::kSilu,
          py::arg("alpha") = 1.0f, py::arg("limit") = 0.0f, py::arg("unit_begin") = 0,
          py::arg("unit_end") = -1, py::arg("load") = "map",
          py::arg("nodes") = std::vector<std::tuple<int, int, int>>{},
          py::arg("node_units") = std::vector<int>{}, py::arg("defer") = false)
      .def(
          "load",
          [](MoeEngine& engine, const std::optional<py::function>& progress, int threads_per_node,
             bool lock) {
            const LoadPoll poll = PollFor(progress ? &*progress : nullptr);
            const py::gil_scoped_release release;
            engine.Load(threads_per_node, lock, poll);
          },
          py::arg("progress") = py::none(), py::kw_only(), py::arg("threads_per_node") = 0,
          py::arg("lock") = false)
      .def("residency", &MoeEngine::Residency, py::call_guard<py::gil_scoped_release>())
      .def(
          "forward",
          [](MoeEngine& engine, int layer, uintptr_t hidden, uintptr_t topk_ids,
             uintptr_t topk_weights, uintptr_t out, int tokens, int top_k,
             const std::string& dtype) {
            if (tokens < 0 || top_k < 0) throw Error("tokens and top_k must not be negative");
            const bool some = tokens > 0;
            const Batch batch{Address<const void>(hidden, "hidden", some),
                              Address<const int32_t>(topk_ids, "topk_ids", some && top_k > 0),
                              Address<const float>(topk_weights, "topk_weights", some && top_k > 0),
                              Address<void>(out, "out", some),
                              tokens,
                              top_k,
                              ParseFloatDtype(dtype)};
            WithoutGil([&] { engine.Forward(layer, batch); });
          },
          py::arg("layer"), py::arg("hidden"), py::arg("topk_ids"), py::arg("topk_weights"),
          py::arg("out"), py::kw_only(), py::arg("tokens"), py::arg("top_k"), py::arg("dtype"))
      .def("int8_inputs", &MoeEngine::Int8Inputs, py::arg("layer"), py::arg("tokens"),
           py::arg("top_k"))
      .def("in_one_pass", &MoeEngine::InOnePass, py::arg("layer"), py::arg("tokens"),
           py::arg("top_k"))
      .def("trace_to", &MoeEngine::TraceTo, py::arg("path"))
      .def_property_readonly("isa", [](const MoeEngine& engine) { return engine.options().isa; })
      .def_property_readonly("threads", &MoeEngine::threads)
      .def_property_readonly("loaded_bytes", &MoeEngine::loaded_bytes)
      .def_property_readonly("locked_bytes", &MoeEngine::locked_bytes);
}

}  // namespace lsg
