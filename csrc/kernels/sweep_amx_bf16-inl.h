// Sweeps on the bf16 matrix unit: inputs are rounded to bf16, to nearest even; weights are exact
// (f16 ones are rounded too), their scales meet the f32 sums. An order of additions of its own, so
// other levels' results differ by rounding.
#pragma once

#include <array>
#include <bit>

#include "kernels/amx_tiles.h"
#include "kernels/panel_float-inl.h"

namespace lsg {
namespace {

// A block's 64 × 32 weights: four tiles of 16 pairs of inputs × 16 outputs, and scales.
struct Bf16Weights {
  uint16_t pairs[kTilesPerBlock][kTileK / 2][kTileN][2];
  GroupScales<1> scales;
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

template <class Order>
void PackBf16(const float* x, int tiles, const PackedRows& rows, int first_tile, int row) {
  static constexpr auto kOrder = [] {
    std::array<uint16_t, kTileK> order{};
    for (int i = 0; i < kTileK; ++i) {
      const int start = i / Order::kPeriod * Order::kPeriod;
      order[i] = static_cast<uint16_t>(start + Order::kOrder[i % Order::kPeriod]);
    }
    return order;
  }();
  const __m512i order = _mm512_loadu_si512(kOrder.data());
  for (int tile = 0; tile < tiles; ++tile, x += kTileK) {
    const __m512bh rounded = _mm512_cvtne2ps_pbh(_mm512_loadu_ps(x + kTileN), _mm512_loadu_ps(x));
    const int64_t at = int64_t{first_tile + tile} * rows.rows + row;
    _mm512_storeu_si512(rows.codes + at * kTileK * 2,
                        _mm512_permutexvar_epi16(order, std::bit_cast<__m512i>(rounded)));
  }
}

// Formats: Unpack turns a tile's codes into its 16 rows of pairs.
struct Bf16Pairs {
  using Order = NaturalOrder;
  static constexpr int kBits = 16;
  static constexpr bool kScaled = false;
  static void Unpack(const uint8_t* codes, const float*, uint16_t (*pairs)[kTileN][2]) {
    for (int line = 0; line < 16; ++line) {
      _mm512_storeu_si512(pairs[line], _mm512_loadu_si512(codes + line * kLineBytes));
    }
  }
};

struct F16Pairs {
  using Order = NaturalOrder;
  static constexpr int kBits = 16;
  static constexpr bool kScaled = false;
  static void Unpack(const uint8_t* codes, const float*, uint16_t (*pairs)[kTileN][2]) {
    for (int line = 0; line < 16; ++line) {
      const auto* half = reinterpret_cast<const __m256i*>(codes + line * kLineBytes);
      const __m512bh rounded = _mm512_cvtne2ps_pbh(_mm512_cvtph_ps(_mm256_loadu_si256(half + 1)),
                                                   _mm512_cvtph_ps(_mm256_loadu_si256(half)));
      _mm512_storeu_si512(pairs[line], std::bit_cast<__m512i>(rounded));
    }
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

template <int kExponentBits>
struct Fp8Pairs {
  using Order = ByteOrder;
  static constexpr int kBits = 8;
  static constexpr bool kScaled = true;
  static void Unpack(const uint8_t* codes, const float*, uint16_t (*pairs)[kTileN][2]) {
    static constexpr Fp8Tables<kExponentBits> kTables;
    const __m512i low0 = _mm512_load_si512(kTables.low);
    const __m512i low1 = _mm512_load_si512(kTables.low + 64);
    const __m512i high0 = _mm512_load_si512(kTables.high);
    const __m512i high1 = _mm512_load_si512(kTables.high + 64);
    const __m512i sign_bits = _mm512_set1_epi8(static_cast<char>(0x80));
    const __m512i low_bytes = _mm512_set1_epi16(0x00ff);
    for (int line = 0; line < 8; ++line) {
      const __m512i code = _mm512_loadu_si512(codes + line * kLineBytes);
      const __m512i low = _mm512_permutex2var_epi8(low0, code, low1);
      // high | (code & sign_bits)
      const __m512i high = _mm512_ternarylogic_epi32(_mm512_permutex2var_epi8(high0, code, high1),
                                                     code, sign_bits, 0xf8);
      // Even bytes' floats (inputs 0 and 2), then odd bytes': low byte below high byte.
      const __m512i even =
          _mm512_ternarylogic_epi32(low_bytes, low, _mm512_slli_epi16(high, 8), 0xca);
      const __m512i odd =
          _mm512_ternarylogic_epi32(low_bytes, _mm512_srli_epi16(low, 8), high, 0xca);
      _mm512_storeu_si512(pairs[2 * line], even);
      _mm512_storeu_si512(pairs[2 * line + 1], odd);
    }
  }
};

// Four-bit codes through a table of 32 bf16 values: code + 16 - zero_point for int4.
template <bool kInteger>
struct NibblePairs {
  using Order = NibbleOrder;
  static constexpr int kBits = 4;
  static constexpr bool kScaled = true;
  static constexpr std::array<uint16_t, 32> kValues = [] {
    constexpr float kE2m1[8] = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6};
    std::array<uint16_t, 32> values{};
    for (int i = 0; i < 32; ++i) {
      const float value = kInteger ? static_cast<float>(i - 16)
                          : i & 8  ? -kE2m1[i & 7]
                                   : kE2m1[i & 7];
      values[i] = static_cast<uint16_t>(std::bit_cast<uint32_t>(value) >> 16);
    }
    return values;
  }();
  static void Unpack(const uint8_t* codes, const float* zero_points, uint16_t (*pairs)[kTileN][2]) {
    const __m512i values = _mm512_loadu_si512(kValues.data());
    const __m512i nibbles = _mm512_set1_epi16(0x000f);
    __m512i move = _mm512_setzero_si512();
    if constexpr (kInteger) {
      const __m512i zero_point = _mm512_cvtps_epi32(_mm512_loadu_ps(zero_points));
      move = _mm512_sub_epi32(_mm512_set1_epi32(16), zero_point);
      move = _mm512_or_si512(move, _mm512_slli_epi32(move, 16));
    }
    for (int line = 0; line < 4; ++line) {
      const __m512i code = _mm512_loadu_si512(codes + line * kLineBytes);
      const auto pair = [&](__m512i shifted) {
        const __m512i index = _mm512_add_epi16(_mm512_and_si512(shifted, nibbles), move);
        return _mm512_permutexvar_epi16(index, values);
      };
      _mm512_storeu_si512(pairs[4 * line], pair(code));
      _mm512_storeu_si512(pairs[4 * line + 1], pair(_mm512_srli_epi16(code, 4)));
      _mm512_storeu_si512(pairs[4 * line + 2], pair(_mm512_srli_epi16(code, 8)));
      _mm512_storeu_si512(pairs[4 * line + 3], pair(_mm512_srli_epi16(code, 12)));
    }
  }
};

struct Int8Pairs {
  using Order = ByteOrder;
  static constexpr int kBits = 8;
  static constexpr bool kScaled = true;
  static void Unpack(const uint8_t* codes, const float*, uint16_t (*pairs)[kTileN][2]) {
    for (int line = 0; line < 8; ++line) {
      const __m512i code = _mm512_loadu_si512(codes + line * kLineBytes);
      // Integers of eight bits are exact in bf16: the upper half of their f32.
      const auto value = [](__m512i top_byte) {
        return _mm512_castps_si512(_mm512_cvtepi32_ps(_mm512_srai_epi32(top_byte, 24)));
      };
      const auto pair = [&](__m512i low, __m512i high) {
        return _mm512_mask_mov_epi16(_mm512_srli_epi32(value(low), 16), 0xaaaaaaaa, value(high));
      };
      _mm512_storeu_si512(pairs[2 * line],
                          pair(_mm512_slli_epi32(code, 24), _mm512_slli_epi32(code, 8)));
      _mm512_storeu_si512(pairs[2 * line + 1], pair(_mm512_slli_epi32(code, 16), code));
    }
  }
};

template <class Format>
void UnpackBf16(const Panel& panel, int block, int k_tile, int k_tiles, uint8_t* weights) {
  constexpr size_t kTileBytes = TileBytes(Format::kBits);
  const uint8_t* codes = CodesAt(panel, Format::kBits, block, k_tile);
  auto* out = reinterpret_cast<Bf16Weights*>(weights);
  for (int k = k_tile; k < k_tile + k_tiles; ++k, ++out) {
    if constexpr (Format::kScaled) {
      const int64_t group = GroupOf<1>(panel, block, k);
      out->scales.Load(panel, group, 1);
      if constexpr (Format::kBits == 4) {
        out->scales.LoadZeroPoints(panel, group, 1, 0.0f, 8.0f);
      }
    }
    for (int t = 0; t < kTilesPerBlock; ++t, codes += kTileBytes) {
      if (panel.whole) PrefetchTile(codes, kTileBytes);
      Format::Unpack(codes, out->scales.zero_point[0] + t * kTileN, out->pairs[t]);
    }
  }
}

// y += scale · products for `rows` tokens and 16 outputs.
inline void AddScaled(const float (*products)[kTileN], const float* scale, int rows, float* y,
                      ptrdiff_t y_stride) {
  const __m512 s = _mm512_loadu_ps(scale);
  for (int m = 0; m < rows; ++m, y += y_stride) {
    _mm512_storeu_ps(y, _mm512_fmadd_ps(_mm512_load_ps(products[m]), s, _mm512_loadu_ps(y)));
  }
}

template <class Format>
void MultiplyBf16(const uint8_t* weights, int k_tiles, int tiles_per_scale, const PackedRows& x,
                  int first_tile, float* y, ptrdiff_t y_stride, Upcoming next) {
  const auto* in = reinterpret_cast<const Bf16Weights*>(weights);
  constexpr int kRowBytes = kTileK * 2;
  const int64_t tile_bytes = int64_t{x.rows} * kRowBytes;
  const uint8_t* codes = x.codes + first_tile * tile_bytes;
  const ptrdiff_t y_bytes = y_stride * static_cast<ptrdiff_t>(sizeof(float));
  const int run = Format::kScaled && tiles_per_scale < k_tiles ? tiles_per_scale : k_tiles;
  const int64_t sweeps = (x.rows + 2 * kTileRows - 1) / (2 * kTileRows);
  const int lines = next.PerStep(sweeps * kTilesPerBlock / 2 * k_tiles);
  int configured = 0;
  alignas(64) float products[4][kTileRows][kTileN];
  // Two tiles of outputs stay in L1 while all tokens pass.
  for (int t = 0; t < kTilesPerBlock; t += 2) {
    for (int m = 0; m < x.rows; m += 2 * kTileRows) {
      const int upper = x.rows - m < kTileRows ? x.rows - m : kTileRows;
      const int lower = x.rows - m - upper < kTileRows ? x.rows - m - upper : kTileRows;
      if (upper + lower != configured) {
        TileConfig config;
        for (int i = 0; i < 2; ++i) {
          config.Set(i, upper, kLineBytes);
          config.Set(2 + i, lower > 0 ? lower : 1, kLineBytes);
          config.Set(6 + i, kTileK / 2, kLineBytes);
        }
        config.Set(4, upper, kLineBytes);
        config.Set(5, lower > 0 ? lower : 1, kLineBytes);
        LSG_TILE_CONFIGURE(config);
        configured = upper + lower;
      }
      const uint8_t* a0 = codes + m * kRowBytes;
      const uint8_t* a1 = a0 + kTileRows * kRowBytes;
      float* y0 = y + m * y_stride + t * kTileN;
      float* y1 = y0 + kTileRows * y_stride;
      for (int first = 0; first < k_tiles; first += run) {
        const int end = k_tiles - first < run ? k_tiles : first + run;
        if constexpr (Format::kScaled) {
          LSG_TILE_ZERO(0);
          LSG_TILE_ZERO(1);
          LSG_TILE_ZERO(2);
          LSG_TILE_ZERO(3);
        } else {
          LSG_TILE_LOAD(0, y0, y_bytes);
          LSG_TILE_LOAD(1, y0 + kTileN, y_bytes);
          if (lower > 0) {
            LSG_TILE_LOAD(2, y1, y_bytes);
            LSG_TILE_LOAD(3, y1 + kTileN, y_bytes);
          }
        }
        if (lower > 0) {
          for (int k = first; k < end; ++k) {
            next.Fetch(lines);
            LSG_TILE_LOAD(6, in[k].pairs[t], kLineBytes);
            LSG_TILE_LOAD(4, a0 + k * tile_bytes, kRowBytes);
            LSG_TILE_DOT_BF16(0, 4, 6);
            LSG_TILE_LOAD(7, in[k].pairs[t + 1], kLineBytes);
            LSG_TILE_DOT_BF16(1, 4, 7);
            LSG_TILE_LOAD(5, a1 + k * tile_bytes, kRowBytes);
            LSG_TILE_DOT_BF16(2, 5, 6);
            LSG_TILE_DOT_BF16(3, 5, 7);
          }
        } else {
          for (int k = first; k < end; ++k) {
            next.Fetch(lines);
            LSG_TILE_LOAD(6, in[k].pairs[t], kLineBytes);
            LSG_TILE_LOAD(4, a0 + k * tile_bytes, kRowBytes);
            LSG_TILE_DOT_BF16(0, 4, 6);
            LSG_TILE_LOAD(7, in[k].pairs[t + 1], kLineBytes);
            LSG_TILE_DOT_BF16(1, 4, 7);
          }
        }
        if constexpr (Format::kScaled) {
          LSG_TILE_STORE(0, products[0], kLineBytes);
          LSG_TILE_STORE(1, products[1], kLineBytes);
          const float* scale = in[first].scales.scale[0] + t * kTileN;
          AddScaled(products[0], scale, upper, y0, y_stride);
          AddScaled(products[1], scale + kTileN, upper, y0 + kTileN, y_stride);
          if (lower > 0) {
            LSG_TILE_STORE(2, products[2], kLineBytes);
            LSG_TILE_STORE(3, products[3], kLineBytes);
            AddScaled(products[2], scale, lower, y1, y_stride);
            AddScaled(products[3], scale + kTileN, lower, y1 + kTileN, y_stride);
          }
        } else {
          LSG_TILE_STORE(0, y0, y_bytes);
          LSG_TILE_STORE(1, y0 + kTileN, y_bytes);
          if (lower > 0) {
            LSG_TILE_STORE(2, y1, y_bytes);
            LSG_TILE_STORE(3, y1 + kTileN, y_bytes);
          }
        }
      }
    }
  }
  LSG_TILE_RELEASE();
}

template <class Format>
constexpr SweepKernels kBf16Sweep = {
    .code_bytes = kTileK * 2,
    .meta_bytes = 0,
    .weight_bytes = sizeof(Bf16Weights),
    .pack = &PackBf16<typename Format::Order>,
    .unpack = &UnpackBf16<Format>,
    .multiply = &MultiplyBf16<Format>,
};

}  // namespace
}  // namespace lsg
