// Threads on cores.
#pragma once

#include <pthread.h>

#include <vector>

namespace lsg {

// Lets a thread run on these logical CPUs only. Throws CapacityError when it cannot.
void PinThread(pthread_t thread, const std::vector<int>& cpus);

}  // namespace lsg
