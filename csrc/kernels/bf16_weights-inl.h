// Weights and inputs as bf16 dot products take them, in the matrix unit or in vectors: weights of
// every format as pairs of bf16, most of them scaled, inputs rounded and in the order in which a
// format's codes give their pairs.
#pragma once

#include <array>
#include <bit>
#include <type_traits>

#include "kernels/panel_float-inl.h"

namespace lsg {
namespace {

// Tiles of 16 pairs of inputs × 16 outputs.
template <int kTiles>
struct alignas(64) Bf16Weights {
  uint16_t pairs[kTiles][kTileK / 2][kTileN][2];
};

// The inputs that a format's unpacking puts in a tile's rows, in pairs; the same order in every
// `period` inputs.
struct NaturalOrder {
  static constexpr int kPeriod = 2;
  static constexpr int kOrder[2] = {0, 1};
};
struct ByteOrder {
  static constexpr int kPeriod = 4;
  static constexpr int kOrder[4] = {0, 2, 1, 3};
};
struct NibbleOrder {
  static constexpr int kPeriod = 8;
  static constexpr int kOrder[8] = {0, 2, 4, 6, 1, 3, 5, 7};
};

// 32 inputs, rounded and in a format's order.
template <class Order>
__m512i Bf16Inputs(const float* x) {
  static constexpr auto kOrder = [] {
    std::array<uint16_t, kTileK> order{};
    for (int i = 0; i < kTileK; ++i) {
      const int start = i / Order::kPeriod * Order::kPeriod;
      order[i] = static_cast<uint16_t>(start + Order::kOrder[i % Order::kPeriod]);
    }
    return order;
  }();
  const __m512bh rounded = _mm512_cvtne2ps_pbh(_mm512_loadu_ps(x + kTileN), _mm512_loadu_ps(x));
  return _mm512_permutexvar_epi16(_mm512_loadu_si512(kOrder.data()),
                                  std::bit_cast<__m512i>(rounded));
}

template <class Order>
void PackBf16(const float* x, int tiles, const PackedRows& rows, int first_tile, int row) {
  for (int tile = 0; tile < tiles; ++tile, x += kTileK) {
    const int64_t at = int64_t{first_tile + tile} * rows.rows + row;
    _mm512_storeu_si512(rows.codes + at * kTileK * 2, Bf16Inputs<Order>(x));
  }
}

// The scales and zero points of a tile's 16 outputs.
struct TileScales {
  __m512 scale, zero_point;
};

// Two inputs' weights as one row of pairs, rounded.
inline __m512i RoundPairs(__m512 first, __m512 second) {
  static constexpr auto kInterleave = [] {
    std::array<uint16_t, kTileK> order{};
    for (int i = 0; i < kTileK; ++i) order[i] = static_cast<uint16_t>(i / 2 + i % 2 * kTileN);
    return order;
  }();
  return _mm512_permutexvar_epi16(_mm512_loadu_si512(kInterleave.data()),
                                  std::bit_cast<__m512i>(_mm512_cvtne2ps_pbh(second, first)));
}

// Formats: Line turns a line of a tile's codes into kRows rows of pairs.
struct Bf16Pairs {
  using Order = NaturalOrder;
  static constexpr int kBits = 16;
  static constexpr bool kScaled = false, kZeroPoints = false;
  static void Line(const uint8_t* codes, const TileScales&, __m512i* rows) {
    rows[0] = _mm512_loadu_si512(codes);
  }
};

struct F16Pairs {
  using Order = NaturalOrder;
  static constexpr int kBits = 16;
  static constexpr bool kScaled = false, kZeroPoints = false;
  static void Line(const uint8_t* codes, const TileScales&, __m512i* rows) {
    const auto* half = reinterpret_cast<const __m256i*>(codes);
    rows[0] = std::bit_cast<__m512i>(_mm512_cvtne2ps_pbh(
        _mm512_cvtph_ps(_mm256_loadu_si256(half + 1)), _mm512_cvtph_ps(_mm256_loadu_si256(half))));
  }
};

// bf16 bits of an 8-bit float's 128 magnitudes, low and high byte.
template <int kExponentBits>
struct Fp8Tables {
  alignas(64) uint8_t low[128] = {};
  alignas(64) uint8_t high[128] = {};
  constexpr Fp8Tables() {
    constexpr int kMantissaBits = 7 - kExponentBits;
    constexpr int kBias = (1 << (kExponentBits - 1)) - 1;
    for (int code = 0; code < 128; ++code) {
      int exponent = code >> kMantissaBits;
      int mantissa = code & ((1 << kMantissaBits) - 1);
      int bits = 0;
      if (exponent == 0) {
        // Subnormal: mantissa · 2^(1 - bias - mantissa bits), normal in bf16.
        if (mantissa != 0) {
          exponent = 1;
          while ((mantissa >> kMantissaBits) == 0) {
            mantissa <<= 1;
            --exponent;
          }
          mantissa &= (1 << kMantissaBits) - 1;
          bits = (exponent - kBias + 127) << 7 | mantissa << (7 - kMantissaBits);
        }
      } else {
        bits = (exponent - kBias + 127) << 7 | mantissa << (7 - kMantissaBits);
      }
      low[code] = static_cast<uint8_t>(bits & 0xff);
      high[code] = static_cast<uint8_t>(bits >> 8);
    }
  }
};

// The low and the high bytes of what 64 codes are as bf16, exactly.
struct Fp8Bytes {
  __m512i low, high;
};

template <int kExponentBits>
Fp8Bytes Fp8ToBf16(__m512i codes) {
  static constexpr Fp8Tables<kExponentBits> kTables;
  const auto magnitudes = [&](const uint8_t* table) {
    return _mm512_permutex2var_epi8(_mm512_load_si512(table), codes, _mm512_load_si512(table + 64));
  };
  // high | (code & sign bits)
  const __m512i high = _mm512_ternarylogic_epi32(magnitudes(kTables.high), codes,
                                                 _mm512_set1_epi32(0x80808080), 0xf8);
  return {magnitudes(kTables.low), high};
}

// Without their scales all codes are exact.
template <int kExponentBits, bool kWithScales = true>
struct Fp8Pairs {
  using Order = ByteOrder;
  using WithoutScales = Fp8Pairs<kExponentBits, false>;
  static constexpr int kBits = 8;
  static constexpr bool kScaled = kWithScales, kZeroPoints = false;
  static void Line(const uint8_t* codes, const TileScales& scales, __m512i* rows) {
    const auto [low, high] = Fp8ToBf16<kExponentBits>(_mm512_loadu_si512(codes));
    // Even bytes' floats (inputs 0 and 2), then odd bytes': low byte below high byte.
    const __m512i low_bytes = _mm512_set1_epi16(0x00ff);
    const __m512i even =
        _mm512_ternarylogic_epi32(low_bytes, low, _mm512_slli_epi16(high, 8), 0xca);
    const __m512i odd = _mm512_ternarylogic_epi32(low_bytes, _mm512_srli_epi16(low, 8), high, 0xca);
    rows[0] = Scaled(even, scales.scale);
    rows[1] = Scaled(odd, scales.scale);
  }

