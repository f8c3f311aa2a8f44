// What all panel kernels share: a block's running sums, its scales, and prefetching.
#pragma once

#include <bit>
#include <cstring>

#include "kernels/kernels.h"
#include "kernels/small_floats-inl.h"
#include "layout/tile.h"

namespace lsg {
namespace {

constexpr int kParts = kTileN / Simd::kLanes;  // vectors that hold a tile's outputs
// Tiles of inputs whose weights a sweep unpacks at once: they stay in L2 beside the inputs.
constexpr int kSweepTiles = 16;
// As worth_tokens: up to the number of tokens that one pass takes, it is faster.
constexpr int kOnlyPrompts = 1 << 20;

// One line in so many. kLocality is __builtin_prefetch's: 1 is into L2, 3 into L1.
template <int kOneIn = 1, int kLocality = 1>
void PrefetchLines(const uint8_t* from, size_t bytes) {
  for (size_t at = 0; at < bytes; at += kOneIn * kLineBytes) {
    __builtin_prefetch(from + at, 0, kLocality);
  }
}
// `few`: for a kernel that reads lines in order and waits for memory, on a processor that then does
// most of the fetching by itself (Panel::few_fetches). Asking for all lines would fill the few
// buffers in which a core waits: on Zen 4 bf16 weights came with 41 instead of 58 GB/s. A kernel
// that multiplies for as long as memory takes does not run that far ahead of itself.
inline void PrefetchLines(const uint8_t* from, size_t bytes, bool few) {
  few ? PrefetchLines<4>(from, bytes) : PrefetchLines(from, bytes);
}
inline void PrefetchTile(const uint8_t* codes, size_t bytes) {
  PrefetchLines(codes + kPrefetchBytes, bytes);
}

// Walks kPrefetchBytes ahead of a panel kernel, and at the panel's end into what is read next: with
// every record apart from the one before, each start would otherwise wait for memory.
class Ahead {
 public:
  // `step`: bytes of a block's tile of inputs.
  Ahead(const Panel& panel, int64_t step)
      : at_(panel.codes + kPrefetchBytes),
        next_(panel.next),
        first_scales_(panel.scale_rows == 1 ? kFirstScales : kLineBytes),
        steps_left_(int64_t{panel.blocks} * panel.k_tiles - kPrefetchBytes / step) {
    if (steps_left_ <= 0 || panel.cached) Switch();
  }
  // Whether the next step's lines are of what is read next: there nobody reads in order yet. Short
  // records of four bits came 2 to 6 % faster when all of them were fetched, others did not.
  bool InNext() const { return in_next_; }
  // Where to fetch; the next step's is `step` further.
  const uint8_t* Step(int64_t step) {
    const uint8_t* at = at_;
    at_ += step;
    if (--steps_left_ == 0) Switch();
    return at;
  }

 private:
  void Switch() {
    if (next_.codes == nullptr) return;
    at_ = next_.codes;
    if (next_.scales != nullptr) PrefetchLines(next_.scales, first_scales_);
    next_ = {};
    in_next_ = true;
  }

  // Of eight groups, as ScaleWalk decodes them at once, where rows have scales of their own.
  static constexpr size_t kFirstScales = 1024;

  const uint8_t* at_;
  PanelStart next_;
  size_t first_scales_;
  int64_t steps_left_;
  bool in_next_ = false;
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

// A block's scales and zero points as floats, for up to kRun groups of inputs at once: a scale's
// type is asked once a run.
template <int kRun>
struct GroupScales {
  alignas(64) float scale[kRun][kBlockN];
  alignas(64) float zero_point[kRun][kBlockN];

