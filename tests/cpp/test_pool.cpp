// The thread pool and shared pieces alone, small enough to run under ThreadSanitizer: barriers,
// failures, callers, signals, fork, helpers.

#include <sched.h>
#include <signal.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "base/error.h"
#include "engine/shared_pieces.h"
#include "engine/thread_pool.h"

namespace lsg {
namespace {

void Expect(bool fact, const std::string& what) {
  if (fact) return;
  std::fprintf(stderr, "expected: %s\n", what.c_str());
  std::exit(1);
}

PoolOptions On(const std::vector<int>& workers_by_node, int spin_us) {
  PoolOptions options;
  for (size_t node = 0; node < workers_by_node.size(); ++node) {
    options.nodes.push_back(
        {static_cast<int>(node), std::vector<std::vector<int>>(workers_by_node[node])});
  }
  options.spin = std::chrono::microseconds(spin_us);
  return options;
}

// Each worker runs once, among as many as were asked for.
void Coverage(ThreadPool& pool) {
  for (int workers = 1; workers <= pool.size(); ++workers) {
    std::vector<int> calls(pool.size());
    pool.Run(workers, [&](int worker) { ++calls[worker]; });
    for (int worker = 0; worker < pool.size(); ++worker) {
      Expect(calls[worker] == (worker < workers), "each wanted worker once");
    }
  }
}

// What one worker wrote before a barrier, every other one of its group reads after it.
void Barriers(ThreadPool& pool) {
  std::vector<int> steps(pool.size());
  std::atomic<int> wrong{0};
  pool.Run([&](int worker) {
    for (int step = 1; step <= 20; ++step) {
      steps[worker] = step;
      const bool everybody = step % 2 == 0;
      everybody ? pool.Sync() : pool.SyncNode();
      const int node = pool.NodeOf(worker);
      const int first = everybody ? 0 : pool.FirstWorker(node);
      const int end = everybody ? pool.size() : pool.FirstWorker(node + 1);
      for (int other = first; other < end; ++other) wrong += steps[other] != step;
      everybody ? pool.Sync() : pool.SyncNode();
    }
  });
  Expect(wrong == 0, "no worker passes a barrier before the others");
}

// One worker fails before, between or after barriers; the others do not wait for it for ever, and
// the pool works afterwards.
void Failures(ThreadPool& pool) {
  for (int thrower = 0; thrower < pool.size(); ++thrower) {
    for (int step = 0; step < 3; ++step) {
      bool caught = false;
      try {
        pool.Run([&](int worker) {
          for (int at = 0; at < 3; ++at) {
            if (worker == thrower && at == step) throw std::runtime_error("on purpose");
            at % 2 == 0 ? pool.Sync() : pool.SyncNode();
          }
        });
      } catch (const std::runtime_error& error) {
        caught = error.what() == std::string("on purpose");
      }
      Expect(caught, "the failure comes out of Run");
    }
  }
  Barriers(pool);
}

void SeveralCallers(ThreadPool& pool) {
  std::vector<int> sums(pool.size());
  std::vector<std::jthread> callers;
  for (int caller = 0; caller < 3; ++caller) {
    callers.emplace_back([&] {
      for (int job = 0; job < 100; ++job) {
        pool.Run([&](int worker) {
          ++sums[worker];
          pool.Sync();
        });
      }
    });
  }
  callers.clear();
  for (int sum : sums) Expect(sum == 300, "jobs of several callers take turns");
}

void Signals(ThreadPool& pool) {
  static std::atomic<int> alarms{0};
  struct sigaction action{};
  action.sa_handler = [](int) { ++alarms; };
  sigaction(SIGALRM, &action, nullptr);
  const itimerval every{{0, 500}, {0, 500}}, never{};
  setitimer(ITIMER_REAL, &every, nullptr);
  while (alarms < 20) Barriers(pool);
  setitimer(ITIMER_REAL, &never, nullptr);
}

void Sharing() {
  const auto first = ThreadPool::Shared(On({2}, 0));
  Expect(first == ThreadPool::Shared(On({2}, 0)), "one pool for the same workers");
  const auto other = ThreadPool::Shared(On({2}, 10));
  Expect(first != other, "other workers are another pool");
  std::jthread beside([&] {
    for (int i = 0; i < 20; ++i) Barriers(*other);
  });
  for (int i = 0; i < 20; ++i) Barriers(*first);
}

// A child has no workers: it is told so, can make a pool of its own, and exits.
void Fork() {
#ifndef __SANITIZE_THREAD__  // which forbids threads in a forked child
  auto pool = ThreadPool::Shared(On({2, 1}, 50));
  Barriers(*pool);
  const pid_t child = fork();
  if (child == 0) {
    alarm(20);
    bool refused = false;
    try {
      pool->Run([](int) {});
    } catch (const Error&) {
      refused = true;
    }
    Expect(refused, "a forked pool refuses");
    const auto own = ThreadPool::Shared(On({2, 1}, 50));
    Expect(own != pool, "a pool of its own");
    Barriers(*own);
    pool.reset();
    // Not exit: the leak checker would name the parent's threads, which nobody can join here.
    _exit(0);
  }
  int status = -1;
  waitpid(child, &status, 0);
  Expect(WIFEXITED(status) && WEXITSTATUS(status) == 0, "the child exits with 0");
  Barriers(*pool);
#endif
}

// A caller that stands on a pinned worker's CPU goes elsewhere, if it may, and may return later.
void CallerStepsAside() {
  cpu_set_t before, here, after;
  sched_getaffinity(0, sizeof before, &before);
  int pinned = 0;
  while (!CPU_ISSET(pinned, &before)) ++pinned;
  PoolOptions options;
  options.nodes.push_back({0, {{}, {pinned}}});
  options.spin = std::chrono::microseconds(0);
  ThreadPool pool(options);
  CPU_ZERO(&here);
  CPU_SET(pinned, &here);
  for (const bool may_move : {true, false}) {
    const cpu_set_t& allowed = may_move ? before : here;
    sched_setaffinity(0, sizeof here, &here);
    sched_setaffinity(0, sizeof allowed, &allowed);
    int ran_on[2] = {-1, -1};
    pool.Run([&](int worker) { ran_on[worker] = sched_getcpu(); });
    const bool moves = may_move && CPU_COUNT(&before) > 1;
    Expect(ran_on[1] == pinned, "a pinned worker stays");
    Expect((ran_on[0] != pinned) == moves, "the caller leaves a worker's CPU where it may");
    sched_getaffinity(0, sizeof after, &after);
    Expect(CPU_EQUAL(&after, &allowed), "the caller may run where it might before");
  }
  sched_setaffinity(0, sizeof before, &before);
}

// Each piece runs once, whoever takes it, and has happened when Run returns.
void Pieces() {
  constexpr int kRuns = 500, kOwners = 2, kHelpers = 3;
  SharedPieces shared[kOwners];
  std::atomic<int> owners{kOwners};
  std::atomic<int> helped{0};
  ThreadPool pool(On({kOwners + kHelpers}, 50));
  pool.Run([&](int worker) {
    if (worker >= kOwners) {
      while (owners.load() > 0) {
        for (SharedPieces& other : shared) helped += other.Help();
        std::this_thread::yield();
      }
      return;
    }
    for (int run = 0; run < kRuns; ++run) {
      // Plain memory, so that the sanitizer sees who may touch it when.
      std::vector<int> calls(run % 6);
      const int value = run;
      shared[worker].Run(static_cast<int>(calls.size()), [&](int piece) {
        // Long enough for others to come.
        for (int i = 0; i < 200; ++i) _mm_pause();
        calls[piece] += 1 + value;
      });
      for (const int call : calls) Expect(call == 1 + run, "each piece of this run once");
    }
    --owners;
  });
  Expect(helped.load() > 0, "helpers took some pieces");
  Expect(!shared[0].Help(), "nothing left to take");
}

}  // namespace
}  // namespace lsg

int main() {
  for (const int spin_us : {0, 50}) {
    for (const auto& nodes : std::vector<std::vector<int>>{{1}, {4}, {1, 1}, {2, 3, 1}}) {
      lsg::ThreadPool pool(lsg::On(nodes, spin_us));
      lsg::Coverage(pool);
      lsg::Barriers(pool);
      lsg::Failures(pool);
      lsg::SeveralCallers(pool);
      lsg::Signals(pool);
    }
  }
  lsg::Pieces();
  lsg::Sharing();
  lsg::CallerStepsAside();
  lsg::Fork();
  return 0;
}
