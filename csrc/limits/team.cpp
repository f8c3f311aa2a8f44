#include "limits/team.h"

#include <atomic>
#include <latch>
#include <string>
#include <system_error>
#include <thread>

#include "base/error.h"
#include "cpu/pin.h"

namespace lsg {
namespace {

enum Signal { kWait, kPrepare, kAbandon };

}  // namespace

double SumOfRates(int threads, const std::vector<int>& cores,
                  const std::function<void(int)>& prepare, const std::function<double(int)>& job) {
  if (threads < 1) throw Error("measuring takes at least 1 thread, got " + std::to_string(threads));
  std::vector<double> rates(threads);
  std::atomic<Signal> signal{kWait};
  std::latch prepared(threads);
  {
    std::vector<std::jthread> team;
    const auto tell = [&](Signal what) {
      signal = what;
      signal.notify_all();
    };
    try {
      for (int thread = 0; thread < threads; ++thread) {
        team.emplace_back([&, thread] {
          signal.wait(kWait);
          if (signal == kAbandon) return;
          prepare(thread);
          prepared.arrive_and_wait();
          rates[thread] = job(thread);
        });
        if (!cores.empty()) {
          PinThread(team.back().native_handle(), {cores[thread % cores.size()]});
        }
      }
    } catch (const std::system_error& error) {
      tell(kAbandon);
      throw CapacityError("cannot start " + std::to_string(threads) + " threads (" + error.what() +
                          ")");
    } catch (...) {
      tell(kAbandon);
      throw;
    }
    tell(kPrepare);
  }
  double sum = 0;
  for (double rate : rates) sum += rate;
  return sum;
}

}  // namespace lsg
