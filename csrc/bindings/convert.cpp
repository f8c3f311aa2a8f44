#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <system_error>

#include "base/align.h"
#include "base/error.h"
#include "bindings/bindings.h"
#include "bindings/matrix.h"
#include "convert/expert_converter.h"
#include "convert/mapped_range.h"
#include "convert/matrix_converter.h"
#include "convert/row_writer.h"
#include "cpu/isa.h"

namespace py = pybind11;

namespace lsg {
namespace {

[[noreturn]] void ThrowOsError(const std::system_error& error) {
  errno = error.code().value();
  PyErr_SetFromErrno(PyExc_OSError);
  throw py::error_already_set();
}

py::object ErrorOf(const MatrixConverter& converter) {
  const std::optional<RowError> error = converter.error();
  if (!error) return py::none();
  return py::make_tuple(error->squared_error, error->squared_norm);
}

// Where an array's bytes lie in a file, if that is what its memory stands for.
std::optional<FilePlace> PlaceOf(const py::array& array) {
  py::object owner = array.base();
  while (owner && py::isinstance<py::array>(owner)) owner = py::array(owner).base();
  if (!owner || !py::isinstance<MappedRange>(owner)) return std::nullopt;
  return owner.cast<const MappedRange&>().PlaceOf(static_cast<const uint8_t*>(array.data()));
}

// The place for an expert's records: [num_units, record_bytes], rows apart.
std::byte* RecordsOf(py::array& array, const LayerSpec& spec) {
  const auto units = static_cast<py::ssize_t>(spec.num_units());
  const auto bytes = static_cast<py::ssize_t>(spec.record_bytes());
  if (array.itemsize() != 1 || array.ndim() != 2 || array.shape(0) != units ||
      array.shape(1) != bytes || array.strides(1) != 1 || (units > 1 && array.strides(0) < bytes)) {
    throw FormatError("records: expected " + std::to_string(units) + " rows of " +
                      std::to_string(bytes) + " bytes");
  }
  return static_cast<std::byte*>(array.mutable_data());
}

py::tuple ConvertOneExpert(const LayerSpec& spec, int64_t index, const std::optional<Matrix>& gate,
                           const Matrix& up, const Matrix& down, const PanelFormat& gate_up_source,
                           const PanelFormat& down_source, py::array records, bool search,
                           const std::string& isa) {
  Expert expert{gate, up, down};
  const uint32_t number = CheckedExpert(spec, index);
  const ExpertView view = expert.View(spec, gate_up_source, down_source);
  CheckInputOrders(view);
  std::byte* out = RecordsOf(records, spec);
  const py::ssize_t stride = records.strides(0);
  const Kernels& kernels = KernelsOf(SelectIsa(isa));
  std::optional<MatrixConverter> of_gate, of_up, of_down;
  std::optional<FilePlace> gate_place, up_place = PlaceOf(up.codes),
                                       down_place = PlaceOf(down.codes);
  if (gate) gate_place = PlaceOf(gate->codes);
  ExpertView whole;
  uint32_t crc;
  try {
    const py::gil_scoped_release release;
    const auto make = [&](std::optional<MatrixConverter>& converter, const MatrixView& matrix,
                          const std::optional<FilePlace>& place, const PanelFormat& source,
                          const PanelFormat& target, const char* name) {
      try {
        converter.emplace(kernels, matrix, place, source, target, search);
      } catch (const CheckpointError& error) {
        throw CheckpointError(std::string(name) + "_proj: " + error.what());
      }
    };
    if (gate) make(of_gate, view.gate, gate_place, gate_up_source, spec.gate_up(), "gate");
    make(of_up, view.up, up_place, gate_up_source, spec.gate_up(), "up");
    make(of_down, view.down, down_place, down_source, spec.down(), "down");
    crc = ConvertExpert(spec, {of_gate ? &*of_gate : nullptr, &*of_up, &*of_down}, out, stride);
    if (of_gate) whole.gate = of_gate->Whole();
    whole.up = of_up->Whole();
    whole.down = of_down->Whole();
  } catch (const std::system_error& error) {
    ThrowOsError(error);
  }
  py::list table;
  for (const TableEntry& entry : TableEntries(spec, number, whole)) {
    table.append(py::make_tuple(spec.table_offset() + entry.offset,
                                py::bytes(static_cast<const char*>(entry.data), entry.bytes)));
  }
  py::list errors;
  errors.append(of_gate ? ErrorOf(*of_gate) : py::none());
  errors.append(ErrorOf(*of_up));
  errors.append(ErrorOf(*of_down));
  return py::make_tuple(table, crc, errors);
}

py::tuple ConvertOneMatrix(const Matrix& matrix, const PanelFormat& source,
                           const PanelFormat& target, bool search, const std::string& isa) {
  if (matrix.codes.ndim() != 2)
    throw FormatError("codes must have two dimensions, found " +
                      std::to_string(matrix.codes.ndim()));
  const auto rows = static_cast<int>(matrix.codes.shape(0)),
             cols = static_cast<int>(matrix.codes.shape(1));
  Matrix given = matrix;
  const MatrixView view = ViewOf(given, source, rows, cols, "the matrix's");
  Matrix made = EmptyMatrix(target, rows, cols);
  const MatrixView place = ViewOf(made, target, rows, cols, "the result's");
  std::optional<MatrixConverter> converter;
  {
    const py::gil_scoped_release release;
    converter.emplace(KernelsOf(SelectIsa(isa)), view, std::nullopt, source, target, search);
    const int band = converter->row_block(), scale_rows = static_cast<int>(target.scale_rows);
    const size_t code_stride = size_t{1} * cols * (BitsOf(target.dtype) == 16 ? 2 : 1);
    const size_t scale_stride = size_t{1} * place.scale_cols * BytesOf(target.scale_dtype);
    for (int first = 0; first < rows; first += band) {
      const int count = std::min(band, rows - first);
      const MatrixView some = converter->Rows(first, count);
      const int from = first - some.first_row;
      std::memcpy(place.codes + first * code_stride, some.codes + from * code_stride,
                  count * code_stride);
      const int scale_rows_here = CeilDiv(count, scale_rows);
      if (scale_stride > 0) {
        std::memcpy(place.scales + first / scale_rows * scale_stride,
                    some.scales + from / scale_rows * scale_stride, scale_rows_here * scale_stride);
      }
      if (place.zero_points) {
        std::memcpy(place.zero_points + first / scale_rows * place.scale_cols,
                    some.zero_points + from / scale_rows * place.scale_cols,
                    size_t{1} * scale_rows_here * place.scale_cols);
      }
    }
  }
  const MatrixView whole = converter->Whole();
  made.input_order = given.input_order;
  if (place.bias) std::memcpy(place.bias, whole.bias, rows * sizeof(float));
  if (place.global_scale) made.global_scale = *whole.global_scale;
  return py::make_tuple(made, ErrorOf(*converter));
}

// uint8 [bytes], read only; none where the file has to be read instead.
py::object MapRange(int fd, int64_t offset, int64_t bytes, bool populate) {
  std::unique_ptr<MappedRange> range;
  try {
    const py::gil_scoped_release release;
    range = std::make_unique<MappedRange>(fd, offset, bytes, populate);
  } catch (const std::system_error&) {
    return py::none();
  }
  const uint8_t* data = range->data();
  const py::object owner = py::cast(std::move(range));
  py::array_t<uint8_t> array(bytes, data, owner);
  array.attr("flags").attr("writeable") = false;
  return array;
}

bool WriteRowsTo(int fd, int direct_fd, const py::array& rows, int64_t offset,
                 int64_t file_stride) {
  if (rows.itemsize() != 1 || rows.ndim() != 2 || (rows.shape(1) > 1 && rows.strides(1) != 1)) {
    throw FormatError("rows: expected two dimensions of bytes, each row contiguous");
  }
  const FileRows what{static_cast<const std::byte*>(rows.data()),
                      static_cast<size_t>(rows.shape(0)),
                      static_cast<size_t>(rows.shape(1)),
                      rows.strides(0),
                      offset,
                      file_stride};
  try {
    const py::gil_scoped_release release;
    return WriteRows(what, fd, direct_fd);
  } catch (const std::system_error& error) {
    ThrowOsError(error);
  }
}

}  // namespace

void BindConvert(py::module_& module) {
  // Owns the arrays; nobody calls it.
  py::class_<MappedRange>(module, "_MappedRange");
  module.def("map_range", &MapRange, py::arg("fd"), py::arg("offset"), py::arg("nbytes"),
             py::kw_only(), py::arg("populate") = true);
  module.def("write_rows", &WriteRowsTo, py::arg("fd"), py::arg("direct_fd"), py::arg("rows"),
             py::arg("offset"), py::arg("file_stride") = 0);
  module.def("convert_expert", &ConvertOneExpert, py::arg("spec"), py::arg("expert"),
             py::arg("gate").none(true), py::arg("up"), py::arg("down"), py::arg("gate_up_source"),
             py::arg("down_source"), py::arg("records"), py::kw_only(), py::arg("search") = true,
             py::arg("isa") = "");
  module.def("convert_matrix", &ConvertOneMatrix, py::arg("matrix"), py::arg("source"),
             py::arg("target"), py::kw_only(), py::arg("search") = true, py::arg("isa") = "");
}

}  // namespace lsg
