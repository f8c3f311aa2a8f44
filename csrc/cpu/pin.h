// Threads on cores.
#pragma once

#include <pthread.h>
#include <sched.h>

#include <vector>

namespace lsg {

// Lets a thread run on these logical CPUs only. Throws CapacityError when it cannot.
void PinThread(pthread_t thread, const std::vector<int>& cpus);

// Moves the calling thread to another logical CPU when it runs on one of `taken` and may run
// elsewhere; where it may run stays as it was. Costs nothing when it runs on none of them.
void StepAside(const cpu_set_t& taken);

}  // namespace lsg