 private:
  static __m512i Scaled(__m512i pairs, __m512 scale) {
    if constexpr (!kWithScales) return pairs;
    const __m512 first = _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16));
    const __m512 second =
        _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(0xffff0000)));
    return RoundPairs(_mm512_mul_ps(first, scale), _mm512_mul_ps(second, scale));
  }
};

// kHasZeroPoints: codes are unsigned, 0 … 15 or 0 … 255.
template <bool kInteger, bool kHasZeroPoints>
struct NibblePairs {
  using Order = NibbleOrder;
  static constexpr int kBits = 4;
  static constexpr bool kScaled = true, kZeroPoints = kHasZeroPoints;
  static constexpr std::array<float, 16> kValues = [] {
    constexpr float kE2m1[8] = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6};
    std::array<float, 16> values{};
    for (int i = 0; i < 16; ++i) {
      values[i] = kInteger ? static_cast<float>(kHasZeroPoints ? i : i - 8)
                  : i & 8  ? -kE2m1[i & 7]
                           : kE2m1[i & 7];
    }
    return values;
  }();
  static void Line(const uint8_t* codes, const TileScales& scales, __m512i* rows) {
    const __m512 values = _mm512_loadu_ps(kValues.data());
    const __m512i code = _mm512_loadu_si512(codes);
    // The low four bits of each lane choose.
    const auto weight = [&](__m512i shifted) {
      __m512 value = _mm512_permutexvar_ps(shifted, values);
      if constexpr (kHasZeroPoints) value = _mm512_sub_ps(value, scales.zero_point);
      return _mm512_mul_ps(value, scales.scale);
    };
    rows[0] = RoundPairs(weight(code), weight(_mm512_srli_epi32(code, 16)));
    rows[1] = RoundPairs(weight(_mm512_srli_epi32(code, 4)), weight(_mm512_srli_epi32(code, 20)));
    rows[2] = RoundPairs(weight(_mm512_srli_epi32(code, 8)), weight(_mm512_srli_epi32(code, 24)));
    rows[3] = RoundPairs(weight(_mm512_srli_epi32(code, 12)), weight(_mm512_srli_epi32(code, 28)));
  }
};