  // Of groups `first` … `first + count - 1`, counted through all blocks. `factor`, a power of two,
  // is what the codes are off by. Only outputs begin … end - 1 are needed, multiples of 32. They
  // become groups `to` … here.
  void Load(const Panel& panel, int64_t first, int count, float factor = 1.0f, int begin = 0,
            int end = kBlockN, int to = 0) {
    switch (panel.scale_dtype) {
      case ScaleDtype::kF32:
        return Read<4>(panel, first, count, factor, begin, end, to,
                       [](const uint8_t* p) { return Simd::FromBits(Simd::LoadBits(p)); });
      case ScaleDtype::kF16:
        return Read<2>(panel, first, count, factor, begin, end, to,
                       [](const uint8_t* p) { return Simd::LoadF16(p); });
      case ScaleDtype::kBf16:
        return Read<2>(panel, first, count, factor, begin, end, to, [](const uint8_t* p) {
          return Simd::FromBits(Simd::ShiftLeft<16>(Simd::LoadU16(p)));
        });
      case ScaleDtype::kFp8E4m3:
        return Read<1>(panel, first, count, factor, begin, end, to,
                       [](const uint8_t* p) { return E4m3::Decode(Simd::LoadU8(p)); });
      case ScaleDtype::kE8m0:
        // 2^(code - 127); 2^-127 (code 0) reads as 0.
        return Read<1>(panel, first, count, factor, begin, end, to, [](const uint8_t* p) {
          return Simd::FromBits(Simd::ShiftLeft<23>(Simd::LoadU8(p)));
        });
      case ScaleDtype::kNone:
        return Read<0>(panel, first, count, factor, begin, end, to,
                       [](const uint8_t*) { return Simd::Set1(1.0f); });
    }
  }

  // Codes are stored with an offset: their zero point plus `shift`, or `otherwise` in panels
  // without.
  void LoadZeroPoints(const Panel& panel, int64_t first, int count, float shift, float otherwise,
                      int to = 0) {
    if (panel.zero_points == nullptr) {
      for (int g = to; g < to + count; ++g) {
        for (float& offset : zero_point[g]) offset = otherwise;
      }
      return;
    }
    const uint8_t* from = panel.zero_points + first * (kBlockN / panel.scale_rows);
    for (int g = to; g < to + count; ++g) {
      for (int n = 0; n < kBlockN; n += Simd::kLanes) {
        const Simd::F value = panel.scale_rows == 1
                                  ? Simd::FromInt(Simd::LoadU8(from + n))
                                  : Simd::Set1(static_cast<float>(from[n / panel.scale_rows]));
        Simd::Store(zero_point[g] + n, Simd::Add(value, Simd::Set1(shift)));
      }
      from += kBlockN / panel.scale_rows;
    }
  }

 private:
  template <int kBytes, typename FromCodes>
  void Read(const Panel& panel, int64_t first, int count, float factor, int begin, int end, int to,
            FromCodes&& from_codes) {
    const uint8_t* from = panel.scales + first * (kBlockN / panel.scale_rows * kBytes);
    const Simd::F global[2] = {Simd::Set1(panel.global_scale[0] * factor),
                               Simd::Set1(panel.global_scale[1] * factor)};
    for (int g = to; g < to + count; ++g, from += kBlockN / panel.scale_rows * kBytes) {
      if (panel.scale_rows == 1) {
        for (int n = begin; n < end; n += Simd::kLanes) {
          Simd::Store(scale[g] + n, Simd::Mul(from_codes(from + n * kBytes), global[n / 32]));
        }
      } else {
        // A vector of codes is read, so one that rows share is repeated.
        for (int half = begin / 32; half < end / 32; ++half) {
          alignas(64) uint8_t repeated[kTileN * 4];
          for (int i = 0; i < kTileN; ++i) {
            std::memcpy(repeated + i * kBytes, from + half * 32 / panel.scale_rows * kBytes,
                        kBytes);
          }
          const Simd::F value = Simd::Mul(from_codes(repeated), global[half]);
          for (int n = 0; n < 32; n += Simd::kLanes) Simd::Store(scale[g] + half * 32 + n, value);
        }
      }
    }
  }
};

// The first scale group of a block's tile of inputs, counted through all blocks.
template <int kGroups>
int64_t GroupOf(const Panel& panel, int block, int k_tile) {
  const int group = kGroups > 1 ? k_tile * kGroups : k_tile / panel.tiles_per_scale;
  return int64_t{block} * panel.scale_groups + group;
}

// The codes of a tile of a block's inputs: four tiles of 16 outputs, the next inputs' behind them.
inline const uint8_t* CodesAt(const Panel& panel, int bits, int block, int k_tile) {
  return panel.codes + (int64_t{block} * panel.k_tiles + k_tile) * kTilesPerBlock *
                           static_cast<int64_t>(TileBytes(bits));
}

// The scales that a panel's tiles meet, in the order of the codes: block by block, each along its
// inputs. kGroups: scale groups in a tile of 32 inputs, 1 (or a group is longer than a tile) or 2.
// kRun: groups decoded at once.
template <int kGroups, int kRun = 8>
class ScaleWalk {
 public:
  // `factor`, `shift` and `otherwise` are those of GroupScales. `fetch`: a run ahead, into L1.
  ScaleWalk(const Panel& panel, float factor, float shift, float otherwise, bool fetch = false)
      : panel_(panel),
        factor_(factor),
        shift_(shift),
        group_bytes_(kBlockN / panel.scale_rows * BytesOf(panel.scale_dtype)),
        fetch_(fetch) {
    if (panel.zero_points == nullptr) run_.LoadZeroPoints(panel, 0, kRun, shift, otherwise);
  }

