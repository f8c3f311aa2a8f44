// y += W · x with inputs quantised to int8: the 32 products of a tile are summed as integers,
// exactly, then one fused multiply-add takes them into the f32 sum. The same bits on every level.
#pragma once

#include "kernels/block-inl.h"

namespace lsg {
namespace {

// An integer weight format turns one part of a line into kOperands operands of a dot product, each
// four consecutive inputs of its lanes' outputs. An operand holds code + kOffset of the format's
// own offset, so the default zero point says what to subtract.

// 0 … 15, stored with an offset of 8 or a zero point.
struct Int4Operand {
  static constexpr int kBits = 4;
  static constexpr float kDefaultZeroPoint = 8.0f;
  static constexpr float kZeroPointShift = 0.0f;
  static constexpr float kScale = 1.0f;
  static void Unpack(Simd::I line, Simd::I* operand) {
    const Simd::I low_nibbles = Simd::Set1Bits(0x0f0f0f0f);
    operand[0] = Simd::And(line, low_nibbles);
    operand[1] = Simd::And(Simd::ShiftRight<4>(line), low_nibbles);
  }
  static Simd::I Dot(Simd::I acc, Simd::I w, Simd::I x) { return Simd::Dot(acc, w, x); }
  static Simd::I Finish(Simd::I acc) { return Simd::FinishDot(acc); }
};

// -128 … 127. A level whose dot product wants unsigned weights adds kWideOffset to each.
struct Int8Operand {
  static constexpr int kBits = 8;
  static constexpr float kDefaultZeroPoint = Simd::kWideOffset;
  static constexpr float kZeroPointShift = 0.0f;
  static constexpr float kScale = 1.0f;
  static void Unpack(Simd::I line, Simd::I* operand) {
    operand[0] = Simd::kWideOffset == 0 ? line : Simd::Xor(line, Simd::Set1Bits(0x80808080));
  }
  static Simd::I Dot(Simd::I acc, Simd::I w, Simd::I x) { return Simd::DotWide(acc, w, x); }
  static Simd::I Finish(Simd::I acc) { return acc; }
};

// 0 … 255 with a zero point.
struct UInt8Operand {
  static constexpr int kBits = 8;
  static constexpr float kDefaultZeroPoint = Simd::kWideOffset - 128.0f;
  static constexpr float kZeroPointShift = Simd::kWideOffset - 128.0f;
  static constexpr float kScale = 1.0f;
  static void Unpack(Simd::I line, Simd::I* operand) {
    operand[0] = Simd::kWideOffset == 0 ? Simd::Xor(line, Simd::Set1Bits(0x80808080)) : line;
  }
  static Simd::I Dot(Simd::I acc, Simd::I w, Simd::I x) { return Simd::DotWide(acc, w, x); }
  static Simd::I Finish(Simd::I acc) { return acc; }
};

constexpr uint8_t WideCode(int code) { return static_cast<uint8_t>(code + Simd::kWideOffset); }

// The sixteen values of e2m1 twice over are integers.
struct E2m1Operand {
  static constexpr int kBits = 4;
  static constexpr float kDefaultZeroPoint = Simd::kWideOffset;
  static constexpr float kZeroPointShift = 0.0f;
  static constexpr float kScale = 0.5f;
  static void Unpack(Simd::I line, Simd::I* operand) {
    alignas(16) static constexpr uint8_t kDoubled[16] = {
        WideCode(0),  WideCode(1),  WideCode(2),  WideCode(3),  WideCode(4),  WideCode(6),
        WideCode(8),  WideCode(12), WideCode(0),  WideCode(-1), WideCode(-2), WideCode(-3),
        WideCode(-4), WideCode(-6), WideCode(-8), WideCode(-12)};
    const Simd::I low_nibbles = Simd::Set1Bits(0x0f0f0f0f);
    operand[0] = Simd::LookupBytes(kDoubled, Simd::And(line, low_nibbles));
    operand[1] = Simd::LookupBytes(kDoubled, Simd::And(Simd::ShiftRight<4>(line), low_nibbles));
  }
  static Simd::I Dot(Simd::I acc, Simd::I w, Simd::I x) { return Simd::DotWide(acc, w, x); }
  static Simd::I Finish(Simd::I acc) { return acc; }
};

template <class Weight>
constexpr int kOperands = 8 / Weight::kBits;
// Operands of a tile: eight times four inputs.
constexpr int kTileOperands = kTileK / 4;

// kGroups: scale groups in a tile of 32 inputs, 1 (or a group is longer than a tile) or 2.
template <class Weight, int kGroups, int M>
void Int8Panel(const Panel& panel, const Int8Row* x, float* const* y, bool accumulate) {
  constexpr size_t kTileBytes = TileBytes(Weight::kBits);
  constexpr int kPerLine = kOperands<Weight>;
  constexpr int kLines = kTileOperands / kPerLine;
  const uint8_t* codes = panel.codes;
  BlockSums<M> sums;
  GroupScales group[kGroups];
  for (int block = 0; block < panel.blocks; ++block) {
    sums.Begin(panel, block, y, accumulate);
    for (int k_tile = 0; k_tile < panel.k_tiles; ++k_tile) {
      if (kGroups > 1 || k_tile % panel.tiles_per_scale == 0) {
        for (int g = 0; g < kGroups; ++g) {
          const int at = kGroups > 1 ? k_tile * kGroups + g : k_tile / panel.tiles_per_scale;
          group[g].Load(panel, block, at, Weight::kScale);
          if (panel.zero_points != nullptr || (block == 0 && k_tile == 0)) {
            group[g].LoadZeroPoints(panel, block, at, Weight::kDefaultZeroPoint,
                                    Weight::kZeroPointShift);
          }
        }
      }
      for (int t = 0; t < kTilesPerBlock; ++t, codes += kTileBytes) {
        PrefetchTile(codes, kTileBytes);
        Simd::I dot[M][kGroups][kParts];
        for (int m = 0; m < M; ++m) {
          for (int g = 0; g < kGroups; ++g) {
            for (int part = 0; part < kParts; ++part) dot[m][g][part] = Simd::ZeroBits();
          }
        }
        for (int g = 0; g < kGroups; ++g) {
          for (int line = g * kLines / kGroups; line < (g + 1) * kLines / kGroups; ++line) {
            for (int part = 0; part < kParts; ++part) {
              Simd::I w[kPerLine];
              Weight::Unpack(Simd::LoadBits(codes + line * kLineBytes + part * Simd::kLanes * 4),
                             w);
              for (int m = 0; m < M; ++m) {
                const int8_t* inputs = x[m].codes + k_tile * kTileK + line * 4 * kPerLine;
                for (int i = 0; i < kPerLine; ++i) {
                  dot[m][g][part] =
                      Weight::Dot(dot[m][g][part], w[i], Simd::Broadcast4(inputs + 4 * i));
                }
              }
            }
          }
        }
        for (int g = 0; g < kGroups; ++g) {
          for (int part = 0; part < kParts; ++part) {
            const int n = t * kTileN + part * Simd::kLanes;
            const Simd::F scale = Simd::Load(group[g].scale + n);
            const Simd::F zero_point = Simd::Load(group[g].zero_point + n);
            for (int m = 0; m < M; ++m) {
              // sum (code - zero_point) · x = dot - zero_point · sum x: integers below 2^24, so
              // exact in f32.
              const int16_t* half_sums = x[m].half_sums + 2 * k_tile;
              const int sum = kGroups > 1 ? half_sums[g] : half_sums[0] + half_sums[1];
              const Simd::F value = Simd::Fma(zero_point, Simd::Set1(static_cast<float>(-sum)),
                                              Simd::FromInt(Weight::Finish(dot[m][g][part])));
              const Simd::F both_scales = Simd::Mul(scale, Simd::Set1(x[m].scales[k_tile]));
              sums.at[m][t][part] = Simd::Fma(value, both_scales, sums.at[m][t][part]);
            }
          }
        }
      }
    }
    sums.End(block, y);
  }
}

template <class Weight, int kGroups>
void Int8Entry(const Panel& panel, const Int8Row* x, int tokens, float* const* y, bool accumulate) {
  switch (tokens) {
    case 1:
      return Int8Panel<Weight, kGroups, 1>(panel, x, y, accumulate);
    case 2:
      return Int8Panel<Weight, kGroups, 2>(panel, x, y, accumulate);
    case 3:
      return Int8Panel<Weight, kGroups, 3>(panel, x, y, accumulate);
    default:
      return Int8Panel<Weight, kGroups, 4>(panel, x, y, accumulate);
  }
}

}  // namespace
}  // namespace lsg