template <bool kHasZeroPoints>
struct Int8Pairs {
  using Order = ByteOrder;
  static constexpr int kBits = 8;
  static constexpr bool kScaled = true, kZeroPoints = kHasZeroPoints;
  static void Line(const uint8_t* codes, const TileScales& scales, __m512i* rows) {
    const __m512i code = _mm512_loadu_si512(codes);
    // From a lane with the code in its top byte.
    const auto weight = [&](__m512i top_byte) {
      const __m512i integer =
          kHasZeroPoints ? _mm512_srli_epi32(top_byte, 24) : _mm512_srai_epi32(top_byte, 24);
      __m512 value = _mm512_cvtepi32_ps(integer);
      if constexpr (kHasZeroPoints) value = _mm512_sub_ps(value, scales.zero_point);
      return _mm512_mul_ps(value, scales.scale);
    };
    rows[0] = RoundPairs(weight(_mm512_slli_epi32(code, 24)), weight(_mm512_slli_epi32(code, 8)));
    rows[1] = RoundPairs(weight(_mm512_slli_epi32(code, 16)), weight(code));
  }
};

// Walks through runs of weights, for kTiles of the block's tiles, from `first` on. kGroups: scale
// groups in a tile of 32 inputs, 1 (or a group is longer than a tile) or 2.
template <class Format, int kGroups, int kTiles>
class Unpacker {
 public:
  Unpacker(const WeightRun* runs, int first) : run_(runs), first_(first) { BeginRun(); }

  // The next 32 inputs' weights: in `out`, or where they are stored as they are wanted.
  const Bf16Weights<kTiles>* Next(Bf16Weights<kTiles>* out) {
    if (k_ == run_->k_tiles) {
      ++run_;
      BeginRun();
    }
    if constexpr (Format::kScaled) {
      const int64_t group = GroupOf<kGroups>(run_->panel, run_->block, run_->k_tile + k_);
      if (group != group_) {
        const int begin = first_ * kTileN, end = begin + kTiles * kTileN;
        scales_.Load(run_->panel, group, kGroups, 1.0f, begin, end);
        if (Format::kZeroPoints) scales_.LoadZeroPoints(run_->panel, group, kGroups, 0.0f, 0.0f);
        group_ = group;
      }
    }
    const uint8_t* codes = codes_;
    codes_ += kTilesPerBlock * kTileBytes;
    ++k_;
    if constexpr (kWholeBlock) {
      if (run_->panel.whole) PrefetchTile(codes, kTiles * kTileBytes);
    }
    if constexpr (kWholeBlock && std::is_same_v<Format, Bf16Pairs>) {
      return reinterpret_cast<const Bf16Weights<kTiles>*>(codes);
    }
    for (int t = 0; t < kTiles; ++t) {
      for (int line = 0; line < kLines; ++line, codes += kLineBytes) {
        TileScales scales{};
        const int g = line * kGroups / kLines, n = (first_ + t) * kTileN;
        if (Format::kScaled) scales.scale = _mm512_load_ps(scales_.scale[g] + n);
        if (Format::kZeroPoints) scales.zero_point = _mm512_load_ps(scales_.zero_point[g] + n);
        __m512i rows[kRows];
        Format::Line(codes, scales, rows);
        for (int r = 0; r < kRows; ++r) {
          _mm512_store_si512(out->pairs[t][line * kRows + r], rows[r]);
        }
      }
    }
    return out;
  }

 private:
  static constexpr int kTileBytes = static_cast<int>(TileBytes(Format::kBits));
  // The matrix unit's weights are fetched with its inputs.
  static constexpr bool kWholeBlock = kTiles == kTilesPerBlock;
  static constexpr int kLines = kTileBytes / kLineBytes;
  static constexpr int kRows = kTileK / 2 / kLines;

  void BeginRun() {
    codes_ = CodesAt(run_->panel, Format::kBits, run_->block, run_->k_tile) + first_ * kTileBytes;
    k_ = 0;
    group_ = -1;
  }

  const WeightRun* run_;
  const int first_;
  const uint8_t* codes_;
  int k_;
  int64_t group_;
  GroupScales<kGroups> scales_;
};

}  // namespace
}  // namespace lsg
