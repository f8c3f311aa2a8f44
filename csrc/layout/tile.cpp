#include "layout/tile.h"

#include <emmintrin.h>

#include <cstring>

namespace lsg {
namespace {

// In a matrix, a row of a tile is `kDwords` dwords of inputs (4-bit codes: after two bytes became
// one); in the tile, line i holds dword i of all 16 rows. So both directions are a transposition of
// dwords, done 4 × 4 with SSE2, which every x86-64 has: several GB/s on one core, where a copy
// dword by dword reaches one.
template <int kDwords, typename LoadRow>
void ToLines(LoadRow&& load_row, uint8_t* tile) {
  for (int n = 0; n < kTileN; n += 4) {
    __m128i rows[4][kDwords / 4];
    for (int i = 0; i < 4; ++i) load_row(n + i, rows[i]);
    for (int d = 0; d < kDwords / 4; ++d) {
      const __m128i low01 = _mm_unpacklo_epi32(rows[0][d], rows[1][d]);
      const __m128i low23 = _mm_unpacklo_epi32(rows[2][d], rows[3][d]);
      const __m128i high01 = _mm_unpackhi_epi32(rows[0][d], rows[1][d]);
      const __m128i high23 = _mm_unpackhi_epi32(rows[2][d], rows[3][d]);
      auto* out = reinterpret_cast<__m128i*>(tile + d * 4 * kLineBytes + n * 4);
      constexpr int kLine = kLineBytes / sizeof(__m128i);
      _mm_storeu_si128(out, _mm_unpacklo_epi64(low01, low23));
      _mm_storeu_si128(out + kLine, _mm_unpackhi_epi64(low01, low23));
      _mm_storeu_si128(out + 2 * kLine, _mm_unpacklo_epi64(high01, high23));
      _mm_storeu_si128(out + 3 * kLine, _mm_unpackhi_epi64(high01, high23));
    }
  }
}

template <int kDwords, typename StoreRow>
void FromLines(const uint8_t* tile, StoreRow&& store_row) {
  for (int n = 0; n < kTileN; n += 4) {
    __m128i rows[4][kDwords / 4];
    for (int d = 0; d < kDwords / 4; ++d) {
      const auto* in = reinterpret_cast<const __m128i*>(tile + d * 4 * kLineBytes + n * 4);
      constexpr int kLine = kLineBytes / sizeof(__m128i);
      const __m128i a = _mm_loadu_si128(in), b = _mm_loadu_si128(in + kLine);
      const __m128i c = _mm_loadu_si128(in + 2 * kLine), e = _mm_loadu_si128(in + 3 * kLine);
      const __m128i low_ab = _mm_unpacklo_epi32(a, b), low_ce = _mm_unpacklo_epi32(c, e);
      const __m128i high_ab = _mm_unpackhi_epi32(a, b), high_ce = _mm_unpackhi_epi32(c, e);
      rows[0][d] = _mm_unpacklo_epi64(low_ab, low_ce);
      rows[1][d] = _mm_unpackhi_epi64(low_ab, low_ce);
      rows[2][d] = _mm_unpacklo_epi64(high_ab, high_ce);
      rows[3][d] = _mm_unpackhi_epi64(high_ab, high_ce);
    }
    for (int i = 0; i < 4; ++i) store_row(n + i, rows[i]);
  }
}

void PackRows4(const uint8_t* codes, ptrdiff_t stride, uint8_t* tile) {
  ToLines<4>(
      [&](int n, __m128i* row) {
        // Dwords 2i and 2i + 1 of the row are the low and the high nibbles of line i.
        const auto* in = reinterpret_cast<const __m128i*>(codes + n * stride);
        const __m128 a = _mm_castsi128_ps(_mm_loadu_si128(in));
        const __m128 b = _mm_castsi128_ps(_mm_loadu_si128(in + 1));
        const __m128i low = _mm_castps_si128(_mm_shuffle_ps(a, b, _MM_SHUFFLE(2, 0, 2, 0)));
        const __m128i high = _mm_castps_si128(_mm_shuffle_ps(a, b, _MM_SHUFFLE(3, 1, 3, 1)));
        row[0] = _mm_or_si128(low, _mm_slli_epi32(high, 4));
      },
      tile);
}

void UnpackRows4(const uint8_t* tile, uint8_t* codes, ptrdiff_t stride) {
  FromLines<4>(tile, [&](int n, const __m128i* row) {
    const __m128i nibble = _mm_set1_epi8(0xf);
    const __m128i low = _mm_and_si128(row[0], nibble);
    const __m128i high = _mm_and_si128(_mm_srli_epi32(row[0], 4), nibble);
    auto* out = reinterpret_cast<__m128i*>(codes + n * stride);
    _mm_storeu_si128(out, _mm_unpacklo_epi32(low, high));
    _mm_storeu_si128(out + 1, _mm_unpackhi_epi32(low, high));
  });
}

// 8- and 16-bit rows: the bytes as they are.
template <int kDwords>
void PackBytes(const uint8_t* rows, ptrdiff_t stride, uint8_t* tile) {
  ToLines<kDwords>([&](int n, __m128i* row) { std::memcpy(row, rows + n * stride, kDwords * 4); },
                   tile);
}

template <int kDwords>
void UnpackBytes(const uint8_t* tile, uint8_t* rows, ptrdiff_t stride) {
  FromLines<kDwords>(
      tile, [&](int n, const __m128i* row) { std::memcpy(rows + n * stride, row, kDwords * 4); });
}

// Tiles at an edge go through a whole one.
template <typename Code, typename Pack>
void PackEdge(const Code* codes, ptrdiff_t stride, int n_valid, int k_valid, Pack&& pack) {
  Code whole[kTileN][kTileK] = {};
  if (k_valid > 0) {
    for (int n = 0; n < n_valid; ++n) {
      std::memcpy(whole[n], codes + n * stride, k_valid * sizeof(Code));
    }
  }
  pack(reinterpret_cast<const uint8_t*>(whole));
}

template <typename Code, typename Unpack>
void UnpackEdge(Code* codes, ptrdiff_t stride, int n_valid, int k_valid, Unpack&& unpack) {
  Code whole[kTileN][kTileK];
  unpack(reinterpret_cast<uint8_t*>(whole));
  if (k_valid <= 0) return;
  for (int n = 0; n < n_valid; ++n) {
    std::memcpy(codes + n * stride, whole[n], k_valid * sizeof(Code));
  }
}

constexpr bool IsWhole(int n_valid, int k_valid) { return n_valid == kTileN && k_valid == kTileK; }

}  // namespace

void PackTile4(const uint8_t* codes, ptrdiff_t stride, int n_valid, int k_valid, uint8_t* tile) {
  if (IsWhole(n_valid, k_valid)) return PackRows4(codes, stride, tile);
  PackEdge(codes, stride, n_valid, k_valid,
           [&](const uint8_t* whole) { PackRows4(whole, kTileK, tile); });
}

void UnpackTile4(const uint8_t* tile, int n_valid, int k_valid, uint8_t* codes, ptrdiff_t stride) {
  if (IsWhole(n_valid, k_valid)) return UnpackRows4(tile, codes, stride);
  UnpackEdge(codes, stride, n_valid, k_valid,
             [&](uint8_t* whole) { UnpackRows4(tile, whole, kTileK); });
}

void PackTile8(const uint8_t* codes, ptrdiff_t stride, int n_valid, int k_valid, uint8_t* tile) {
  if (IsWhole(n_valid, k_valid)) return PackBytes<8>(codes, stride, tile);
  PackEdge(codes, stride, n_valid, k_valid,
           [&](const uint8_t* whole) { PackBytes<8>(whole, kTileK, tile); });
}

void UnpackTile8(const uint8_t* tile, int n_valid, int k_valid, uint8_t* codes, ptrdiff_t stride) {
  if (IsWhole(n_valid, k_valid)) return UnpackBytes<8>(tile, codes, stride);
  UnpackEdge(codes, stride, n_valid, k_valid,
             [&](uint8_t* whole) { UnpackBytes<8>(tile, whole, kTileK); });
}

void PackTile16(const uint16_t* codes, ptrdiff_t stride, int n_valid, int k_valid, uint8_t* tile) {
  if (IsWhole(n_valid, k_valid)) {
    return PackBytes<16>(reinterpret_cast<const uint8_t*>(codes), stride * 2, tile);
  }
  PackEdge(codes, stride, n_valid, k_valid,
           [&](const uint8_t* whole) { PackBytes<16>(whole, kTileK * 2, tile); });
}

void UnpackTile16(const uint8_t* tile, int n_valid, int k_valid, uint16_t* codes,
                  ptrdiff_t stride) {
  if (IsWhole(n_valid, k_valid)) {
    return UnpackBytes<16>(tile, reinterpret_cast<uint8_t*>(codes), stride * 2);
  }
  UnpackEdge(codes, stride, n_valid, k_valid,
             [&](uint8_t* whole) { UnpackBytes<16>(tile, whole, kTileK * 2); });
}

}  // namespace lsg
