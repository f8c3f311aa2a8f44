// tile16x32, layout 1: where code (n, k) of a tile lies. Index maths only; see format/FORMAT.md.
//
// Invariant: unpack(pack(x)) == x, and padding is zero.
#pragma once

#include <cstddef>
#include <cstdint>

namespace lsg {

inline constexpr int kTileN = 16;         // output features of a tile
inline constexpr int kTileK = 32;         // inputs of a tile
inline constexpr int kTilesPerBlock = 4;  // tiles side by side in a block
inline constexpr int kBlockN = kTileN * kTilesPerBlock;
inline constexpr int kLineBytes = 64;  // 16 outputs × 4 bytes of inputs

constexpr size_t TileBytes(int bits) { return size_t{kTileN} * kTileK * bits / 8; }

// Places 16 × 32 codes into a tile and back. `codes` points at the tile's first code in a row-major
// matrix with `stride` codes a row; rows ≥ n_valid or columns ≥ k_valid are padding (zero on the
// way in, untouched on the way out). 4-bit codes are one a byte in the matrix.
void PackTile4(const uint8_t* codes, ptrdiff_t stride, int n_valid, int k_valid, uint8_t* tile);
void PackTile8(const uint8_t* codes, ptrdiff_t stride, int n_valid, int k_valid, uint8_t* tile);
void PackTile16(const uint16_t* codes, ptrdiff_t stride, int n_valid, int k_valid, uint8_t* tile);
void UnpackTile4(const uint8_t* tile, int n_valid, int k_valid, uint8_t* codes, ptrdiff_t stride);
void UnpackTile8(const uint8_t* tile, int n_valid, int k_valid, uint8_t* codes, ptrdiff_t stride);
void UnpackTile16(const uint8_t* tile, int n_valid, int k_valid, uint16_t* codes, ptrdiff_t stride);

}  // namespace lsg
