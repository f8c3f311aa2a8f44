#include "engine/thread_pool.h"

#include <immintrin.h>
#include <linux/futex.h>
#include <pthread.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <climits>
#include <string>
#include <system_error>

#include "base/error.h"
#include "cpu/pin.h"

namespace lsg {
namespace {

using std::chrono::microseconds;
using std::chrono::steady_clock;

// Inside a job everybody is at work, so the others are worth waiting for even when saving power:
// longer than a sleep and a wake-up take, much shorter than a scheduler tick.
constexpr microseconds kJobSpin{50};
// Pauses between two looks at the clock: about a microsecond.
constexpr int kPauses = 16;

// Forks between the process that was started and this one.
std::atomic<int> forks{0};

// Which worker of its pool the running thread is; a thread outside every pool calls Run.
thread_local int this_worker = 0;

int CountForks() {
  static const bool installed = [] {
    pthread_atfork(nullptr, nullptr, [] { forks.fetch_add(1, std::memory_order_relaxed); });
    return true;
  }();
  static_cast<void>(installed);
  return forks.load(std::memory_order_relaxed);
}

// Signals are the business of the program's own threads. Faults stay: blocked, they kill without a
// word.
class SignalsBlocked {
 public:
  SignalsBlocked() {
    sigset_t set;
    sigfillset(&set);
    for (int fault : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT, SIGTRAP}) sigdelset(&set, fault);
    pthread_sigmask(SIG_BLOCK, &set, &old_);
  }
  SignalsBlocked(const SignalsBlocked&) = delete;
  SignalsBlocked& operator=(const SignalsBlocked&) = delete;
  ~SignalsBlocked() { pthread_sigmask(SIG_SETMASK, &old_, nullptr); }

 private:
  sigset_t old_;
};

}  // namespace

std::pair<uint32_t, uint32_t> WaitWord::WaitWhile(uint32_t old, microseconds spin) {
  const auto changed = [&](uint64_t word) { return static_cast<uint32_t>(word) != old; };
  const auto split = [](uint64_t word) {
    return std::pair(static_cast<uint32_t>(word), static_cast<uint32_t>(word >> 32));
  };
  uint64_t word = word_.load(std::memory_order_acquire);
  if (changed(word)) return split(word);
  if (spin.count() > 0) {
    const auto deadline = steady_clock::now() + spin;
    do {
      for (int pause = 0; pause < kPauses; ++pause) {
        _mm_pause();
        word = word_.load(std::memory_order_acquire);
        if (changed(word)) return split(word);
      }
    } while (steady_clock::now() < deadline);
  }
  sleepers_.fetch_add(1);
  while (!changed(word = word_.load())) {
    // The number is the low half, which comes first in memory.
    syscall(SYS_futex, &word_, FUTEX_WAIT_PRIVATE, old, nullptr, nullptr, 0);
  }
  sleepers_.fetch_sub(1, std::memory_order_relaxed);
  return split(word);
}

void WaitWord::Set(uint32_t number, uint32_t payload) {
  word_.store(uint64_t{payload} << 32 | number);
  Wake();
}

void WaitWord::CountDown() {
  if (static_cast<uint32_t>(word_.fetch_sub(1)) == 1) Wake();
}

void WaitWord::Wake() {
  if (sleepers_.load() == 0) return;
  syscall(SYS_futex, &word_, FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0);
}

ThreadPool::ThreadPool(PoolOptions options)
    : options_(std::move(options)),
      forks_(CountForks()),
      caller_works_(options_.nodes.size() == 1 && !options_.nodes[0].cpus.empty() &&
                    options_.nodes[0].cpus[0].empty()),
      first_worker_{0} {
  for (const NodeWorkers& workers : options_.nodes) {
    if (workers.cpus.empty()) {
      throw CapacityError("node " + std::to_string(workers.node) +
                          " of an engine needs at least 1 thread");
    }
    node_of_.insert(node_of_.end(), workers.cpus.size(), num_nodes());
    first_worker_.push_back(static_cast<int>(node_of_.size()));
    nodes_.push_back(std::make_unique<Node>());
  }
  size_ = first_worker_.back();
  if (size_ == 0) throw CapacityError("an engine needs at least 1 thread");
  try {
    Start();
  } catch (const std::system_error& error) {
    Stop();
    throw CapacityError("cannot start " + std::to_string(size_) + " threads (" + error.what() +
                        ")");
  } catch (...) {
    Stop();
    throw;
  }
}

void ThreadPool::Start() {
  const SignalsBlocked blocked;
  CPU_ZERO(&workers_cpus_);
  for (int worker = caller_works_ ? 1 : 0; worker < size_; ++worker) {
    threads_.emplace_back([this, worker] { Work(worker); });
    const int node = NodeOf(worker);
    const std::string name = "lsg-" + std::to_string(NumaNode(node)) + "-" + std::to_string(worker);
    pthread_setname_np(threads_.back().native_handle(), name.c_str());
    const std::vector<int>& cpus = options_.nodes[node].cpus[worker - first_worker_[node]];
    if (!cpus.empty()) PinThread(threads_.back().native_handle(), cpus);
    if (cpus.size() == 1) CPU_SET(cpus[0], &workers_cpus_);
  }
}

void ThreadPool::Stop() {
  stopping_ = true;
  for (const auto& node : nodes_) node->job.Set(job_number_ + 1);
  for (std::thread& thread : threads_) thread.join();
}

