#include "cpu/read_bandwidth.h"

#include <emmintrin.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <barrier>
#include <chrono>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "base/align.h"
#include "base/error.h"

namespace lsg {
namespace {

constexpr uint64_t kHugePage = 2 << 20;
constexpr int kMaxStreams = 8;

struct Buffer {
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

double ReadBandwidth(int threads, uint64_t bytes, int streams, double seconds) {
  if (threads < 1 || streams < 1 || streams > kMaxStreams) {
    throw Error("read_bandwidth needs at least 1 thread and 1 to 8 streams");
  }
  const uint64_t part = AlignUp(std::max<uint64_t>(bytes / threads, kHugePage), kHugePage);
  const Buffer buffer(part * threads);
  std::atomic<uint64_t> total{0}, sink{0};
  std::barrier start(threads + 1), end(threads + 1);
  std::vector<std::jthread> readers;
  for (int t = 0; t < threads; ++t) {
    readers.emplace_back([&, t] {
      char* mine = static_cast<char*>(buffer.data) + t * part;
      std::memset(mine, t + 1, part);  // first touch: the pages are this thread's neighbours
      start.arrive_and_wait();
      const auto deadline =
          std::chrono::steady_clock::now() + std::chrono::duration<double>(seconds);
      uint64_t read = 0, seen = 0;
      const uint64_t step = std::min<uint64_t>(part, 16 << 20) / (64 * streams) * (64 * streams);
      while (std::chrono::steady_clock::now() < deadline) {
        for (uint64_t at = 0; at + step <= part; at += step) {
          seen ^= ReadOnce(mine + at, step, streams);
          read += step;
        }
      }
      sink ^= seen;
      total += read;
      end.arrive_and_wait();
    });
  }
  start.arrive_and_wait();
  const auto begin = std::chrono::steady_clock::now();
  end.arrive_and_wait();
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin;
  return static_cast<double>(total) / took.count();
}

}  // namespace lsg
