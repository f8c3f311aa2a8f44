#include <emmintrin.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "base/align.h"
#include "base/error.h"
#include "limits/limits.h"
#include "limits/team.h"

namespace lsg {
namespace {

constexpr uint64_t kHugePage = 2 << 20;
constexpr int kMaxStreams = 8;

// Reads `bytes` (a multiple of streams · 64) once. SSE2 loads keep up: the limit is outstanding
// misses, not width.
uint64_t ReadOnce(const char* data, uint64_t bytes, int streams) {
  const uint64_t part = bytes / streams;
  __m128i sum[kMaxStreams] = {};
  for (uint64_t at = 0; at < part; at += 64) {
    for (int s = 0; s < streams; ++s) {
      const auto* line = reinterpret_cast<const __m128i*>(data + s * part + at);
      sum[s] = _mm_xor_si128(
          sum[s], _mm_xor_si128(_mm_xor_si128(_mm_load_si128(line), _mm_load_si128(line + 1)),
                                _mm_xor_si128(_mm_load_si128(line + 2), _mm_load_si128(line + 3))));
      _mm_prefetch(data + s * part + at + 1024, _MM_HINT_T0);
    }
  }
  for (int s = 1; s < streams; ++s) sum[0] = _mm_xor_si128(sum[0], sum[s]);
  return static_cast<uint64_t>(_mm_cvtsi128_si64(sum[0]));
}

}  // namespace

struct ReadProbe::Buffer {
  explicit Buffer(uint64_t size) : bytes(size) {
    data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (data == MAP_FAILED) {
      throw CapacityError("cannot get " + std::to_string(bytes >> 20) +
                          " MiB to measure memory with");
    }
    madvise(data, bytes, MADV_HUGEPAGE);
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { munmap(data, bytes); }

  void* data;
  uint64_t bytes;
};

ReadProbe::ReadProbe(int threads, std::vector<int> cores, uint64_t bytes, int streams)
    : threads_(threads),
      streams_(streams),
      cores_(std::move(cores)),
      part_(AlignUp(std::max<uint64_t>(bytes / std::max(threads, 1), kHugePage), kHugePage)),
      buffer_([&] {
        if (threads < 1 || streams < 1 || streams > kMaxStreams) {
          throw Error("reading memory needs at least 1 thread and 1 to 8 streams");
        }
        return std::make_unique<Buffer>(part_ * threads);
      }()) {}

ReadProbe::~ReadProbe() = default;

double ReadProbe::Measure(double seconds) {
  const uint64_t step = std::min<uint64_t>(part_, 16 << 20) / (64 * streams_) * (64 * streams_);
  std::atomic<uint64_t> sink{0};
  const auto mine = [&](int thread) { return static_cast<char*>(buffer_->data) + thread * part_; };
  const double rate = SumOfRates(
      threads_, cores_,
      // First touch: the pages are this thread's neighbours.
      [&](int thread) {
        if (!touched_) std::memset(mine(thread), thread + 1, part_);
      },
      [&](int thread) {
        using Clock = std::chrono::steady_clock;
        const auto begin = Clock::now();
        std::chrono::duration<double> elapsed{0};
        uint64_t read = 0, seen = 0, at = 0;
        while (elapsed.count() < seconds) {
          seen ^= ReadOnce(mine(thread) + at, step, streams_);
          read += step;
          at = at + 2 * step <= part_ ? at + step : 0;
          elapsed = Clock::now() - begin;
        }
        sink ^= seen;
        return static_cast<double>(read) / elapsed.count();
      });
  touched_ = true;
  return rate;
}

}  // namespace lsg
