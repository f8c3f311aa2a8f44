// Instruction-set levels: one chain, each level a superset of the one below.
#pragma once

#include <string_view>
#include <vector>

namespace lsg {

enum class Isa { kScalar, kAvx2, kAvx512, kVnni, kBf16, kAmx };
inline constexpr int kNumIsas = 6;

std::string_view IsaName(Isa isa);

// Levels this processor and operating system can run, lowest first; never empty.
std::vector<Isa> UsableIsas();

// The level called `name`, or the highest usable one when `name` is empty.
// Throws UnsupportedIsaError for an unknown name or one above what the processor has.
Isa SelectIsa(std::string_view name);

// Whether this processor fetches lines that are read in order by itself so well that software had
// better ask for few of them ahead. So it is on Zen 4, and assumed of all of AMD's; on Intel's
// Sapphire Rapids it is not.
bool NeedsFewFetches();

}  // namespace lsg
