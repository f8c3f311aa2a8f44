// y += W · x with float inputs: every weight is decoded to f32 and meets its exact input ("true"
// WxA16).
//
// Lanes are outputs, so every level adds an output's terms in the same order, with the same fused
// operations, and all levels give the same bits. Per tile: a sum of code · x, then one fused
// multiply-add with the scale.
#pragma once

#include <type_traits>

#include "kernels/block-inl.h"

namespace lsg {
namespace {

// A weight format decodes one part of a line: kInputs consecutive inputs of each lane's output.
template <int kShift, uint32_t kMask>
Simd::I Field(Simd::I lanes) {
  return Simd::And(Simd::ShiftRight<kShift>(lanes), Simd::Set1Bits(kMask));
}

struct Int4Weight {
  static constexpr int kBits = 4;
  static constexpr bool kScaled = true, kZeroPoints = true;
  static constexpr float kDefaultZeroPoint = 8.0f;
  static void Decode(Simd::I lanes, Simd::F zero_point, Simd::F* w) {
    const auto code = [&](Simd::I field) { return Simd::Sub(Simd::FromInt(field), zero_point); };
    w[0] = code(Field<0, 15>(lanes)), w[4] = code(Field<4, 15>(lanes));
    w[1] = code(Field<8, 15>(lanes)), w[5] = code(Field<12, 15>(lanes));
    w[2] = code(Field<16, 15>(lanes)), w[6] = code(Field<20, 15>(lanes));
    w[3] = code(Field<24, 15>(lanes)), w[7] = code(Field<28, 15>(lanes));
  }
};

struct E2m1Weight {
  static constexpr int kBits = 4;
  static constexpr bool kScaled = true, kZeroPoints = false;
  static constexpr float kDefaultZeroPoint = 0.0f;
  static void Decode(Simd::I lanes, Simd::F, Simd::F* w) {
    alignas(64) static constexpr float kValues[16] = {0,     0.5f,  1,  1.5f,  2,  3,  4,  6,
                                                      -0.0f, -0.5f, -1, -1.5f, -2, -3, -4, -6};
    const auto value = [](Simd::I field) { return Simd::Lookup16(kValues, field); };
    w[0] = value(Field<0, 15>(lanes)), w[4] = value(Field<4, 15>(lanes));
    w[1] = value(Field<8, 15>(lanes)), w[5] = value(Field<12, 15>(lanes));
    w[2] = value(Field<16, 15>(lanes)), w[6] = value(Field<20, 15>(lanes));
    w[3] = value(Field<24, 15>(lanes)), w[7] = value(Field<28, 15>(lanes));
  }
};

struct Int8Weight {
  static constexpr int kBits = 8;
  static constexpr bool kScaled = true, kZeroPoints = false;
  static constexpr float kDefaultZeroPoint = 0.0f;
  static void Decode(Simd::I lanes, Simd::F, Simd::F* w) {
    w[0] = Simd::FromInt(Simd::ShiftRightSigned<24>(Simd::ShiftLeft<24>(lanes)));
    w[1] = Simd::FromInt(Simd::ShiftRightSigned<24>(Simd::ShiftLeft<16>(lanes)));
    w[2] = Simd::FromInt(Simd::ShiftRightSigned<24>(Simd::ShiftLeft<8>(lanes)));
    w[3] = Simd::FromInt(Simd::ShiftRightSigned<24>(lanes));
  }
};

struct UInt8Weight {
  static constexpr int kBits = 8;
  static constexpr bool kScaled = true, kZeroPoints = true;
  static constexpr float kDefaultZeroPoint = 0.0f;
  static void Decode(Simd::I lanes, Simd::F zero_point, Simd::F* w) {
    w[0] = Simd::Sub(Simd::FromInt(Field<0, 255>(lanes)), zero_point);
    w[1] = Simd::Sub(Simd::FromInt(Field<8, 255>(lanes)), zero_point);
    w[2] = Simd::Sub(Simd::FromInt(Field<16, 255>(lanes)), zero_point);
    w[3] = Simd::Sub(Simd::FromInt(Field<24, 255>(lanes)), zero_point);
  }
};

// An 8-bit float: moved to the top of a lane and kSpread down again, sign-extended, its exponent
// and mantissa stand in f32's places, and kMask takes the copies of the sign between them away. It
// then reads 2^kBias too small. Exact, subnormals included; the converter refuses codes that are
// infinite or NaN.
template <int kSpread, uint32_t kMask, int kBias>
struct Fp8Weight {
  static constexpr int kBits = 8;
  static constexpr bool kScaled = true, kZeroPoints = false;
  static constexpr float kDefaultZeroPoint = 0.0f;
  template <int kByte>
  static Simd::F Value(Simd::I lanes) {
    const Simd::I top = Simd::ShiftLeft<24 - 8 * kByte>(lanes);
    const Simd::I bits = Simd::And(Simd::ShiftRightSigned<kSpread>(top), Simd::Set1Bits(kMask));
    const Simd::F power = Simd::FromBits(Simd::Set1Bits((127u + kBias) << 23));
    return Simd::Mul(Simd::FromBits(bits), power);
  }
  static void Decode(Simd::I lanes, Simd::F, Simd::F* w) {
    w[0] = Value<0>(lanes), w[1] = Value<1>(lanes);
    w[2] = Value<2>(lanes), w[3] = Value<3>(lanes);
  }
};
using E4m3Weight = Fp8Weight<4, 0x87f00000, 120>;
using E5m2Weight = Fp8Weight<3, 0x8fe00000, 112>;

struct Bf16Weight {
  static constexpr int kBits = 16;
  static constexpr bool kScaled = false, kZeroPoints = false;
  static constexpr float kDefaultZeroPoint = 0.0f;
  static void Decode(Simd::I lanes, Simd::F, Simd::F* w) {
    w[0] = Simd::FromBits(Simd::ShiftLeft<16>(lanes));
    w[1] = Simd::FromBits(Simd::And(lanes, Simd::Set1Bits(0xffff0000)));
  }
};

struct F16Weight {
  static constexpr int kBits = 16;
  static constexpr bool kScaled = false, kZeroPoints = false;
  static constexpr float kDefaultZeroPoint = 0.0f;
  static Simd::F Value(Simd::I magnitude, Simd::I sign) {
    const Simd::I bits = Simd::Or(Simd::ShiftLeft<13>(magnitude), sign);
    return Simd::Mul(Simd::FromBits(bits), Simd::Set1(0x1p112f));
  }
  static void Decode(Simd::I lanes, Simd::F, Simd::F* w) {
    const Simd::I sign = Simd::Set1Bits(0x80000000);
    w[0] = Value(Field<0, 0x7fff>(lanes), Simd::And(Simd::ShiftLeft<16>(lanes), sign));
    w[1] = Value(Field<16, 0x7fff>(lanes), Simd::And(lanes, sign));
  }
};

// kGroups: scale groups in a tile of 32 inputs, 1 (or a group is longer than a tile) or 2.
template <class Weight, int kGroups, int M>
void FloatPanel(const Panel& panel, const float* const* x, float* const* y, bool accumulate) {
  constexpr size_t kTileBytes = TileBytes(Weight::kBits);
  constexpr int kInputs = 32 / Weight::kBits;  // of a line
  constexpr int kLines = kTileK / kInputs;
  // Decoding a weight takes as long as reading it, but for bf16 in long vectors; in short ones bf16
  // came with 20 instead of 28 GB/s to two Zen 3 cores.
  const bool few = std::is_same_v<Weight, Bf16Weight> && Simd::kLanes == 16 && panel.few_fetches;
  // Vectors of outputs that are summed side by side: so lines are read in order, and one or two
  // tokens have sums enough to wait for.
  constexpr int kV = kParts == 2 && M <= 2 ? kParts : 1;
  // One or two tokens leave registers for several lines in 32 registers; with 16 four tokens of fp8
  // came with 5.7 instead of 7.0 GB/s a core when lines were unrolled in twos.
  constexpr bool kUnrolled = Simd::kLanes == 16 && M <= 2;
  constexpr size_t kStep = kTilesPerBlock * kTileBytes;
  const uint8_t* codes = panel.codes;
  Ahead ahead(panel, kStep);
  BlockSums<M> sums;
  ScaleWalk<kGroups> scales(panel, 1.0f, 0.0f, Weight::kDefaultZeroPoint);
  for (int block = 0; block < panel.blocks; ++block) {
    sums.Begin(panel, block, y, accumulate);
    scales.BeginBlock();
    for (int k_tile = 0; k_tile < panel.k_tiles; ++k_tile) {
      if constexpr (Weight::kScaled) scales.Next();
      const uint8_t* fetch = ahead.Step(kStep);
      for (int t = 0; t < kTilesPerBlock; ++t, codes += kTileBytes, fetch += kTileBytes) {
        PrefetchLines(fetch, kTileBytes, few);
        for (int part = 0; part < kParts; part += kV) {
          const auto output = [&](int v) { return t * kTileN + (part + v) * Simd::kLanes; };
          for (int g = 0; g < kGroups; ++g) {
            Simd::F zero_point[kV];
            for (int v = 0; v < kV; ++v) {
              zero_point[v] =
                  Weight::kZeroPoints ? Simd::Load(scales.ZeroPoint(g) + output(v)) : Simd::Zero();
            }
            // Two sums a token halve the chain of dependent additions.
            Simd::F sum[M][kV][2];
#pragma GCC unroll 4
            for (int m = 0; m < M; ++m) {
              for (int v = 0; v < kV; ++v) sum[m][v][0] = sum[m][v][1] = Simd::Zero();
            }
            const auto multiply = [&](int line) {
              Simd::F w[kV][kInputs];
              for (int v = 0; v < kV; ++v) {
                const int at = line * kLineBytes + (part + v) * Simd::kLanes * 4;
                Weight::Decode(Simd::LoadBits(codes + at), zero_point[v], w[v]);
              }
              const float* inputs[M];
              for (int m = 0; m < M; ++m) inputs[m] = x[m] + k_tile * kTileK + line * kInputs;
              // Unrolled, or the sums would not stay in registers.
#pragma GCC unroll 8
              for (int i = 0; i < kInputs; ++i) {
#pragma GCC unroll 4
                for (int m = 0; m < M; ++m) {
                  const Simd::F input = Simd::Set1(inputs[m][i]);
                  for (int v = 0; v < kV; ++v) {
                    sum[m][v][i % 2] = Simd::Fma(w[v][i], input, sum[m][v][i % 2]);
                  }
                }
              }
            };
            constexpr int kGroupLines = kLines / kGroups;
            if constexpr (kUnrolled) {
#pragma GCC unroll 16
              for (int i = 0; i < kGroupLines; ++i) multiply(g * kGroupLines + i);
            } else {
              for (int i = 0; i < kGroupLines; ++i) multiply(g * kGroupLines + i);
            }
#pragma GCC unroll 4
            for (int m = 0; m < M; ++m) {
              for (int v = 0; v < kV; ++v) {
                Simd::F& total = sums.at[m][t][part + v];
                const Simd::F tile = Simd::Add(sum[m][v][0], sum[m][v][1]);
                if constexpr (Weight::kScaled) {
                  total = Simd::Fma(tile, Simd::Load(scales.Scale(g) + output(v)), total);
                } else {
                  total = Simd::Add(total, tile);
                }
              }
            }
          }
        }
      }
    }
    sums.End(block, y);
  }
}

template <class Weight, int kGroups>
void FloatEntry(const Panel& panel, const float* const* x, int tokens, float* const* y,
                bool accumulate) {
  WithCount<kMaxTokens>(tokens,
                        [&]<int M>() { FloatPanel<Weight, kGroups, M>(panel, x, y, accumulate); });
}

}  // namespace
}  // namespace lsg
