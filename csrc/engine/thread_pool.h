// One pool of workers, grouped by NUMA node: run a function on all of them, with barriers inside.
//
// Invariant: outside Run no worker touches anything but the pool. A worker that has nothing to do
// spins for a bounded time, then sleeps in the kernel; whoever waits for a job does the same.
// Every word that threads of several nodes wait on exists once per node, so a wake-up, a barrier
// and a join cost one transfer between nodes each, not one per worker.
#pragma once

#include <sched.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

namespace lsg {

// The workers of one NUMA node.
struct NodeWorkers {
  int node = 0;                        // as the kernel numbers it
  std::vector<std::vector<int>> cpus;  // per worker the logical CPUs it may run on; none: any

  bool operator==(const NodeWorkers&) const = default;
};

struct PoolOptions {
  std::vector<NodeWorkers> nodes;
  // How long an idle worker spins before it sleeps. 0 saves power and costs a wake-up per job.
  std::chrono::microseconds spin{50};

  bool operator==(const PoolOptions&) const = default;
};

// A number that threads wait on, with a payload that changes together with it.
class WaitWord {
 public:
  uint32_t number() const { return static_cast<uint32_t>(word_.load()); }
  uint32_t payload() const { return static_cast<uint32_t>(word_.load() >> 32); }
  // Waits until the number is not `old`: spins for `spin`, then sleeps. Returns number and payload.
  std::pair<uint32_t, uint32_t> WaitWhile(uint32_t old, std::chrono::microseconds spin);
  // Changes both and wakes whoever sleeps.
  void Set(uint32_t number, uint32_t payload = 0);
  // Takes one off the number; wakes sleepers when that makes it 0.
  void CountDown();

 private:
  void Wake();

  // Sequentially consistent throughout: a sleeper announces itself and looks at the word again, a
  // waker changes the word and looks for sleepers, and one of the two must see the other.
  std::atomic<uint64_t> word_{0};
  std::atomic<uint32_t> sleepers_{0};
};

class ThreadPool {
 public:
  // Workers are numbered node by node. The thread that calls Run is worker 0 where there is one
  // node and its first worker may run anywhere; else it only waits, because it may be beside the
  // wrong memory. Throws CapacityError when a thread cannot be started or pinned.
  explicit ThreadPool(PoolOptions options);
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;
  ~ThreadPool();

  // The process's pool with these options: engines that want the same workers share them.
  static std::shared_ptr<ThreadPool> Shared(const PoolOptions& options);

  int size() const { return size_; }
  int num_nodes() const { return static_cast<int>(nodes_.size()); }
  // The kernel's number of node `node`, an index below num_nodes().
  int NumaNode(int node) const { return options_.nodes[node].node; }
  // Workers [FirstWorker(node), FirstWorker(node + 1)) are on the node.
  int FirstWorker(int node) const { return first_worker_[node]; }
  int NodeOf(int worker) const { return node_of_[worker]; }
  int WorkersOn(int node) const { return first_worker_[node + 1] - first_worker_[node]; }

  // Calls job(worker) once on each of the first `workers` workers (all by default) and returns when
  // they are done. Jobs take turns. When one throws, the others stop at their next barrier and the
  // first exception comes out here. Throws Error in a forked child, where there are no workers.
  void Run(const std::function<void(int)>& job) { Run(size_, job); }
  void Run(int workers, const std::function<void(int)>& job);

  // Inside a job of all workers: waits until all of them are here, or all of this worker's node.
  void Sync();
  void SyncNode();

  // Whether this process was forked from the one that has the workers.
  bool forked() const;
  // Throws Error when it was.
  void CheckProcess() const;

 private:
  // What the threads of one node share, a cache line for each word that changes on its own.
  struct Node {
    alignas(64) WaitWord job;  // job number, and how many of the node's workers it wants
    alignas(64) std::atomic<int> running{0};
    alignas(64) std::atomic<int> arrived{0};
    alignas(64) WaitWord released;  // rises with every barrier of all workers
    alignas(64) std::atomic<int> arrived_here{0};
    alignas(64) WaitWord released_here;  // rises with every barrier of the node
  };
  // Thrown in workers whose job failed elsewhere.
  struct Abandoned {};

  void Start();
  void Stop();
  void Work(int worker);
  void Perform(int worker);
  void WaitAtBarrier(WaitWord& released, uint32_t old);
  void ThrowIfFailed() const;
  void Fail(std::exception_ptr failure);
  void ForgetFailure();

  const PoolOptions options_;
  const int forks_;  // of this process's ancestors when the pool was made
  const bool caller_works_;
  cpu_set_t workers_cpus_;  // of the workers that may run on one CPU only
  int size_ = 0;
  std::vector<int> first_worker_, node_of_;
  std::vector<std::unique_ptr<Node>> nodes_;
  std::mutex run_mutex_;
  const std::function<void(int)>* job_ = nullptr;
  uint32_t job_number_ = 0;
  alignas(64) WaitWord nodes_running_;
  alignas(64) std::atomic<int> nodes_arrived_{0};
  alignas(64) std::atomic<bool> failed_{false};
  std::atomic<bool> stopping_{false};
  std::mutex failure_mutex_;
  std::exception_ptr failure_;
  std::vector<std::thread> threads_;
};

}  // namespace lsg
