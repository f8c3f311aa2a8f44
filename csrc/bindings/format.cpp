#include <pybind11/native_enum.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstring>
#include <optional>
#include <string>

#include "base/crc32c.h"
#include "base/error.h"
#include "bindings/bindings.h"
#include "bindings/matrix.h"
#include "format/expert_packer.h"
#include "format/layer_file.h"
#include "format/layer_spec.h"
#include "memory/file_probe.h"

namespace py = pybind11;

namespace lsg {
namespace {

Bytes Pack(const LayerSpec& spec, const std::optional<Matrix>& gate, const Matrix& up,
           const Matrix& down) {
  Expert expert{gate, up, down};
  const ExpertView view = expert.View(spec, spec.gate_up(), spec.down());
  Bytes records(
      {static_cast<py::ssize_t>(spec.num_units()), static_cast<py::ssize_t>(spec.record_bytes())});
  auto* out = reinterpret_cast<std::byte*>(records.mutable_data());
  const py::gil_scoped_release release;
  PackExpert(spec, view, out);
  return records;
}

py::list PackTable(const LayerSpec& spec, int64_t index, const std::optional<Matrix>& gate,
                   const Matrix& up, const Matrix& down) {
  Expert expert{gate, up, down};
  const ExpertView view = expert.View(spec, spec.gate_up(), spec.down());
  CheckInputOrders(view);
  py::list writes;
  for (const TableEntry& entry : TableEntries(spec, CheckedExpert(spec, index), view)) {
    writes.append(py::make_tuple(spec.table_offset() + entry.offset,
                                 py::bytes(static_cast<const char*>(entry.data), entry.bytes)));
  }
  return writes;
}

py::tuple Unpack(const LayerSpec& spec, const Bytes& records, const std::optional<Bytes>& table,
                 int64_t index) {
  RequireArray(records, "records", spec.num_units(), static_cast<py::ssize_t>(spec.record_bytes()),
               1);
  if (spec.table_bytes() != 0 &&
      (!table || table->nbytes() != static_cast<py::ssize_t>(spec.table_bytes()))) {
    throw FormatError("this layer has an expert table of " + std::to_string(spec.table_bytes()) +
                      " bytes, which unpack_expert needs");
  }
  const LayerGeometry& g = spec.geometry();
  const int hidden = static_cast<int>(g.hidden_size),
            intermediate = static_cast<int>(g.intermediate_size);
  Expert expert{{},
                EmptyMatrix(spec.gate_up(), intermediate, hidden),
                EmptyMatrix(spec.down(), hidden, intermediate)};
  if (g.gated) expert.gate = EmptyMatrix(spec.gate_up(), intermediate, hidden);
  const ExpertView view = expert.View(spec, spec.gate_up(), spec.down());
  {
    const auto* in = reinterpret_cast<const std::byte*>(records.data());
    const py::gil_scoped_release release;
    UnpackExpert(spec, in, view);
  }
  for (const TableEntry& entry : TableEntries(spec, CheckedExpert(spec, index), view)) {
    std::memcpy(entry.data, table->data() + entry.offset, entry.bytes);
  }
  if (view.up.input_order != nullptr) {
    CheckInputOrder(view.up.input_order, hidden, "expert " + std::to_string(index));
    if (expert.gate) expert.gate->input_order = expert.up.input_order;
  }
  return py::make_tuple(expert.gate ? py::cast(*expert.gate) : py::none(), expert.up, expert.down);
}

}  // namespace

void BindFormat(py::module_& module) {
  py::native_enum<Dtype>(module, "Dtype", "enum.Enum")
      .value("INT4", Dtype::kInt4)
      .value("INT8", Dtype::kInt8)
      .value("FP8_E4M3", Dtype::kFp8E4m3)
      .value("FP8_E5M2", Dtype::kFp8E5m2)
      .value("BF16", Dtype::kBf16)
      .value("F16", Dtype::kF16)
      .value("FP4_E2M1", Dtype::kFp4E2m1)
      .finalize();
  py::native_enum<ScaleDtype>(module, "ScaleDtype", "enum.Enum")
      .value("NONE", ScaleDtype::kNone)
      .value("F32", ScaleDtype::kF32)
      .value("F16", ScaleDtype::kF16)
      .value("BF16", ScaleDtype::kBf16)
      .value("FP8_E4M3", ScaleDtype::kFp8E4m3)
      .value("E8M0", ScaleDtype::kE8m0)
      .finalize();

  py::class_<PanelFormat>(module, "PanelFormat")
      .def(py::init([](Dtype dtype, ScaleDtype scale_dtype, uint32_t scale_rows, uint32_t scale_k,
                       bool zero_point, bool bias, bool global_scale, bool k_permutation) {
             return PanelFormat{dtype,      scale_dtype, scale_rows,   scale_k,
                                zero_point, bias,        global_scale, k_permutation};
           }),
           py::arg("dtype"), py::arg("scale_dtype") = ScaleDtype::kNone, py::kw_only(),
           py::arg("scale_rows") = 1, py::arg("scale_k") = 0, py::arg("zero_point") = false,
           py::arg("bias") = false, py::arg("global_scale") = false,
           py::arg("k_permutation") = false)
      .def_readonly("dtype", &PanelFormat::dtype)
      .def_readonly("scale_dtype", &PanelFormat::scale_dtype)
      .def_readonly("scale_rows", &PanelFormat::scale_rows)
      .def_readonly("scale_k", &PanelFormat::scale_k)
      .def_readonly("zero_point", &PanelFormat::zero_point)
      .def_readonly("bias", &PanelFormat::bias)
      .def_readonly("global_scale", &PanelFormat::global_scale)
      .def_readonly("k_permutation", &PanelFormat::k_permutation)
      .def("__eq__", [](const PanelFormat& a, const PanelFormat& b) { return a == b; })
      .def("__eq__", [](const PanelFormat&, const py::object&) { return false; })
      .attr("__hash__") = py::none();

  py::class_<LayerSpec>(module, "LayerSpec")
      .def(py::init([](uint32_t layer_index, uint32_t num_experts, uint32_t hidden_size,
                       uint32_t intermediate_size, bool gated, const PanelFormat& gate_up,
                       const PanelFormat& down, uint32_t unit_rows) {
             return LayerSpec(
                 {layer_index, num_experts, hidden_size, intermediate_size, unit_rows, gated},
                 gate_up, down);
           }),
           py::kw_only(), py::arg("layer_index"), py::arg("num_experts"), py::arg("hidden_size"),
           py::arg("intermediate_size"), py::arg("gated"), py::arg("gate_up"), py::arg("down"),
           py::arg("unit_rows") = 0)
      .def_property_readonly("layer_index",
                             [](const LayerSpec& s) { return s.geometry().layer_index; })
      .def_property_readonly("num_experts",
                             [](const LayerSpec& s) { return s.geometry().num_experts; })
      .def_property_readonly("hidden_size",
                             [](const LayerSpec& s) { return s.geometry().hidden_size; })
      .def_property_readonly("intermediate_size",
                             [](const LayerSpec& s) { return s.geometry().intermediate_size; })
      .def_property_readonly("gated", [](const LayerSpec& s) { return s.geometry().gated; })
      .def_property_readonly("unit_rows", [](const LayerSpec& s) { return s.geometry().unit_rows; })
      .def_property_readonly("gate_up", &LayerSpec::gate_up)
      .def_property_readonly("down", &LayerSpec::down)
      .def_property_readonly("num_units", &LayerSpec::num_units)
      .def_property_readonly("record_bytes", &LayerSpec::record_bytes)
      .def_property_readonly("unit_bytes", &LayerSpec::unit_bytes)
      .def_property_readonly("table_offset", &LayerSpec::table_offset)
      .def_property_readonly("table_bytes", &LayerSpec::table_bytes)
      .def_property_readonly("file_bytes", &LayerSpec::file_bytes)
      .def(
          "record_offset",
          [](const LayerSpec& s, uint32_t unit, uint32_t expert) {
            if (unit >= s.num_units() || expert >= s.geometry().num_experts) {
              throw FormatError("no record for unit " + std::to_string(unit) + " of expert " +
                                std::to_string(expert));
            }
            return s.record_offset(unit, expert);
          },
          py::arg("unit"), py::arg("expert"))
      .def("header", [](const LayerSpec& s) {
        const auto header = s.Encode();
        return py::bytes(reinterpret_cast<const char*>(header.data()), header.size());
      });

  py::class_<Matrix>(module, "Matrix")
      .def(py::init([](py::array codes, std::optional<py::array> scales,
                       std::optional<Bytes> zero_points,
                       std::optional<py::array_t<float, py::array::c_style>> bias,
                       std::optional<float> global_scale,
                       std::optional<py::array_t<uint32_t, py::array::c_style>> input_order) {
             return Matrix{std::move(codes), std::move(scales), std::move(zero_points),
                           std::move(bias),  global_scale,      std::move(input_order)};
           }),
           py::arg("codes"), py::arg("scales") = py::none(), py::arg("zero_points") = py::none(),
           py::arg("bias") = py::none(), py::arg("global_scale") = py::none(),
           py::arg("input_order") = py::none())
      .def_readonly("codes", &Matrix::codes)
      .def_readonly("scales", &Matrix::scales)
      .def_readonly("zero_points", &Matrix::zero_points)
      .def_readonly("bias", &Matrix::bias)
      .def_readonly("global_scale", &Matrix::global_scale)
      .def_readonly("input_order", &Matrix::input_order);

  module.def("pack_expert", &Pack, py::arg("spec"), py::arg("gate").none(true), py::arg("up"),
             py::arg("down"));
  module.def("pack_table", &PackTable, py::arg("spec"), py::arg("expert"),
             py::arg("gate").none(true), py::arg("up"), py::arg("down"));
  module.def("unpack_expert", &Unpack, py::arg("spec"), py::arg("records"),
             py::arg("table") = py::none(), py::arg("expert") = 0);

  module.def(
      "crc32c",
      [](const py::buffer& data, uint32_t crc) {
        const py::buffer_info info = data.request();
        py::ssize_t expected = info.itemsize;
        for (auto axis = info.ndim; axis-- > 0; expected *= info.shape[axis]) {
          if (info.shape[axis] > 1 && info.strides[axis] != expected)
            throw Error("crc32c needs contiguous data");
        }
        const py::gil_scoped_release release;
        return Crc32c(info.ptr, static_cast<size_t>(info.size * info.itemsize), crc);
      },
      py::arg("data"), py::arg("crc") = 0);

  py::class_<LayerFile>(module, "LayerFile")
      .def(py::init<std::string>(), py::arg("path"))
      .def_property_readonly("spec", &LayerFile::spec)
      .def_property_readonly("header_crc32c", &LayerFile::header_crc32c)
      .def_property_readonly("lives_in_memory", &LivesInMemory)
      .def("cached_bytes", &CachedBytes, py::call_guard<py::gil_scoped_release>())
      .def("maps_huge", &MapsHuge, py::call_guard<py::gil_scoped_release>())
      .def(
          "expert",
          [](const LayerFile& file, int64_t expert) {
            const uint32_t e = CheckedExpert(file.spec(), expert);
            const LayerSpec& spec = file.spec();
            Bytes records({static_cast<py::ssize_t>(spec.num_units()),
                           static_cast<py::ssize_t>(spec.record_bytes())});
            uint8_t* out = records.mutable_data();
            const py::gil_scoped_release release;
            for (uint32_t unit = 0; unit < spec.num_units(); ++unit) {
              std::memcpy(out + unit * spec.record_bytes(), file.record(unit, e).data(),
                          spec.record_bytes());
            }
            return records;
          },
          py::arg("expert"))
      .def(
          "slab_crc32c",
          [](const LayerFile& file, int64_t expert) {
            const uint32_t e = CheckedExpert(file.spec(), expert);
            const py::gil_scoped_release release;
            return file.SlabCrc32c(e);
          },
          py::arg("expert"))
      .def("table",
           [](const LayerFile& file) {
             Bytes table(static_cast<py::ssize_t>(file.table().size()));
             std::memcpy(table.mutable_data(), file.table().data(), file.table().size());
             return table;
           })
      .def("table_crc32c", [](const LayerFile& file) {
        const py::gil_scoped_release release;
        return file.TableCrc32c();
      });
}

}  // namespace lsg
