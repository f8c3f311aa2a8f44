#include <immintrin.h>

#include "limits/loops.h"

namespace lsg::amx {
namespace {

constexpr int kTileRows = 16, kTileRowBytes = 64;

struct alignas(64) TileConfig {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};

// Tiles 0 … 3 sum 4 and 5 times 6 and 7. Four products in flight cover the latency of 52 cycles at
// one per 16.
void Load() {
  TileConfig config;
  for (int tile = 0; tile < 8; ++tile) {
    config.row_bytes[tile] = kTileRowBytes;
    config.rows[tile] = kTileRows;
  }
  alignas(64) uint16_t ones[kTileRows * kTileRowBytes / 2];
  for (uint16_t& value : ones) value = 0x3f80;  // 1.0 in bf16, 63 and 128 in int8
  // GCC's intrinsics do not say that they read memory.
  __asm__ volatile("" : : "r"(&config), "r"(ones) : "memory");
  _tile_loadconfig(&config);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  _tile_loadd(4, ones, kTileRowBytes);
  _tile_loadd(5, ones, kTileRowBytes);
  _tile_loadd(6, ones, kTileRowBytes);
  _tile_loadd(7, ones, kTileRowBytes);
}

void Bf16(int64_t turns) {
  Load();
  for (int64_t turn = 0; turn < turns; ++turn) {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_release();
}

void Int8(int64_t turns) {
  Load();
  for (int64_t turn = 0; turn < turns; ++turn) {
    _tile_dpbusd(0, 4, 6);
    _tile_dpbusd(1, 4, 7);
    _tile_dpbusd(2, 5, 6);
    _tile_dpbusd(3, 5, 7);
  }
  _tile_release();
}

}  // namespace

Loop TileBf16Loop() { return {&Bf16, 4 * 16 * 16 * 32 * 2}; }
Loop TileInt8Loop() { return {&Int8, 4 * 16 * 16 * 64 * 2}; }

}  // namespace lsg::amx
