#include <chrono>
#include <string>

#include "base/error.h"
#include "limits/limits.h"
#include "limits/loops.h"
#include "limits/team.h"

namespace lsg {
namespace {

Loop LoopOf(Instruction instruction) {
  switch (instruction) {
    case Instruction::kFmaYmm:
      return avx2::FmaLoop();
    case Instruction::kMaddUbsYmm:
      return avx2::MaddUbsLoop();
    case Instruction::kFmaZmm:
      return avx512::FmaLoop();
    case Instruction::kMaddUbsZmm:
      return avx512::MaddUbsLoop();
    case Instruction::kDpbusdZmm:
      return vnni::DpbusdLoop();
    case Instruction::kDpbf16Zmm:
      return bf16::Dpbf16Loop();
    case Instruction::kTileBf16:
      return amx::TileBf16Loop();
    case Instruction::kTileInt8:
      return amx::TileInt8Loop();
  }
  throw Error("no instruction " + std::to_string(static_cast<int>(instruction)));
}

}  // namespace

Isa IsaOf(Instruction instruction) {
  switch (instruction) {
    case Instruction::kFmaYmm:
    case Instruction::kMaddUbsYmm:
      return Isa::kAvx2;
    case Instruction::kFmaZmm:
    case Instruction::kMaddUbsZmm:
      return Isa::kAvx512;
    case Instruction::kDpbusdZmm:
      return Isa::kVnni;
    case Instruction::kDpbf16Zmm:
      return Isa::kBf16;
    case Instruction::kTileBf16:
    case Instruction::kTileInt8:
      return Isa::kAmx;
  }
  throw Error("no instruction " + std::to_string(static_cast<int>(instruction)));
}

double ArithmeticPeak(Instruction instruction, int threads, const std::vector<int>& cores,
                      double seconds) {
  SelectIsa(IsaName(IsaOf(instruction)));  // throws where the loop would fault
  // Some tens of microseconds: long beside a look at the clock, short beside `seconds`.
  constexpr int64_t kTurns = 1 << 13;
  const Loop loop = LoopOf(instruction);
  return SumOfRates(
      threads, cores, [&](int) { loop.run(kTurns); },  // wakes wide units and lets the clock settle
      [&](int) {
        using Clock = std::chrono::steady_clock;
        const auto begin = Clock::now();
        std::chrono::duration<double> elapsed{0};
        int64_t turns = 0;
        while (elapsed.count() < seconds) {
          loop.run(kTurns);
          turns += kTurns;
          elapsed = Clock::now() - begin;
        }
        return static_cast<double>(turns * loop.operations_per_turn) / elapsed.count();
      });
}

}  // namespace lsg
