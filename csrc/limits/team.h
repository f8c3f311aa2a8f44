// Threads that start together.
#pragma once

#include <functional>
#include <vector>

namespace lsg {

// Calls prepare(thread) and, when all are prepared, job(thread) on `threads` threads; the sum of
// the rates that the jobs return. Thread i runs on cores[i % size] when cores is not empty. Neither
// function throws. Throws CapacityError when a thread cannot be started or pinned.
double SumOfRates(int threads, const std::vector<int>& cores,
                  const std::function<void(int)>& prepare, const std::function<double(int)>& job);

}  // namespace lsg
