#include "cpu/isa.h"

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <cstdint>
#include <string>

#include "base/error.h"

namespace lsg {
namespace {

constexpr std::array<std::string_view, kNumIsas> kNames = {"scalar", "avx2", "avx512",
                                                           "vnni",   "bf16", "amx"};

uint64_t ReadXcr0() {
  uint32_t low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return uint64_t{high} << 32 | low;
}

// The kernel grants AMX tile data per process and on request; without the grant the first tile
// instruction faults.
bool RequestAmx() {
  constexpr int kArchReqXcompPerm = 0x1023;
  constexpr int kXfeatureTiledata = 18;
  return syscall(SYS_arch_prctl, kArchReqXcompPerm, kXfeatureTiledata) == 0;
}

// Highest level whose every feature bit (the -m flags in csrc/CMakeLists.txt) and register state is
// there.
Isa Detect() {
  uint32_t eax, ebx, ecx, edx;
  if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx)) return Isa::kScalar;
  const bool osxsave = ecx >> 27 & 1;
  const bool fma = ecx >> 12 & 1, f16c = ecx >> 29 & 1;
  if (!osxsave) return Isa::kScalar;
  const uint64_t xcr0 = ReadXcr0();
  if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return Isa::kScalar;
  const uint32_t subleaves = eax;
  const bool avx2 = ebx >> 5 & 1;
  if (!(avx2 && fma && f16c && (xcr0 & 0x6) == 0x6)) return Isa::kScalar;
  const bool f = ebx >> 16 & 1, dq = ebx >> 17 & 1, bw = ebx >> 30 & 1, vl = ebx >> 31 & 1;
  if (!(f && dq && bw && vl && (xcr0 & 0xe6) == 0xe6)) return Isa::kAvx2;
  if (!(ecx >> 11 & 1)) return Isa::kAvx512;
  const bool vbmi = ecx >> 1 & 1;
  const bool amx = (edx >> 22 & 1) && (edx >> 24 & 1) && (edx >> 25 & 1) &&  // bf16, tile, int8
                   (xcr0 & 0x60000) == 0x60000;
  if (subleaves < 1 || !__get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx)) return Isa::kVnni;
  if (!(vbmi && (eax >> 5 & 1))) return Isa::kVnni;
  if (!amx || !RequestAmx()) return Isa::kBf16;
  return Isa::kAmx;
}

std::string Join(const std::vector<Isa>& isas) {
  std::string text;
  for (Isa isa : isas) text += (text.empty() ? "" : ", ") + std::string(IsaName(isa));
  return text;
}

}  // namespace

std::string_view IsaName(Isa isa) { return kNames[static_cast<size_t>(isa)]; }

std::vector<Isa> UsableIsas() {
  static const Isa highest = Detect();
  std::vector<Isa> isas;
  for (int level = 0; level <= static_cast<int>(highest); ++level) {
    isas.push_back(static_cast<Isa>(level));
  }
  return isas;
}

Isa SelectIsa(std::string_view name) {
  const std::vector<Isa> usable = UsableIsas();
  if (name.empty()) return usable.back();
  for (Isa isa : usable) {
    if (IsaName(isa) == name) return isa;
  }
  for (std::string_view known : kNames) {
    if (known == name) {
      throw UnsupportedIsaError("ISA level '" + std::string(name) +
                                "' is above what this processor has; usable here: " + Join(usable));
    }
  }
  throw UnsupportedIsaError("unknown ISA level '" + std::string(name) +
                            "'; usable here: " + Join(usable));
}

bool NeedsFewFetches() {
  static const bool amd = [] {
    uint32_t eax, ebx, ecx, edx;
    return __get_cpuid(0, &eax, &ebx, &ecx, &edx) != 0 && ebx == signature_AMD_ebx &&
           ecx == signature_AMD_ecx && edx == signature_AMD_edx;
  }();
  return amd;
}

}  // namespace lsg
