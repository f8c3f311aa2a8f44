// One loop per instruction, each compiled with its level's flags.
//
// A loop keeps its operands in registers and has more independent sums than the instruction's
// latency times its throughput, so nothing but the arithmetic units limits it.
#pragma once

#include <cstdint>

namespace lsg {

struct Loop {
  void (*run)(int64_t turns);
  int64_t operations_per_turn;
};

namespace avx2 {
Loop FmaLoop();
Loop MaddUbsLoop();
}  // namespace avx2
namespace avx512 {
Loop FmaLoop();
Loop MaddUbsLoop();
}  // namespace avx512
namespace vnni {
Loop DpbusdLoop();
}
namespace bf16 {
Loop Dpbf16Loop();
}
namespace amx {
Loop TileBf16Loop();
Loop TileInt8Loop();
}  // namespace amx

}  // namespace lsg
