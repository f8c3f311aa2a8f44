// A layer as the engine sees it: a mapped file, the kernels for its formats, and panels ready for
// them.
//
// Invariant: both panel formats have kernels, and the unit range lies inside the file.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "format/layer_file.h"
#include "kernels/kernels.h"

namespace lsg {

class MoeLayer {
 public:
  // Maps `path` for units [unit_begin, unit_end), -1 meaning the last, and reads their pages.
  // `int8`: quantise activations where there is a kernel for it. Throws FormatError, or Error for a
  // unit range that is not in the file.
  MoeLayer(const std::string& path, const Kernels& kernels, const ActivationSpec& activation,
           bool int8, int unit_begin, int unit_end);

  const LayerSpec& spec() const { return file_.spec(); }
  const ActivationSpec& activation() const { return activation_; }
  const PanelKernels& gate_up_kernels() const { return gate_up_; }
  const PanelKernels& down_kernels() const { return down_; }
  // Whether the panel takes int8 inputs; otherwise they are float.
  bool int8_gate_up() const { return gate_up_.int8 != nullptr; }
  bool int8_down() const { return down_.int8 != nullptr; }

  int num_experts() const { return static_cast<int>(spec().geometry().num_experts); }
  int hidden_size() const { return static_cast<int>(spec().geometry().hidden_size); }
  bool gated() const { return spec().geometry().gated; }
  int unit_begin() const { return unit_begin_; }
  int units() const { return unit_end_ - unit_begin_; }
  int unit_rows() const { return static_cast<int>(spec().geometry().unit_rows); }
  int unit_tiles() const { return unit_rows() / kTileK; }
  int in_stride() const { return spec().gate_up_sections().k_tiles * kTileK; }
  int out_stride() const { return static_cast<int>(spec().hidden_padded()); }
  uint64_t bytes() const { return units() * spec().unit_bytes(); }

  // `unit` counts from the file's first.
  Panel GateUpPanel(int unit, int expert) const;
  Panel DownPanel(int unit, int expert, int block_begin, int block_end) const;

  // down_proj's bias for an expert, [out_stride], or null. It does not belong to a slice of I: the
  // rank with unit 0 adds it.
  const float* DownBias(int expert) const;

 private:
  template <typename T>
  const T* TableAt(uint64_t offset) const {
    return reinterpret_cast<const T*>(file_.table().data() + offset);
  }

  LayerFile file_;
  ActivationSpec activation_;
  PanelKernels gate_up_, down_;
  int unit_begin_, unit_end_;
};

}  // namespace lsg
