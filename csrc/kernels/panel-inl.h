// Panel kernels: y += W · x for one format, over the Simd of the including level.
//
// Lanes are outputs, so every level adds an output's terms in the same order, with the same fused operations, and all
// levels give the same bits. Per tile and token one int32 (or f32) sum, then one fused multiply-add into the f32 sum.
#pragma once

#include "kernels/kernels.h"
#include "layout/tile.h"

namespace lsg {
namespace {

constexpr int kParts = kTileN / Simd::kLanes;  // vectors that hold a tile's outputs
// One record's sections lie one behind the other, so running ahead stays useful to the end of the unit.
// Measured best of 512, 1024, 2048, 4096 bytes.
constexpr int kPrefetchBytes = 2048;

inline void PrefetchTile(const uint8_t* codes, size_t bytes) {
  for (size_t at = 0; at < bytes; at += kLineBytes) {
    __builtin_prefetch(codes + kPrefetchBytes + at, 0, 0);
  }
}

struct ScaleBf16 {
  static constexpr int kBytes = 2;
  static Simd::F Load(const uint8_t* p) {
    return Simd::FromBits(Simd::ShiftLeft<16>(Simd::LoadU16(p)));
  }
};
struct ScaleF16 {
  static constexpr int kBytes = 2;
  static Simd::F Load(const uint8_t* p) { return Simd::LoadF16(p); }
};
struct ScaleF32 {
  static constexpr int kBytes = 4;
  static Simd::F Load(const uint8_t* p) { return Simd::FromBits(Simd::LoadBits(p)); }
};

// A block's sums for M tokens, [token][tile][part].
template <int M>
struct BlockSums {
  Simd::F at[M][kTilesPerBlock][kParts];

  void Begin(const Panel& panel, int block, float* const* y, bool accumulate) {
    for (int m = 0; m < M; ++m) {
      for (int n = 0; n < kBlockN; n += Simd::kLanes) {
        const int out = block * kBlockN + n;
        Simd::F sum = accumulate ? Simd::Load(y[m] + out) : Simd::Zero();
        if (panel.bias != nullptr) sum = Simd::Add(sum, Simd::Load(panel.bias + out));
        at[m][n / kTileN][n % kTileN / Simd::kLanes] = sum;
      }
    }
  }

