// Work of one worker that others, who have none left, may take pieces of.
//
// Workers run out of tasks at different times, up to a whole record apart; with 16 of them they
// waited a tenth of a layer of one token for the last.
#pragma once

#include <immintrin.h>

#include <atomic>
#include <cstdint>
#include <thread>

namespace lsg {

class alignas(64) SharedPieces {
 public:
  // Calls run(piece) once for each of `pieces`, up to 65535, here and in threads that call Help
  // meanwhile; returns when all have returned. `run` must not throw. One thread's at a time.
  template <class F>
  void Run(int pieces, const F& run) {
    run_ = [](const void* f, int piece) { (*static_cast<const F*>(f))(piece); };
    context_ = &run;
    unfinished_.store(pieces, std::memory_order_relaxed);
    const uint64_t turn = (state_.load(std::memory_order_relaxed) >> 32) + 1;
    state_.store(turn << 32 | static_cast<uint64_t>(pieces) << 16, std::memory_order_release);
    while (Help()) {
    }
    for (int pauses = 0; unfinished_.load(std::memory_order_acquire) > 0; ++pauses) {
      // Whoever has the last piece may be waiting for this very processor.
      pauses < kPauses ? _mm_pause() : std::this_thread::yield();
    }
  }

  // Runs a piece that nobody has taken; false when there is none.
  bool Help() {
    uint64_t state = state_.load(std::memory_order_acquire);
    do {
      if (Next(state) >= Pieces(state)) return false;
      // The turn is part of the number, so a piece of another Run is not taken for this one's.
    } while (!state_.compare_exchange_weak(state, state + 1, std::memory_order_acq_rel,
                                           std::memory_order_acquire));
    run_(context_, Next(state));
    unfinished_.fetch_sub(1, std::memory_order_acq_rel);
    return true;
  }

 private:
  // About twenty microseconds.
  static constexpr int kPauses = 500;
  static int Next(uint64_t state) { return static_cast<int>(state & 0xffff); }
  static int Pieces(uint64_t state) { return static_cast<int>(state >> 16 & 0xffff); }

  std::atomic<uint64_t> state_{0};  // turn, 32 bits; pieces, 16; the next one, 16
  // Written while no piece is unfinished.
  void (*run_)(const void* context, int piece) = nullptr;
  const void* context_ = nullptr;
  std::atomic<int> unfinished_{0};
};

}  // namespace lsg
