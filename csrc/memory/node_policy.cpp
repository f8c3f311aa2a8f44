#include "memory/node_policy.h"

#include <sys/syscall.h>
#include <unistd.h>

#include <climits>
#include <fstream>
#include <string>
#include <vector>

namespace lsg {
namespace {

// From linux/mempolicy.h, which is not always installed.
constexpr int kPolicyBind = 2;
constexpr size_t kMaskBits = sizeof(unsigned long) * CHAR_BIT;

std::vector<unsigned long> Mask(int node) {
  std::vector<unsigned long> mask(node / kMaskBits + 1);
  mask.back() = 1UL << (node % kMaskBits);
  return mask;
}

// The kernel reads one bit less than it is told.
unsigned long MaskBits(const std::vector<unsigned long>& mask) {
  return mask.size() * kMaskBits + 1;
}

// The CPUs of `node` among `allowed`.
cpu_set_t CpusOfNode(int node, const cpu_set_t& allowed) {
  cpu_set_t cpus;
  CPU_ZERO(&cpus);
  std::ifstream list("/sys/devices/system/node/node" + std::to_string(node) + "/cpulist");
  int first;
  while (list >> first) {
    int last = first;
    if (list.peek() == '-') list.ignore() >> last;
    for (int cpu = first; cpu <= last && cpu < CPU_SETSIZE; ++cpu) CPU_SET(cpu, &cpus);
    if (list.peek() == ',') list.ignore();
  }
  CPU_AND(&cpus, &cpus, &allowed);
  return cpus;
}

}  // namespace

bool BindMemory(void* data, size_t bytes, int node) {
  if (node == kAnyNode) return true;
  const auto mask = Mask(node);
  return syscall(SYS_mbind, data, bytes, kPolicyBind, mask.data(), MaskBits(mask), 0) == 0;
}

ThreadBinder::ThreadBinder() {
  if (sched_getaffinity(0, sizeof allowed_, &allowed_) != 0) CPU_ZERO(&allowed_);
}

bool ThreadBinder::Bind(int node) const {
  if (node == kAnyNode) return true;
  const cpu_set_t cpus = CpusOfNode(node, allowed_);
  const bool pinned =
      sched_setaffinity(0, sizeof cpus, CPU_COUNT(&cpus) > 0 ? &cpus : &allowed_) == 0;
  const auto mask = Mask(node);
  return syscall(SYS_set_mempolicy, kPolicyBind, mask.data(), MaskBits(mask)) == 0 && pinned;
}

}  // namespace lsg
