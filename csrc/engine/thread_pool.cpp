#include "engine/thread_pool.h"

#include <immintrin.h>

#include <string>
#include <system_error>

#include "base/error.h"
#include "cpu/pin.h"

namespace lsg {
namespace {

// About 50 µs of pauses: longer than the gaps inside a layer, much shorter than a scheduler tick.
constexpr int kSpins = 2000;

template <typename T>
void WaitWhileEqual(const std::atomic<T>& value, T old) {
  for (int spin = 0; spin < kSpins; ++spin) {
    if (value.load(std::memory_order_acquire) != old) return;
    _mm_pause();
  }
  // atomic::wait may wake for nothing.
  while (value.load(std::memory_order_acquire) == old) value.wait(old, std::memory_order_acquire);
}

}  // namespace

void Barrier::Wait() {
  const uint32_t generation = generation_.load(std::memory_order_acquire);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == parties_) {
    arrived_.store(0, std::memory_order_relaxed);
    generation_.store(generation + 1, std::memory_order_release);
    generation_.notify_all();
    return;
  }
  WaitWhileEqual(generation_, generation);
}

ThreadPool::ThreadPool(int threads, const std::vector<int>& cores)
    : threads_(threads), barrier_(threads) {
  if (threads < 1)
    throw CapacityError("an engine needs at least 1 thread, got " + std::to_string(threads));
  try {
    for (int worker = 1; worker < threads; ++worker) {
      workers_.emplace_back([this, worker] { Work(worker); });
      if (!cores.empty()) PinThread(workers_.back().native_handle(), cores[worker % cores.size()]);
    }
  } catch (const std::system_error& error) {
    stopping_ = true;
    ++job_number_;
    job_number_.notify_all();
    throw CapacityError("cannot start " + std::to_string(threads) + " threads (" + error.what() +
                        ")");
  } catch (...) {
    stopping_ = true;
    ++job_number_;
    job_number_.notify_all();
    throw;
  }
}

ThreadPool::~ThreadPool() {
  stopping_ = true;
  ++job_number_;
  job_number_.notify_all();
}

void ThreadPool::Run(const std::function<void(int)>& job) {
  const std::lock_guard lock(run_mutex_);
  job_ = &job;
  running_.store(threads_ - 1, std::memory_order_relaxed);
  job_number_.fetch_add(1, std::memory_order_release);
  job_number_.notify_all();
  job(0);
  for (int left = running_.load(std::memory_order_acquire); left != 0;
       left = running_.load(std::memory_order_acquire)) {
    WaitWhileEqual(running_, left);
  }
}

void ThreadPool::Work(int worker) {
  uint32_t seen = 0;
  while (true) {
    WaitWhileEqual(job_number_, seen);
    ++seen;
    if (stopping_.load(std::memory_order_acquire)) return;
    (*job_)(worker);
    if (running_.fetch_sub(1, std::memory_order_acq_rel) == 1) running_.notify_all();
  }
}

}  // namespace lsg
