#include "engine/trace.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstring>
#include <ctime>

#include "base/error.h"

namespace lsg {
namespace {

// About a minute of decode at 16 000 layers a second; 25 MB, of which only what is used takes room.
constexpr uint64_t kCapacity = uint64_t{1} << 20;
constexpr size_t kBytes = sizeof(TraceHeader) + kCapacity * sizeof(TraceEvent);

}  // namespace

Trace::Trace(const std::string& path) {
  const int file = open(path.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  void* memory = MAP_FAILED;
  if (file >= 0 && ftruncate(file, kBytes) == 0) {
    memory = mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  }
  const int error = errno;
  if (file >= 0) close(file);
  if (memory == MAP_FAILED) {
    throw CapacityError(path + ": cannot be written as a trace (" + std::strerror(error) + ")");
  }
  header_ = static_cast<TraceHeader*>(memory);
  events_ = reinterpret_cast<TraceEvent*>(header_ + 1);
  std::memcpy(header_->magic, "lsgtrace", sizeof header_->magic);
  header_->capacity = kCapacity;
}

Trace::~Trace() { munmap(header_, kBytes); }

uint64_t Trace::Now() {
  timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  return uint64_t(now.tv_sec) * 1'000'000'000 + uint64_t(now.tv_nsec);
}

void Trace::Record(const TraceEvent& event) {
  const uint64_t count = header_->count;
  events_[count % kCapacity] = event;
  std::atomic_ref(header_->count).store(count + 1, std::memory_order_release);
}

}  // namespace lsg
