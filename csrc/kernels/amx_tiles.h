// AMX tile instructions. Tile numbers are part of the instruction, hence macros; own ones, because
// the compilers' intrinsics do not tell the optimiser that they read and write memory.
#pragma once

#include <cstddef>
#include <cstdint>

#define LSG_TILE_CONFIGURE(config) asm volatile("ldtilecfg %0" ::"m"(config) : "memory")
#define LSG_TILE_RELEASE() asm volatile("tilerelease" ::: "memory")
#define LSG_TILE_ZERO(tile) asm volatile("tilezero %%tmm" #tile::)
#define LSG_TILE_LOAD(tile, base, stride)                                               \
  asm volatile("tileloadd (%0,%1,1), %%tmm" #tile::"r"(static_cast<const void*>(base)), \
               "r"(static_cast<ptrdiff_t>(stride))                                      \
               : "memory")
// For what L1 has no room for anyway: it stays in L2, and does not drive the rest out of L1.
#define LSG_TILE_LOAD_FAR(tile, base, stride)                                             \
  asm volatile("tileloaddt1 (%0,%1,1), %%tmm" #tile::"r"(static_cast<const void*>(base)), \
               "r"(static_cast<ptrdiff_t>(stride))                                        \
               : "memory")
#define LSG_TILE_STORE(tile, base, stride)                                             \
  asm volatile("tilestored %%tmm" #tile ", (%0,%1,1)" ::"r"(static_cast<void*>(base)), \
               "r"(static_cast<ptrdiff_t>(stride))                                     \
               : "memory")
// sums += a · b
#define LSG_TILE_DOT_BF16(sums, a, b) \
  asm volatile("tdpbf16ps %%tmm" #b ", %%tmm" #a ", %%tmm" #sums::)
#define LSG_TILE_DOT_INT8(sums, a, b) \
  asm volatile("tdpbssd %%tmm" #b ", %%tmm" #a ", %%tmm" #sums::)

namespace lsg {
namespace {

struct alignas(64) TileConfig {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};

  void Set(int tile, int tile_rows, int tile_row_bytes) {
    rows[tile] = static_cast<uint8_t>(tile_rows);
    row_bytes[tile] = static_cast<uint16_t>(tile_row_bytes);
  }
};
static_assert(sizeof(TileConfig) == 64);

constexpr int kTileRows = 16;
// Tiles of outputs that meet the inputs together.
constexpr int kWeightTiles = 2;

}  // namespace
}  // namespace lsg
