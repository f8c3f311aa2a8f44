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

}  // namespace lsg