ThreadPool::~ThreadPool() {
  if (!forked()) {
    Stop();
    return;
  }
  // The threads are the parent's: there is nothing to join, and no destructor may try.
  static_cast<void>(new std::vector<std::thread>(std::move(threads_)));
}

std::shared_ptr<ThreadPool> ThreadPool::Shared(const PoolOptions& options) {
  // Never destroyed: engines may outlive static objects.
  static auto& mutex = *new std::mutex;
  static auto& pools = *new std::vector<std::weak_ptr<ThreadPool>>;
  const std::lock_guard lock(mutex);
  std::erase_if(pools, [](const auto& pool) { return pool.expired(); });
  for (const auto& known : pools) {
    const auto pool = known.lock();
    if (pool != nullptr && pool->options_ == options && !pool->forked()) return pool;
  }
  auto pool = std::make_shared<ThreadPool>(options);
  pools.push_back(pool);
  return pool;
}

bool ThreadPool::forked() const { return forks.load(std::memory_order_relaxed) != forks_; }

void ThreadPool::CheckProcess() const {
  if (forked()) {
    throw Error(
        "this engine was made before a fork, and its threads stayed in the parent; make the engine "
        "in the process that uses it, or start that process with the method spawn");
  }
}

void ThreadPool::Run(int workers, const std::function<void(int)>& job) {
  CheckProcess();
  const std::lock_guard lock(run_mutex_);
  // The kernel may have woken the caller where a worker slept. That worker can run nowhere else,
  // and all would wait for it until the caller has finished.
  StepAside(workers_cpus_);
  workers = std::clamp(workers, 1, size_);
  job_ = &job;
  ++job_number_;
  const auto wanted = [&](int node) {
    return std::clamp(workers - first_worker_[node], 0, WorkersOn(node));
  };
  // The caller is one of node 0's when it works.
  const auto threads = [&](int node) { return wanted(node) - (caller_works_ ? 1 : 0); };
  uint32_t busy = 0;
  for (int node = 0; node < num_nodes(); ++node) busy += threads(node) > 0;
  nodes_running_.Set(busy);
  for (int node = 0; node < num_nodes(); ++node) {
    if (threads(node) <= 0) continue;
    nodes_[node]->running.store(threads(node), std::memory_order_relaxed);
    nodes_[node]->job.Set(job_number_, wanted(node));
  }
  if (caller_works_) Perform(0);
  while (const uint32_t left = nodes_running_.number()) {
    nodes_running_.WaitWhile(left, std::max(options_.spin, kJobSpin));
  }
  if (failed_.load()) ForgetFailure();
}

void ThreadPool::Work(int worker) {
  this_worker = worker;
  const int node = NodeOf(worker);
  const auto here = static_cast<uint32_t>(worker - first_worker_[node]);
  Node& mine = *nodes_[node];
  uint32_t seen = 0;
  while (true) {
    const auto [number, wanted] = mine.job.WaitWhile(seen, options_.spin);
    seen = number;
    if (stopping_.load()) return;
    if (here >= wanted) continue;
    Perform(worker);
    if (mine.running.fetch_sub(1) == 1) nodes_running_.CountDown();
  }
}

void ThreadPool::Perform(int worker) {
  try {
    (*job_)(worker);
  } catch (const Abandoned&) {
    return;
  } catch (...) {
    Fail(std::current_exception());
  }
}

void ThreadPool::Sync() {
  Node& mine = *nodes_[NodeOf(this_worker)];
  const uint32_t old = mine.released.number();
  ThrowIfFailed();
  if (mine.arrived.fetch_add(1) + 1 == WorkersOn(NodeOf(this_worker))) {
    mine.arrived.store(0, std::memory_order_relaxed);
    if (nodes_arrived_.fetch_add(1) + 1 == num_nodes()) {
      nodes_arrived_.store(0, std::memory_order_relaxed);
      for (const auto& node : nodes_) node->released.Set(node->released.number() + 1);
      return;
    }
  }
  WaitAtBarrier(mine.released, old);
}

void ThreadPool::SyncNode() {
  Node& mine = *nodes_[NodeOf(this_worker)];
  const uint32_t old = mine.released_here.number();
  ThrowIfFailed();
  if (mine.arrived_here.fetch_add(1) + 1 == WorkersOn(NodeOf(this_worker))) {
    mine.arrived_here.store(0, std::memory_order_relaxed);
    mine.released_here.Set(old + 1);
    return;
  }
  WaitAtBarrier(mine.released_here, old);
}

void ThreadPool::WaitAtBarrier(WaitWord& released, uint32_t old) {
  released.WaitWhile(old, std::max(options_.spin, kJobSpin));
  ThrowIfFailed();
}

void ThreadPool::ThrowIfFailed() const {
  if (failed_.load()) throw Abandoned();
}

void ThreadPool::Fail(std::exception_ptr failure) {
  {
    const std::lock_guard lock(failure_mutex_);
    if (failure_ == nullptr) failure_ = std::move(failure);
  }
  // In this order: whoever reads a barrier's old number after the change also sees the failure.
  failed_.store(true);
  for (const auto& node : nodes_) {
    node->released.Set(node->released.number() + 1);
    node->released_here.Set(node->released_here.number() + 1);
  }
}

void ThreadPool::ForgetFailure() {
  const std::exception_ptr failure = std::exchange(failure_, nullptr);
  failed_.store(false);
  nodes_arrived_.store(0);
  for (const auto& node : nodes_) {
    node->arrived.store(0);
    node->arrived_here.store(0);
  }
  std::rethrow_exception(failure);
}

}  // namespace lsg
