// One pool of pinned workers: run a function on all of them, with a barrier inside.
//
// Invariant: outside Run no worker touches anything but the pool. Workers spin for a bounded time
// after a job, then sleep.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace lsg {

// A reusable barrier for `parties` threads: spins briefly, then sleeps.
class Barrier {
 public:
  explicit Barrier(int parties) : parties_(parties) {}
  void Wait();

 private:
  const int parties_;
  std::atomic<int> arrived_{0};
  std::atomic<uint32_t> generation_{0};
};

class ThreadPool {
 public:
  // `threads` ≥ 1 counts the thread that calls Run, which is worker 0 and is not pinned. Worker i
  // runs on cores[i % size] when cores is not empty. Throws CapacityError when a thread cannot be
  // started or pinned.
  ThreadPool(int threads, const std::vector<int>& cores);
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;
  ~ThreadPool();

  int size() const { return threads_; }

  // Calls job(worker) once on every worker and returns when all are done. One job at a time; jobs
  // do not throw.
  void Run(const std::function<void(int)>& job);

  // Inside a job: waits until all workers are here.
  void Sync() { barrier_.Wait(); }

 private:
  void Work(int worker);

  const int threads_;
  Barrier barrier_;
  std::mutex run_mutex_;
  const std::function<void(int)>* job_ = nullptr;
  std::atomic<uint32_t> job_number_{0};
  std::atomic<int> running_{0};
  std::atomic<bool> stopping_{false};
  std::vector<std::jthread> workers_;
};

}  // namespace lsg
