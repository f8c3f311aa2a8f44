#include "layout/tile.h"

#include <cstring>

namespace lsg {
namespace {

// A line holds `inputs` consecutive inputs of each of the 16 outputs, four bytes an output.
template <int kInputs, typename Dword>
void ForEachLane(Dword&& dword) {
  for (int line = 0; line < kTileK / kInputs; ++line) {
    for (int n = 0; n < kTileN; ++n) dword(line * kLineBytes + n * 4, n, line * kInputs);
  }
}

}  // namespace

void PackTile4(const uint8_t* codes, ptrdiff_t stride, int n_valid, int k_valid, uint8_t* tile) {
  if (n_valid < kTileN || k_valid < kTileK) std::memset(tile, 0, TileBytes(4));
  ForEachLane<8>([&](int at, int n, int k) {
    if (n >= n_valid) return;
    const uint8_t* row = codes + n * stride + k;
    if (k + 8 <= k_valid) {
      uint32_t low, high;
      std::memcpy(&low, row, 4);
      std::memcpy(&high, row + 4, 4);
      const uint32_t both = low | high << 4;
      std::memcpy(tile + at, &both, 4);
      return;
    }
    for (int i = 0; k + i < k_valid; ++i) {
      tile[at + i % 4] |= static_cast<uint8_t>(i < 4 ? row[i] : row[i] << 4);
    }
  });
}

void UnpackTile4(const uint8_t* tile, int n_valid, int k_valid, uint8_t* codes, ptrdiff_t stride) {
  ForEachLane<8>([&](int at, int n, int k) {
    if (n >= n_valid) return;
    for (int i = 0; i < 8 && k + i < k_valid; ++i) {
      const uint8_t byte = tile[at + i % 4];
      codes[n * stride + k + i] = i < 4 ? byte & 0xf : byte >> 4;
    }
  });
}

void PackTile8(const uint8_t* codes, ptrdiff_t stride, int n_valid, int k_valid, uint8_t* tile) {
  if (n_valid < kTileN || k_valid < kTileK) std::memset(tile, 0, TileBytes(8));
  ForEachLane<4>([&](int at, int n, int k) {
    if (n >= n_valid) return;
    for (int i = 0; i < 4 && k + i < k_valid; ++i) tile[at + i] = codes[n * stride + k + i];
  });
}

void UnpackTile8(const uint8_t* tile, int n_valid, int k_valid, uint8_t* codes, ptrdiff_t stride) {
  ForEachLane<4>([&](int at, int n, int k) {
    if (n >= n_valid) return;
    for (int i = 0; i < 4 && k + i < k_valid; ++i) codes[n * stride + k + i] = tile[at + i];
  });
}

void PackTile16(const uint16_t* codes, ptrdiff_t stride, int n_valid, int k_valid, uint8_t* tile) {
  if (n_valid < kTileN || k_valid < kTileK) std::memset(tile, 0, TileBytes(16));
  ForEachLane<2>([&](int at, int n, int k) {
    if (n >= n_valid || k >= k_valid) return;
    std::memcpy(tile + at, codes + n * stride + k, k + 1 < k_valid ? 4 : 2);
  });
}

void UnpackTile16(const uint8_t* tile, int n_valid, int k_valid, uint16_t* codes,
                  ptrdiff_t stride) {
  ForEachLane<2>([&](int at, int n, int k) {
    if (n >= n_valid || k >= k_valid) return;
    std::memcpy(codes + n * stride + k, tile + at, k + 1 < k_valid ? 4 : 2);
  });
}

}  // namespace lsg
