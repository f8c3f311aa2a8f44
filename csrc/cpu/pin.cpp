#include "cpu/pin.h"

#include <sched.h>

#include <string>

#include "base/error.h"

namespace lsg {

void PinThread(pthread_t thread, const std::vector<int>& cpus) {
  cpu_set_t set;
  CPU_ZERO(&set);
  std::string names;
  for (int cpu : cpus) {
    if (cpu >= 0 && cpu < CPU_SETSIZE) CPU_SET(cpu, &set);
    names += (names.empty() ? "" : ", ") + std::to_string(cpu);
  }
  if (pthread_setaffinity_np(thread, sizeof set, &set) != 0) {
    throw CapacityError("a thread cannot be pinned to core " + names +
                        ": it does not exist or this process may not use it");
  }
}

void StepAside(const cpu_set_t& taken) {
  const int cpu = sched_getcpu();
  if (cpu < 0 || cpu >= CPU_SETSIZE || !CPU_ISSET(cpu, &taken)) return;
  cpu_set_t allowed, rest;
  if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) return;
  CPU_AND(&rest, &allowed, &taken);
  CPU_XOR(&rest, &allowed, &rest);
  // Where nothing else is allowed, the kernel refuses the empty set and the thread stays.
  if (sched_setaffinity(0, sizeof rest, &rest) == 0) {
    sched_setaffinity(0, sizeof allowed, &allowed);
  }
}

}  // namespace lsg
