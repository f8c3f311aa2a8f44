// A layer as the engine sees it: its bytes, the kernels for its formats, and panels ready for
// them.
//
// Invariant: both panel formats have kernels, the unit range lies inside the file, every unit of it
// belongs to exactly one NUMA node of the engine, and an input order is a permutation.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "engine/unit_sums.h"
#include "kernels/kernels.h"
#include "memory/layer_memory.h"

namespace lsg {

class MoeLayer {
 public:
  // `rounds`: activations are quantised to int8, or rounded to bf16, where a kernel does that.
  // `node_units`: how many of the units each of `nodes` nodes takes, in order; empty: as `memory`
  // has them by node, or evenly. Throws FormatError for a format without kernels, and Error for
  // nodes that do not take all.
  MoeLayer(LayerMemory memory, const Kernels& kernels, const ActivationSpec& activation,
           bool rounds, int nodes, std::vector<int> node_units);

  // What forward passes read; LoadLayers brings it into memory.
  LayerMemory& memory() { return memory_; }
  const LayerMemory& memory() const { return memory_; }
  bool loaded() const { return memory_.loaded(); }

  const LayerSpec& spec() const { return memory_.spec(); }
  const ActivationSpec& activation() const { return activation_; }
  const PanelKernels& gate_up_kernels() const { return gate_up_; }
  const PanelKernels& down_kernels() const { return down_; }
  // Whether the panel takes int8 inputs; otherwise they are float, which a kernel may round.
  bool int8_gate_up() const { return gate_up_.int8 != nullptr; }
  bool int8_down() const { return down_.int8 != nullptr; }
  const SweepKernels& gate_up_sweep() const { return gate_up_.sweep(); }
  const SweepKernels& down_sweep() const { return down_.sweep(); }

  int num_experts() const { return static_cast<int>(spec().geometry().num_experts); }
  int hidden_size() const { return static_cast<int>(spec().geometry().hidden_size); }
  bool gated() const { return spec().geometry().gated; }
  int unit_begin() const { return memory_.unit_begin(); }
  int units() const { return memory_.unit_end() - memory_.unit_begin(); }
  UnitRange unit_range() const { return {memory_.unit_begin(), memory_.unit_end()}; }
  // The units whose records node `node` (an index into the engine's nodes) reads, and nobody else.
  UnitRange UnitsOf(int node) const { return nodes_[node].units; }
  // A node's share of the sums over units, and of the list of all nodes' pieces.
  const std::vector<UnitRange>& pieces() const { return pieces_; }
  int FirstPiece(int node) const { return nodes_[node].first_piece; }
  int EndPiece(int node) const { return nodes_[node].end_piece; }
  int unit_rows() const { return static_cast<int>(spec().geometry().unit_rows); }
  int unit_tiles() const { return unit_rows() / kTileK; }
  int in_stride() const { return spec().gate_up_sections().k_tiles * kTileK; }
  int out_stride() const { return static_cast<int>(spec().hidden_padded()); }
  uint64_t bytes() const { return units() * spec().unit_bytes(); }

  // `unit` counts from the file's first.
  Panel GateUpPanel(int unit, int expert) const;
  Panel DownPanel(int unit, int expert, int block_begin, int block_end) const;

  // Bytes of codes of 64 of gate_up's outputs and 32 inputs.
  int64_t GateUpTileBytes() const {
    const PanelSections& s = spec().gate_up_sections();
    return static_cast<int64_t>(s.codes_bytes) / s.blocks / s.k_tiles;
  }
  // Bytes of codes of 64 of down's outputs in one record.
  int64_t DownBlockBytes() const {
    const PanelSections& s = spec().down_sections();
    return static_cast<int64_t>(s.codes_bytes) / s.blocks;
  }

  // down_proj's bias for an expert, [out_stride], or null. It does not belong to a slice of I: the
  // rank with unit 0 adds it.
  const float* DownBias(int expert) const;

  // The input that each column of an expert's gate and up takes, [H]; null: column k takes input k.
  const uint32_t* InputOrder(int expert) const;

 private:
  template <typename T>
  const T* TableAt(uint64_t offset) const {
    return reinterpret_cast<const T*>(memory_.table() + offset);
  }

  LayerMemory memory_;
  ActivationSpec activation_;
  PanelKernels gate_up_, down_;
  struct Node {
    UnitRange units;
    int first_piece, end_piece;
  };
  std::vector<Node> nodes_;
  std::vector<UnitRange> pieces_;
};

}  // namespace lsg
