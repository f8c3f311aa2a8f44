#include "memory/node_policy.h"

#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <climits>
#include <fstream>
#include <string>

namespace lsg {
namespace {

// From linux/mempolicy.h, which is not always installed.
constexpr int kPolicyBind = 2;
constexpr size_t kMaskBits = sizeof(unsigned long) * CHAR_BIT;

std::vector<unsigned long> Mask(const std::vector<int>& nodes) {
  const size_t highest = static_cast<size_t>(*std::max_element(nodes.begin(), nodes.end()));
  std::vector<unsigned long> mask(highest / kMaskBits + 1);
  for (const int node : nodes) mask[node / kMaskBits] |= 1UL << (node % kMaskBits);
  return mask;
}

// The kernel reads one bit less than it is told.
unsigned long MaskBits(const std::vector<unsigned long>& mask) {
  return mask.size() * kMaskBits + 1;
}

}  // namespace

std::vector<int> CpusOfNode(int node) {
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) return {};
  std::ifstream list("/sys/devices/system/node/node" + std::to_string(node) + "/cpulist");
  std::vector<int> cpus;
  int first;
  while (list >> first) {
    int last = first;
    if (list.peek() == '-') list.ignore() >> last;
    for (int cpu = first; cpu <= last && cpu < CPU_SETSIZE; ++cpu) {
      if (CPU_ISSET(cpu, &allowed)) cpus.push_back(cpu);
    }
    if (list.peek() == ',') list.ignore();
  }
  return cpus;
}

bool BindMemory(void* data, size_t bytes, const std::vector<int>& nodes) {
  if (nodes.empty() || nodes.front() == kAnyNode) return true;
  const auto mask = Mask(nodes);
  return syscall(SYS_mbind, data, bytes, kPolicyBind, mask.data(), MaskBits(mask), 0) == 0;
}

bool BindThread(int node) {
  if (node == kAnyNode) return true;
  bool bound = true;
  const std::vector<int> cpus = CpusOfNode(node);
  if (!cpus.empty()) {
    cpu_set_t set;
    CPU_ZERO(&set);
    for (const int cpu : cpus) CPU_SET(cpu, &set);
    bound = sched_setaffinity(0, sizeof set, &set) == 0;
  }
  const auto mask = Mask({node});
  return syscall(SYS_set_mempolicy, kPolicyBind, mask.data(), MaskBits(mask)) == 0 && bound;
}

}  // namespace lsg
