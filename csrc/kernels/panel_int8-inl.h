// y += W · x with int4 weights and inputs quantised to int8: 32 products are summed as integers,
// exactly, then one fused multiply-add takes the tile into the f32 sum.
//
// Per 64-byte line (128 weights): one load, three logic operations, two Dots a token. The same bits
// on every level.
#pragma once

#include "kernels/block-inl.h"

namespace lsg {
namespace {

template <int M>
void Int4ByInt8(const Panel& panel, const Int8Row* x, float* const* y, bool accumulate) {
  constexpr size_t kTileBytes = TileBytes(4);
  const Simd::I low_nibbles = Simd::Set1Bits(0x0f0f0f0f);
  const uint8_t* codes = panel.codes;
  BlockSums<M> sums;
  GroupScales group;
  for (int block = 0; block < panel.blocks; ++block) {
    sums.Begin(panel, block, y, accumulate);
    for (int k_tile = 0; k_tile < panel.k_tiles; ++k_tile) {
      if (k_tile % panel.tiles_per_scale == 0) {
        group.Load(panel, block, k_tile / panel.tiles_per_scale);
        if (panel.zero_points != nullptr || (block == 0 && k_tile == 0)) {
          group.LoadZeroPoints(panel, block, k_tile / panel.tiles_per_scale, 8.0f);
        }
      }
      for (int t = 0; t < kTilesPerBlock; ++t, codes += kTileBytes) {
        PrefetchTile(codes, kTileBytes);
        Simd::I dot[M][kParts];
        for (int m = 0; m < M; ++m) {
          for (int part = 0; part < kParts; ++part) dot[m][part] = Simd::ZeroBits();
        }
        for (int line = 0; line < 4; ++line) {
          for (int part = 0; part < kParts; ++part) {
            const Simd::I both =
                Simd::LoadBits(codes + line * kLineBytes + part * Simd::kLanes * 4);
            const Simd::I low = Simd::And(both, low_nibbles);
            const Simd::I high = Simd::And(Simd::ShiftRight<4>(both), low_nibbles);
            for (int m = 0; m < M; ++m) {
              const int8_t* inputs = x[m].codes + k_tile * kTileK + line * 8;
              dot[m][part] = Simd::Dot(dot[m][part], low, Simd::Broadcast4(inputs));
              dot[m][part] = Simd::Dot(dot[m][part], high, Simd::Broadcast4(inputs + 4));
            }
          }
        }
        for (int part = 0; part < kParts; ++part) {
          const int n = t * kTileN + part * Simd::kLanes;
          const Simd::F scale = Simd::Load(group.scale + n);
          const Simd::F zero_point = Simd::Load(group.zero_point + n);
          for (int m = 0; m < M; ++m) {
            // sum (code - zero_point) · x = dot - zero_point · sum x; integers below 2^17, so exact
            // in f32.
            const Simd::F minus_sum = Simd::Set1(static_cast<float>(-x[m].sums[k_tile]));
            const Simd::F value =
                Simd::Fma(zero_point, minus_sum, Simd::FromInt(Simd::FinishDot(dot[m][part])));
            const Simd::F both_scales = Simd::Mul(scale, Simd::Set1(x[m].scales[k_tile]));
            sums.at[m][t][part] = Simd::Fma(value, both_scales, sums.at[m][t][part]);
          }
        }
      }
    }
    sums.End(block, y);
  }
}

inline void Int8Entry(const Panel& panel, const Int8Row* x, int tokens, float* const* y,
                      bool accumulate) {
  switch (tokens) {
    case 1:
      return Int4ByInt8<1>(panel, x, y, accumulate);
    case 2:
      return Int4ByInt8<2>(panel, x, y, accumulate);
    case 3:
      return Int4ByInt8<3>(panel, x, y, accumulate);
    default:
      return Int4ByInt8<4>(panel, x, y, accumulate);
  }
}

}  // namespace
}  // namespace lsg
