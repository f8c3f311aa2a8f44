// Threads on cores.
#pragma once

#include <pthread.h>

namespace lsg {

// Lets a thread run on the logical CPU `core` only. Throws CapacityError when it cannot.
void PinThread(pthread_t thread, int core);

}  // namespace lsg
