#include "bindings/matrix.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "base/error.h"

namespace py = pybind11;

namespace lsg {
namespace {

std::string ShapeOf(const py::array& array) {
  return py::str(
      py::tuple(py::cast(std::vector<py::ssize_t>(array.shape(), array.shape() + array.ndim()))));
}

py::dtype ScaleNumpyDtype(ScaleDtype dtype) {
  switch (BytesOf(dtype)) {
    case 4:
      return py::dtype::of<float>();
    case 2:
      return py::dtype::of<uint16_t>();
    default:
      return py::dtype::of<uint8_t>();
  }
}

}  // namespace

void RequireArray(const py::array& array, const std::string& what, py::ssize_t rows,
                  py::ssize_t cols, py::ssize_t item_bytes) {
  const bool contiguous = (array.flags() & py::array::c_style) != 0;
  if (array.ndim() != 2 || array.shape(0) != rows || array.shape(1) != cols ||
      array.itemsize() != item_bytes || !contiguous) {
    throw FormatError(what + ": expected a contiguous array of shape (" + std::to_string(rows) +
                      ", " + std::to_string(cols) + ") with " + std::to_string(item_bytes) +
                      " bytes an item, found shape " + ShapeOf(array) + " with " +
                      std::to_string(array.itemsize()));
  }
}

MatrixView ViewOf(Matrix& matrix, const PanelFormat& format, int rows, int cols,
                  const std::string& name) {
  MatrixView view;
  view.rows = rows;
  view.cols = cols;
  RequireArray(matrix.codes, name + " codes", rows, cols, BitsOf(format.dtype) == 16 ? 2 : 1);
  view.codes = static_cast<uint8_t*>(const_cast<void*>(matrix.codes.data()));
  view.scale_cols = SourceScaleCols(format, cols);
  const bool wants_scales = format.scale_dtype != ScaleDtype::kNone;
  if (wants_scales != matrix.scales.has_value() ||
      format.zero_point != matrix.zero_points.has_value() ||
      format.bias != matrix.bias.has_value() ||
      format.global_scale != matrix.global_scale.has_value() ||
      format.k_permutation != matrix.input_order.has_value()) {
    throw FormatError(name +
                      ": scales, zero points, bias, global scale and input order must be there "
                      "exactly when the panel format has them");
  }
  const auto scale_rows = static_cast<int>((rows + format.scale_rows - 1) / format.scale_rows);
  if (wants_scales) {
    RequireArray(*matrix.scales, name + " scales", scale_rows, view.scale_cols,
                 BytesOf(format.scale_dtype));
    view.scales = static_cast<uint8_t*>(const_cast<void*>(matrix.scales->data()));
  }
  if (format.zero_point) {
    RequireArray(*matrix.zero_points, name + " zero points", scale_rows, view.scale_cols, 1);
    view.zero_points = const_cast<uint8_t*>(matrix.zero_points->data());
  }
  if (format.bias) {
    if (matrix.bias->ndim() != 1 || matrix.bias->shape(0) != rows) {
      throw FormatError(name + " bias: expected shape (" + std::to_string(rows) + ",), found " +
                        ShapeOf(*matrix.bias));
    }
    view.bias = const_cast<float*>(matrix.bias->data());
  }
  if (format.global_scale) view.global_scale = &*matrix.global_scale;
  if (format.k_permutation) {
    if (matrix.input_order->ndim() != 1 || matrix.input_order->shape(0) != cols) {
      throw FormatError(name + " input order: expected shape (" + std::to_string(cols) +
                        ",), found " + ShapeOf(*matrix.input_order));
    }
    view.input_order = const_cast<uint32_t*>(matrix.input_order->data());
  }
  return view;
}

Matrix EmptyMatrix(const PanelFormat& format, int rows, int cols) {
  const auto zeros = [](py::dtype dtype, std::vector<py::ssize_t> shape) {
    py::array array(std::move(dtype), std::move(shape));
    std::memset(array.mutable_data(), 0, array.nbytes());
    return array;
  };
  Matrix matrix{
      zeros(BitsOf(format.dtype) == 16 ? py::dtype::of<uint16_t>() : py::dtype::of<uint8_t>(),
            {rows, cols}),
      {},
      {},
      {},
      {},
      {}};
  const auto scale_rows = static_cast<int>((rows + format.scale_rows - 1) / format.scale_rows);
  const int scale_cols = SourceScaleCols(format, cols);
  if (scale_cols > 0)
    matrix.scales = zeros(ScaleNumpyDtype(format.scale_dtype), {scale_rows, scale_cols});
  if (format.zero_point)
    matrix.zero_points = Bytes(zeros(py::dtype::of<uint8_t>(), {scale_rows, scale_cols}));
  if (format.bias)
    matrix.bias = py::array_t<float, py::array::c_style>(zeros(py::dtype::of<float>(), {rows}));
  if (format.global_scale) matrix.global_scale = 0.0f;
  if (format.k_permutation) matrix.input_order = py::array_t<uint32_t, py::array::c_style>(cols);
  return matrix;
}

ExpertView Expert::View(const LayerSpec& spec, const PanelFormat& gate_up,
                        const PanelFormat& down_format) {
  const LayerGeometry& g = spec.geometry();
  const int hidden = static_cast<int>(g.hidden_size),
            intermediate = static_cast<int>(g.intermediate_size);
  if (gate.has_value() != g.gated)
    throw FormatError("gate must be given exactly when the layer is gated");
  ExpertView view;
  if (gate) view.gate = ViewOf(*gate, gate_up, intermediate, hidden, "gate");
  view.up = ViewOf(up, gate_up, intermediate, hidden, "up");
  view.down = ViewOf(down, down_format, hidden, intermediate, "down");
  return view;
}

void CheckInputOrders(const ExpertView& expert) {
  const uint32_t* order = expert.up.input_order;
  if (order == nullptr) return;
  CheckInputOrder(order, expert.up.cols, "up");
  if (expert.gate.codes && !std::equal(order, order + expert.up.cols, expert.gate.input_order)) {
    throw FormatError("gate and up must have one input order");
  }
}

uint32_t CheckedExpert(const LayerSpec& spec, int64_t expert) {
  if (expert < 0 || expert >= spec.geometry().num_experts) {
    throw FormatError("no expert " + std::to_string(expert) + " in a layer of " +
                      std::to_string(spec.geometry().num_experts));
  }
  return static_cast<uint32_t>(expert);
}

}  // namespace lsg
