// One projection, or one expert, as numpy arrays.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <optional>
#include <string>

#include "format/expert_packer.h"
#include "format/layer_spec.h"

namespace lsg {

using Bytes = pybind11::array_t<uint8_t, pybind11::array::c_style>;

// See _core.pyi for shapes.
struct Matrix {
  pybind11::array codes;
  std::optional<pybind11::array> scales;
  std::optional<Bytes> zero_points;
  std::optional<pybind11::array_t<float, pybind11::array::c_style>> bias;
  std::optional<float> global_scale;
  std::optional<pybind11::array_t<uint32_t, pybind11::array::c_style>> input_order;
};

// Throws FormatError unless it is contiguous and of this shape.
void RequireArray(const pybind11::array& array, const std::string& what, pybind11::ssize_t rows,
                  pybind11::ssize_t cols, pybind11::ssize_t item_bytes);

// Checks a matrix against its format and takes its addresses.
MatrixView ViewOf(Matrix& matrix, const PanelFormat& format, int rows, int cols,
                  const std::string& name);

// Zeroed arrays of the right shapes.
Matrix EmptyMatrix(const PanelFormat& format, int rows, int cols);

// One expert's arrays.
struct Expert {
  std::optional<Matrix> gate;
  Matrix up, down;

  // Checked against the layer's geometry and these formats. Throws FormatError.
  ExpertView View(const LayerSpec& spec, const PanelFormat& gate_up, const PanelFormat& down);
};

// Throws FormatError unless gate's and up's input order, where they have one, is one permutation.
void CheckInputOrders(const ExpertView& expert);

// Throws FormatError for a number that no expert of the layer has.
uint32_t CheckedExpert(const LayerSpec& spec, int64_t expert);

}  // namespace lsg
