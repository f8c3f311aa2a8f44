#include "cpu/pin.h"

#include <sched.h>

#include <string>

#include "base/error.h"

namespace lsg {

void PinThread(pthread_t thread, int core) {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (core >= 0 && core < CPU_SETSIZE) CPU_SET(core, &set);
  if (pthread_setaffinity_np(thread, sizeof set, &set) != 0) {
    throw CapacityError("a worker cannot be pinned to core " + std::to_string(core) +
                        ": it does not exist or this process may not use it");
  }
}

}  // namespace lsg
