// A ring of what the engine computed and when, in a file that another process may map and read.
//
// Invariant: `count` is raised after its event is written, so the last min(count, capacity) events
// are whole but for the one that is being overwritten.
#pragma once

#include <cstdint>
#include <string>

namespace lsg {

// The file: a TraceHeader, then `capacity` TraceEvents, event n at n % capacity. Little-endian.
struct TraceHeader {
  char magic[8];  // "lsgtrace"
  uint64_t capacity;
  uint64_t count;
  uint64_t reserved[5];
};

struct TraceEvent {
  uint64_t begin_ns, end_ns;  // since 1970, CLOCK_REALTIME
  int32_t layer, tokens;
};

class Trace {
 public:
  // Makes the file, or empties it. Throws CapacityError when that fails.
  explicit Trace(const std::string& path);
  Trace(const Trace&) = delete;
  Trace& operator=(const Trace&) = delete;
  ~Trace();

  static uint64_t Now();
  // One writer at a time.
  void Record(const TraceEvent& event);

 private:
  TraceHeader* header_;
  TraceEvent* events_;
};

}  // namespace lsg
