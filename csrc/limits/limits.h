// The machine's limits, measured: how fast memory can be read, and how fast arithmetic can be done.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "cpu/isa.h"

namespace lsg {

// Memory to read, kept between measurements, so that a short one can stand beside whatever it is to
// be compared with.
class ReadProbe {
 public:
  // `threads` readers of `bytes` of memory together (2 MiB pages where the system gives them), each
  // reading its part in `streams` streams. Reader i runs on cores[i % size] when cores is not
  // empty, and its part lies on that core's node. Throws CapacityError without memory.
  ReadProbe(int threads, std::vector<int> cores, uint64_t bytes, int streams);
  ~ReadProbe();

  // Bytes per second that they take together, reading over and over for about `seconds`. Throws
  // CapacityError when a thread cannot be started or pinned.
  double Measure(double seconds);

 private:
  struct Buffer;

  const int threads_, streams_;
  const std::vector<int> cores_;
  const uint64_t part_;
  const std::unique_ptr<Buffer> buffer_;
  bool touched_ = false;
};

// The instructions that kernels spend their time in.
enum class Instruction {
  kFmaYmm,
  kMaddUbsYmm,  // VPMADDUBSW with VPADDW, widened by VPMADDWD every eighth time
  kFmaZmm,
  kMaddUbsZmm,
  kDpbusdZmm,  // AVX-512 VNNI
  kDpbf16Zmm,  // AVX-512 BF16
  kTileBf16,   // TDPBF16PS
  kTileInt8,   // TDPBUSD
};
inline constexpr int kNumInstructions = 8;

// The lowest level that has it.
Isa IsaOf(Instruction instruction);

// Operations per second (a multiplication and an addition are two) that `threads` threads reach
// together with operands in registers. Throws UnsupportedIsaError when the processor does not have
// the instruction, CapacityError when a thread cannot be started or pinned.
double ArithmeticPeak(Instruction instruction, int threads, const std::vector<int>& cores,
                      double seconds);

}  // namespace lsg