  void End(int block, float* const* y) const {
    for (int m = 0; m < M; ++m) {
      for (int n = 0; n < kBlockN; n += Simd::kLanes) {
        Simd::Store(y[m] + block * kBlockN + n, at[m][n / kTileN][n % kTileN / Simd::kLanes]);
      }
    }
  }
};

template <class Scale, int M>
void Int4ByInt8(const Panel& panel, const Int8Row* x, float* const* y, bool accumulate) {
  constexpr size_t kTileBytes = TileBytes(4);
  const Simd::I low_nibbles = Simd::Set1Bits(0x0f0f0f0f);
  const uint8_t* codes = panel.codes;
  const uint8_t* block_scales = panel.scales;
  BlockSums<M> sums;
  for (int block = 0; block < panel.blocks; ++block) {
    sums.Begin(panel, block, y, accumulate);
    const uint8_t* scales = block_scales;
    int tiles_left = panel.tiles_per_scale;
    for (int k_tile = 0; k_tile < panel.k_tiles; ++k_tile) {
      if (tiles_left-- == 0) {
        scales += kBlockN * Scale::kBytes;
        tiles_left = panel.tiles_per_scale - 1;
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
          const Simd::F scale =
              Scale::Load(scales + (t * kTileN + part * Simd::kLanes) * Scale::kBytes);
          for (int m = 0; m < M; ++m) {
            // Codes are stored as q + 8.
            const Simd::I offset = Simd::Set1Bits(static_cast<uint32_t>(8 * x[m].sums[k_tile]));
            const Simd::F value =
                Simd::FromInt(Simd::SubInt(Simd::FinishDot(dot[m][part]), offset));
            const Simd::F both_scales = Simd::Mul(scale, Simd::Set1(x[m].scales[k_tile]));
            sums.at[m][t][part] = Simd::Fma(value, both_scales, sums.at[m][t][part]);
          }
        }
      }
    }
    sums.End(block, y);
    block_scales += panel.scale_groups * kBlockN * Scale::kBytes;
  }
}

// Code i of a lane (bits 4i … 4i + 3) as a float: shift it to the top, then arithmetically down.
template <int i>
Simd::F SignedNibble(Simd::I twos_complement) {
  return Simd::FromInt(Simd::ShiftRightSigned<28>(Simd::ShiftLeft<28 - 4 * i>(twos_complement)));
}

template <class Scale, int M>
void Int4ByFloat(const Panel& panel, const float* const* x, float* const* y, bool accumulate) {
  constexpr size_t kTileBytes = TileBytes(4);
  // Flipping the top bit turns q + 8 into two's complement.
  const Simd::I flip = Simd::Set1Bits(0x88888888);
  const uint8_t* codes = panel.codes;
  const uint8_t* block_scales = panel.scales;
  BlockSums<M> sums;
  for (int block = 0; block < panel.blocks; ++block) {
    sums.Begin(panel, block, y, accumulate);
    const uint8_t* scales = block_scales;
    int tiles_left = panel.tiles_per_scale;
    for (int k_tile = 0; k_tile < panel.k_tiles; ++k_tile) {
      if (tiles_left-- == 0) {
        scales += kBlockN * Scale::kBytes;
        tiles_left = panel.tiles_per_scale - 1;
      }
      for (int t = 0; t < kTilesPerBlock; ++t, codes += kTileBytes) {
        PrefetchTile(codes, kTileBytes);
        for (int part = 0; part < kParts; ++part) {
          // Two sums a token halve the chain of dependent additions.
          Simd::F even[M], odd[M];
          for (int m = 0; m < M; ++m) even[m] = odd[m] = Simd::Zero();
          for (int line = 0; line < 4; ++line) {
            const Simd::I q = Simd::Xor(
                Simd::LoadBits(codes + line * kLineBytes + part * Simd::kLanes * 4), flip);
            // Bits 4i hold input i / 2, plus 4 for odd i.
            const Simd::F w[8] = {SignedNibble<0>(q), SignedNibble<1>(q), SignedNibble<2>(q),
                                  SignedNibble<3>(q), SignedNibble<4>(q), SignedNibble<5>(q),
                                  SignedNibble<6>(q), SignedNibble<7>(q)};
            for (int m = 0; m < M; ++m) {
              const float* inputs = x[m] + k_tile * kTileK + line * 8;
              for (int i = 0; i < 8; i += 2) {
                even[m] = Simd::Fma(w[i], Simd::Set1(inputs[i / 2]), even[m]);
                odd[m] = Simd::Fma(w[i + 1], Simd::Set1(inputs[i / 2 + 4]), odd[m]);
              }
            }
          }
          const Simd::F scale =
              Scale::Load(scales + (t * kTileN + part * Simd::kLanes) * Scale::kBytes);
          for (int m = 0; m < M; ++m) {
            sums.at[m][t][part] =
                Simd::Fma(Simd::Add(even[m], odd[m]), scale, sums.at[m][t][part]);
          }
        }
      }
    }
    sums.End(block, y);
    block_scales += panel.scale_groups * kBlockN * Scale::kBytes;
  }
}

// A lane of a 16-bit line holds two consecutive inputs, the first in the low half.
struct Bf16Pair {
  static Simd::F First(Simd::I pair) { return Simd::FromBits(Simd::ShiftLeft<16>(pair)); }
  static Simd::F Second(Simd::I pair) {
    return Simd::FromBits(Simd::And(pair, Simd::Set1Bits(0xffff0000)));
  }
};
struct F16Pair {
  // Exponent and mantissa in f32's places read 2^112 too small; exact for subnormals. Weights are finite.
  static Simd::F Widen(Simd::I magnitude, Simd::I sign) {
    const Simd::F scaled = Simd::Mul(Simd::FromBits(Simd::ShiftLeft<13>(magnitude)), Simd::Set1(0x1p112f));
    return Simd::Mul(scaled, Simd::FromBits(Simd::Or(sign, Simd::Set1Bits(0x3f800000))));
  }
  static Simd::F First(Simd::I pair) {
    return Widen(Simd::And(pair, Simd::Set1Bits(0x7fff)),
                 Simd::And(Simd::ShiftLeft<16>(pair), Simd::Set1Bits(0x80000000)));
  }
  static Simd::F Second(Simd::I pair) {
    return Widen(Simd::And(Simd::ShiftRight<16>(pair), Simd::Set1Bits(0x7fff)),
                 Simd::And(pair, Simd::Set1Bits(0x80000000)));
  }
};

template <class Pair, int M>
void HalfByFloat(const Panel& panel, const float* const* x, float* const* y, bool accumulate) {
  constexpr size_t kTileBytes = TileBytes(16);
  const uint8_t* codes = panel.codes;
  BlockSums<M> sums;
  for (int block = 0; block < panel.blocks; ++block) {
    sums.Begin(panel, block, y, accumulate);
    for (int k_tile = 0; k_tile < panel.k_tiles; ++k_tile) {
      for (int t = 0; t < kTilesPerBlock; ++t, codes += kTileBytes) {
        PrefetchTile(codes, kTileBytes);
        Simd::F first[M][kParts], second[M][kParts];
        for (int m = 0; m < M; ++m) {
          for (int part = 0; part < kParts; ++part) {
            first[m][part] = second[m][part] = Simd::Zero();
          }
        }
        for (int line = 0; line < kTileK / 2; ++line) {
          for (int part = 0; part < kParts; ++part) {
            const Simd::I pair =
                Simd::LoadBits(codes + line * kLineBytes + part * Simd::kLanes * 4);
            const Simd::F w0 = Pair::First(pair), w1 = Pair::Second(pair);
            for (int m = 0; m < M; ++m) {
              const float* inputs = x[m] + k_tile * kTileK + line * 2;
              first[m][part] = Simd::Fma(w0, Simd::Set1(inputs[0]), first[m][part]);
              second[m][part] = Simd::Fma(w1, Simd::Set1(inputs[1]), second[m][part]);
            }
          }
        }
        for (int m = 0; m < M; ++m) {
          for (int part = 0; part < kParts; ++part) {
            sums.at[m][t][part] =
                Simd::Add(sums.at[m][t][part], Simd::Add(first[m][part], second[m][part]));
          }
        }
      }
    }
    sums.End(block, y);
  }
}

template <class Scale>
void Int4Int8Entry(const Panel& panel, const Int8Row* x, int tokens, float* const* y, bool accumulate) {
  switch (tokens) {
    case 1:
      return Int4ByInt8<Scale, 1>(panel, x, y, accumulate);
    case 2:
      return Int4ByInt8<Scale, 2>(panel, x, y, accumulate);
    case 3:
      return Int4ByInt8<Scale, 3>(panel, x, y, accumulate);
    default:
      return Int4ByInt8<Scale, 4>(panel, x, y, accumulate);
  }
}

template <class Scale>
void Int4FloatEntry(const Panel& panel, const float* const* x, int tokens, float* const* y,
                    bool accumulate) {
  switch (tokens) {
    case 1:
      return Int4ByFloat<Scale, 1>(panel, x, y, accumulate);
    case 2:
      return Int4ByFloat<Scale, 2>(panel, x, y, accumulate);
    case 3:
      return Int4ByFloat<Scale, 3>(panel, x, y, accumulate);
    default:
      return Int4ByFloat<Scale, 4>(panel, x, y, accumulate);
  }
}

template <class Pair>
void HalfFloatEntry(const Panel& panel, const float* const* x, int tokens, float* const* y,
                    bool accumulate) {
  switch (tokens) {
    case 1:
      return HalfByFloat<Pair, 1>(panel, x, y, accumulate);
    case 2:
      return HalfByFloat<Pair, 2>(panel, x, y, accumulate);
    case 3:
      return HalfByFloat<Pair, 3>(panel, x, y, accumulate);
    default:
      return HalfByFloat<Pair, 4>(panel, x, y, accumulate);
  }
}

}  // namespace
}  // namespace lsg