  // To the tile before the next block's first.
  void BeginBlock() { tiles_left_ = 0; }

  // Always inline, or what else is in a file decides whether it is: 2 % of 64 tokens (AVX2, int4).
  [[gnu::always_inline]] void Next() {
    if (kGroups == 1 && --tiles_left_ > 0) return;
    tiles_left_ = panel_.tiles_per_scale;
    group_ += kGroups;
    if (group_ % kRun != 0) return;
    const int left = panel_.blocks * panel_.scale_groups - group_;
    const int count = left < kRun ? left : kRun;
    if (fetch_) {
      PrefetchLines<1, 3>(panel_.scales + int64_t{group_ + kRun} * group_bytes_,
                          kRun * group_bytes_);
    }
    run_.Load(panel_, group_, count, factor_);
    if (panel_.zero_points != nullptr) run_.LoadZeroPoints(panel_, group_, count, shift_, 0.0f);
  }

  // Of the tile's group `g`, [64].
  const float* Scale(int g) const { return run_.scale[group_ % kRun + g]; }
  const float* ZeroPoint(int g) const { return run_.zero_point[group_ % kRun + g]; }

 private:
  const Panel& panel_;
  const float factor_, shift_;
  const int group_bytes_;
  const bool fetch_;
  int group_ = -kGroups, tiles_left_ = 0;
  GroupScales<kRun> run_;
};

// f<M>() with M = m ≤ kMost.
template <int kMost, typename F>
void WithCount(int m, F&& f) {
  if constexpr (kMost == 1) {
    f.template operator()<1>();
  } else {
    m == kMost ? f.template operator()<kMost>() : WithCount<kMost - 1>(m, f);
  }
}

// Turns in which `tokens` pass, at most `most` at a time.
constexpr int Turns(int tokens, int most) { return (tokens + most - 1) / most; }

// f<M>(first) for M ≤ kMost tokens from `first` on, until all had their turn: as few turns as
// possible, about equally long, because weights are loaded once a turn.
template <int kMost, typename F>
void ForTokens(int tokens, F&& f) {
  int first = 0;
  for (int turns = Turns(tokens, kMost); turns > 0; --turns) {
    const int m = (tokens - first + turns - 1) / turns;
    WithCount<kMost>(m, [&]<int M>() { f.template operator()<M>(first); });
    first += m;
  }
}

// Tiles of inputs that runs have together.
inline int TilesOf(const WeightRun* runs, int count) {
  int tiles = 0;
  for (int i = 0; i < count; ++i) tiles += runs[i].k_tiles;
  return tiles;
}

// Only the panel knows whether its codes have zero points.
template <auto with_zero_points, auto without>
void SweepByZeroPoints(const WeightRun* runs, int count, const PackedRows& x, int first_tile,
                       uint8_t* scratch, float* y, ptrdiff_t y_stride, Upcoming next) {
  const auto sweep = runs->panel.zero_points != nullptr ? with_zero_points : without;
  sweep(runs, count, x, first_tile, scratch, y, y_stride, next);
}

// Unpacks runs of weights side by side, `weight_bytes` for each tile of inputs; how many tiles.
template <auto unpack>
int UnpackRuns(const WeightRun* runs, int count, size_t weight_bytes, uint8_t* weights) {
  int tiles = 0;
  for (const WeightRun* run = runs; run < runs + count; tiles += run->k_tiles, ++run) {
    unpack(run->panel, run->block, run->k_tile, run->k_tiles, weights + tiles * weight_bytes);
  }
  return tiles;
}

}  // namespace
}  // namespace lsg
