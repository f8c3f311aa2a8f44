// y += W · x with inputs quantised to int8: the 32 products of a tile are summed as integers,
// exactly, then one fused multiply-add takes them into the f32 sum. The same bits on every level.
#pragma once

#include "kernels/block-inl.h"

namespace lsg {
namespace {

// An integer weight format turns one part of a line into kOperands operands of a dot product, each
// four consecutive inputs of its lanes' outputs. Where kOffset, operands are off by the zero point,
// or by kDefaultZeroPoint in panels without. At most kMaxDots dot products go into one sum before
// Finish.

// 0 … 15, stored with an offset of 8 or a zero point.
struct Int4Operand {
  static constexpr int kBits = 4;
  static constexpr int kMaxDots = 8;
  static constexpr bool kOffset = true;
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
  static constexpr int kMaxDots = kTileK / 4;
  static constexpr bool kOffset = Simd::kWideOffset != 0;
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
  static constexpr int kMaxDots = kTileK / 4;
  static constexpr bool kOffset = true;
  static constexpr float kDefaultZeroPoint = Simd::kWideOffset - 128.0f;
  static constexpr float kZeroPointShift = Simd::kWideOffset - 128.0f;
  static constexpr float kScale = 1.0f;
  static void Unpack(Simd::I line, Simd::I* operand) {
    operand[0] = Simd::kWideOffset == 0 ? Simd::Xor(line, Simd::Set1Bits(0x80808080)) : line;
  }
  static Simd::I Dot(Simd::I acc, Simd::I w, Simd::I x) { return Simd::DotWide(acc, w, x); }
  static Simd::I Finish(Simd::I acc) { return acc; }
};

// The sixteen values of e2m1 twice over are integers, 0 … 24 with an offset of 12.
struct E2m1Operand {
  static constexpr int kBits = 4;
  // Four sums of two products in 16 bits: at most 24384.
  static constexpr int kMaxDots = 4;
  static constexpr bool kOffset = true;
  static constexpr float kDefaultZeroPoint = 12.0f;
  static constexpr float kZeroPointShift = 0.0f;
  static constexpr float kScale = 0.5f;
  static void Unpack(Simd::I line, Simd::I* operand) {
    alignas(16) static constexpr uint8_t kDoubled[16] = {12, 13, 14, 15, 16, 18, 20, 24,
                                                         12, 11, 10, 9,  8,  6,  4,  0};
    const Simd::I low_nibbles = Simd::Set1Bits(0x0f0f0f0f);
    operand[0] = Simd::LookupBytes(kDoubled, Simd::And(line, low_nibbles));
    operand[1] = Simd::LookupBytes(kDoubled, Simd::And(Simd::ShiftRight<4>(line), low_nibbles));
  }
  static Simd::I Dot(Simd::I acc, Simd::I w, Simd::I x) { return Simd::Dot(acc, w, x); }
  static Simd::I Finish(Simd::I acc) { return Simd::FinishDot(acc); }
};

template <class Weight>
constexpr int kOperands = 8 / Weight::kBits;
// Operands of a tile: eight times four inputs.
constexpr int kTileOperands = kTileK / 4;
// Sums of a tile that are finished on their own: one for each scale group, or more where the
// operands would overflow a sum.
template <class Weight, int kGroups>
constexpr int kTileSums =
    kGroups * Weight::kMaxDots >= kTileOperands ? kGroups : kTileOperands / Weight::kMaxDots;

// The sum of a group's products.
template <class Weight, int kSums>
Simd::I FinishSums(const Simd::I* sums) {
  Simd::I sum = Weight::Finish(sums[0]);
  for (int i = 1; i < kSums; ++i) sum = Simd::AddInt(sum, Weight::Finish(sums[i]));
  return sum;
}

inline Simd::I Offset(const int32_t& value) { return Simd::Set1Bits(static_cast<uint32_t>(value)); }

// kGroups: scale groups in a tile of 32 inputs, 1 (or a group is longer than a tile) or 2.
// kFew: few lines are fetched ahead, for a processor that fetches by itself what is read in order.
template <class Weight, int kGroups, bool kZeroPoints, int M, bool kFew>
void Int8Panel(const Panel& panel, const Int8Row* x, float* const* y, bool accumulate) {
  constexpr size_t kTileBytes = TileBytes(Weight::kBits);
  constexpr int kPerLine = kOperands<Weight>;
  constexpr int kLines = kTileOperands / kPerLine;
  constexpr int kSums = kTileSums<Weight, kGroups>;
  constexpr int kGroupSums = kSums / kGroups;
  // It follows each load instruction for itself, and unrolled whole each reads one line in 32: int8
  // came with 27 instead of 32 GB/s to one token on two Zen 4 cores, with 26 instead of 31 to four.
  // Four bits have fewer loads, and lose what they gain.
  constexpr bool kUnrolled = !kFew || kPerLine > 1 || Simd::kDotBits != 32;
  constexpr int kLinesAtOnce = 2;
  // Vectors of outputs that are summed side by side, and those that share a load of an input: one
  // where that saves few loads, because memory gives most when lines are read in order. Four pay
  // where all sums fit 32 registers; weights of four bits need too many beside.
  constexpr bool kInOrder = kFew || (kGroups == 1 && M * kPerLine <= 2);
  constexpr int kMostShared = kPerLine == 1 && kSums == 1 && Simd::kLanes == 16 ? 4 : 2;
  constexpr int kShared = Simd::kDotBits == 32 && kGroupSums == 1 && !kInOrder ? kMostShared : 1;
  constexpr int kV = kShared > kParts ? kShared : kParts;
  // The offset of weights without zero points is an integer: sums of 32 bits begin with it.
  constexpr bool kInDot = Weight::kOffset && !kZeroPoints && Simd::kDotBits == 32;
  constexpr size_t kStep = kTilesPerBlock * kTileBytes;
  const uint8_t* codes = panel.codes;
  Ahead ahead(panel, kStep);
  BlockSums<M> sums;
  // Where lines are fetched by the processor, shorter bursts of another stream disturb it less.
  ScaleWalk<kGroups, kFew ? 4 : 8> scales(panel, Weight::kScale, Weight::kZeroPointShift,
                                          Weight::kDefaultZeroPoint, kFew);
  for (int block = 0; block < panel.blocks; ++block) {
    sums.Begin(panel, block, y, accumulate);
    scales.BeginBlock();
    for (int k_tile = 0; k_tile < panel.k_tiles; ++k_tile) {
      scales.Next();
      const bool in_next = ahead.InNext();
      const uint8_t* fetch = ahead.Step(kStep);
      if (kFew && in_next && !panel.cached) PrefetchLines(fetch, kStep);
      float minus_sum[M][kGroups];
      int32_t minus_offset[M][kGroups];
      for (int m = 0; m < M; ++m) {
        const int16_t* half_sums = x[m].half_sums + 2 * k_tile;
        for (int g = 0; g < kGroups; ++g) {
          const int sum = kGroups > 1 ? half_sums[g] : half_sums[0] + half_sums[1];
          minus_sum[m][g] = static_cast<float>(-sum);
          minus_offset[m][g] = -sum * static_cast<int>(Weight::kDefaultZeroPoint);
        }
      }
#pragma GCC unroll 4
      for (int first = 0; first < kBlockN; first += kV * Simd::kLanes) {
        PrefetchLines(fetch + first / kTileN * kTileBytes, kV * Simd::kLanes / kTileN * kTileBytes,
                      kFew);
        const auto output = [&](int v) { return first + v * Simd::kLanes; };
        Simd::I dot[M][kV][kSums];
        for (int m = 0; m < M; ++m) {
          for (int v = 0; v < kV; ++v) {
            for (int i = 0; i < kSums; ++i) {
              const bool begins = i % kGroupSums == 0;
              dot[m][v][i] =
                  kInDot && begins ? Offset(minus_offset[m][i / kGroupSums]) : Simd::ZeroBits();
            }
          }
        }
        const auto multiply = [&](int line) {
          for (int begin = 0; begin < kV; begin += kShared) {
            Simd::I w[kShared][kPerLine];
            for (int v = 0; v < kShared; ++v) {
              const int n = output(begin + v);
              const uint8_t* tile = codes + n / kTileN * kTileBytes;
              Weight::Unpack(Simd::LoadBits(tile + line * kLineBytes + n % kTileN * 4), w[v]);
            }
            for (int m = 0; m < M; ++m) {
              const int8_t* inputs = x[m].codes + k_tile * kTileK + line * 4 * kPerLine;
              for (int i = 0; i < kPerLine; ++i) {
                const Simd::I input = Simd::Broadcast4(inputs + 4 * i);
                for (int v = 0; v < kShared; ++v) {
                  Simd::I& sum = dot[m][begin + v][line * kSums / kLines];
                  sum = Weight::Dot(sum, w[v][i], input);
                }
              }
            }
          }
        };
        if constexpr (kUnrolled) {
          for (int line = 0; line < kLines; ++line) multiply(line);
        } else {
#pragma GCC unroll 1
          for (int line = 0; line < kLines; line += kLinesAtOnce) {
            for (int i = 0; i < kLinesAtOnce; ++i) multiply(line + i);
          }
        }
        for (int g = 0; g < kGroups; ++g) {
          for (int v = 0; v < kV; ++v) {
            const int n = output(v);
            const Simd::F scale = Simd::Load(scales.Scale(g) + n);
            for (int m = 0; m < M; ++m) {
              // sum (code - zero_point) · x = dot - zero_point · sum x: integers below 2^24, so
              // exact in f32 too.
              const Simd::I group_sum = FinishSums<Weight, kGroupSums>(dot[m][v] + g * kGroupSums);
              Simd::F value = Simd::FromInt(group_sum);
              if constexpr (Weight::kOffset && !kInDot) {
                const Simd::F zero_point = kZeroPoints ? Simd::Load(scales.ZeroPoint(g) + n)
                                                       : Simd::Set1(Weight::kDefaultZeroPoint);
                value = Simd::Fma(zero_point, Simd::Set1(minus_sum[m][g]), value);
              }
              const Simd::F both_scales = Simd::Mul(scale, Simd::Set1(x[m].scales[k_tile]));
              Simd::F& sum = sums.at[m][n / kTileN][n % kTileN / Simd::kLanes];
              sum = Simd::Fma(value, both_scales, sum);
            }
          }
        }
      }
      codes += kStep;
    }
    sums.End(block, y);
  }
}

template <class Weight, int kGroups, bool kZeroPoints>
void Int8Tokens(const Panel& panel, const Int8Row* x, int tokens, float* const* y,
                bool accumulate) {
  WithCount<kMaxTokens>(tokens, [&]<int M>() {
    // One or two tokens wait for memory, unless four bits lack a dot product of bytes, or have
    // twice the scales; with a byte a weight and that product, so do more.
    constexpr bool kDots = Simd::kDotBits == 32, kBytes = kOperands<Weight> == 1;
    if constexpr (kGroups == 1 && (M <= 2 ? kDots || kBytes : kDots && kBytes)) {
      if (panel.few_fetches) {
        Int8Panel<Weight, kGroups, kZeroPoints, M, true>(panel, x, y, accumulate);
        return;
      }
    }
    Int8Panel<Weight, kGroups, kZeroPoints, M, false>(panel, x, y, accumulate);
  });
}

template <class Weight, int kGroups>
void Int8Entry(const Panel& panel, const Int8Row* x, int tokens, float* const* y, bool accumulate) {
  const auto entry = panel.zero_points != nullptr ? &Int8Tokens<Weight, kGroups, true>
                                                  : &Int8Tokens<Weight, kGroups, false>;
  entry(panel, x, tokens, y, accumulate);
}

}  // namespace
}  // namespace lsg
