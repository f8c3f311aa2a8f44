// A stand-in for libcuda.so.1 that runs streams on threads and host memory, with what tests need
// on top: streams to make, graphs to capture and replay.
//
// Invariant: operations of a stream run in order, each when the one before it has ended, and a wait
// blocks its stream only. Written from the documented behaviour of the calls, not from lsg's use.
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

namespace {

using Operation = std::function<void()>;
using Graph = std::vector<Operation>;

enum Result { kSuccess = 0, kInvalidValue = 1, kNotFound = 500 };

struct Stream {
  std::mutex mutex;
  std::condition_variable changed;
  std::deque<Operation> queue;
  bool busy = false, stopping = false;
  Graph* capturing = nullptr;
  std::thread worker{[this] { Run(); }};

  void Run() {
    std::unique_lock lock(mutex);
    while (true) {
      changed.wait(lock, [this] { return stopping || !queue.empty(); });
      if (queue.empty()) return;
      const Operation operation = std::move(queue.front());
      queue.pop_front();
      busy = true;
      lock.unlock();
      operation();
      lock.lock();
      busy = false;
      changed.notify_all();
    }
  }

  int Add(Operation operation) {
    if (capturing != nullptr) {
      capturing->push_back(std::move(operation));
      return kSuccess;
    }
    const std::lock_guard lock(mutex);
    queue.push_back(std::move(operation));
    changed.notify_all();
    return kSuccess;
  }

  bool Wait(int milliseconds) {
    std::unique_lock lock(mutex);
    return changed.wait_for(lock, std::chrono::milliseconds(milliseconds),
                            [this] { return queue.empty() && !busy; });
  }
};

struct MemOp {
  int operation;
  unsigned long long address;
  uint64_t value;
  unsigned flags;
  unsigned long long alias;
  uint64_t pad;
};

Stream* Of(void* stream) { return static_cast<Stream*>(stream); }

template <typename T>
T* At(unsigned long long address) {
  return reinterpret_cast<T*>(address);
}

uint32_t Load(unsigned long long address) {
  return __atomic_load_n(At<uint32_t>(address), __ATOMIC_ACQUIRE);
}

void Store(unsigned long long address, uint32_t value) {
  __atomic_store_n(At<uint32_t>(address), value, __ATOMIC_RELEASE);
}

void WaitEqual(unsigned long long address, uint32_t value) {
  while (Load(address) != value) std::this_thread::yield();
}

template <typename T>
T Argument(void** arguments, int index) {
  return *static_cast<T*>(arguments[index]);
}

using Address = unsigned long long;

void Send(Address hidden_from, Address hidden_to, uint32_t vectors, Address ids_from,
          Address ids_to, Address weights_from, Address weights_to, uint32_t entries, Address done,
          Address doorbell, uint32_t job) {
  std::memcpy(At<void>(hidden_to), At<void>(hidden_from), size_t{vectors} * 16);
  std::memcpy(At<void>(ids_to), At<void>(ids_from), size_t{entries} * 4);
  std::memcpy(At<void>(weights_to), At<void>(weights_from), size_t{entries} * 4);
  Store(done, 0);
  Store(doorbell, job);
}

std::atomic<int> pinned{0}, fail_next{0};
char kSend, kReceive, kModule;

}  // namespace

extern "C" {

int cuGetErrorString(int, const char** text) {
  *text = "made to fail";
  return kSuccess;
}

int cuMemHostAlloc(void** memory, size_t bytes, unsigned) {
  if (fail_next.exchange(0) != 0) return 2;
  *memory = std::aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
  ++pinned;
  return kSuccess;
}

int cuMemFreeHost(void* memory) {
  std::free(memory);
  --pinned;
  return kSuccess;
}

int cuMemHostGetDevicePointer_v2(unsigned long long* device, void* memory, unsigned) {
  *device = reinterpret_cast<unsigned long long>(memory);
  return kSuccess;
}

int cuMemcpyDtoHAsync_v2(void* to, unsigned long long from, size_t bytes, void* stream) {
  return Of(stream)->Add([=] { std::memcpy(to, At<void>(from), bytes); });
}

int cuMemcpyHtoDAsync_v2(unsigned long long to, const void* from, size_t bytes, void* stream) {
  return Of(stream)->Add([=] { std::memcpy(At<void>(to), from, bytes); });
}

int cuLaunchHostFunc(void* stream, void (*function)(void*), void* payload) {
  return Of(stream)->Add([=] { function(payload); });
}

int cuStreamBatchMemOp_v2(void* stream, unsigned count, MemOp* operations, unsigned flags) {
  if (flags != 0) return kInvalidValue;
  for (unsigned i = 0; i < count; ++i) {
    const MemOp& op = operations[i];
    const uint32_t value = static_cast<uint32_t>(op.value);
    const unsigned long long address = op.address;
    if (op.operation == 1 && op.flags == 1) {
      Of(stream)->Add([=] { WaitEqual(address, value); });
    } else if (op.operation == 2 && op.flags == 0) {
      Of(stream)->Add([=] { Store(address, value); });
    } else {
      return kInvalidValue;
    }
  }
  return kSuccess;
}

int cuModuleLoadData(void** module, const void*) {
  *module = &kModule;
  return kSuccess;
}

int cuModuleUnload(void*) { return kSuccess; }

int cuModuleGetFunction(void** function, void*, const char* name) {
  if (std::string(name) == "lsg_send") {
    *function = &kSend;
  } else if (std::string(name) == "lsg_receive") {
    *function = &kReceive;
  } else {
    return kNotFound;
  }
  return kSuccess;
}

int cuLaunchKernel(void* function, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned,
                   unsigned, void* stream, void** arguments, void**) {
  const auto address = [&](int index) { return Argument<Address>(arguments, index); };
  const auto word = [&](int index) { return Argument<uint32_t>(arguments, index); };
  if (function == &kSend) {
    return Of(stream)->Add([hf = address(0), ht = address(1), v = word(2), jf = address(3),
                            jt = address(4), wf = address(5), wt = address(6), e = word(7),
                            done = address(8), bell = address(9), job = word(10)] {
      Send(hf, ht, v, jf, jt, wf, wt, e, done, bell, job);
    });
  }
  return Of(stream)->Add([from = address(0), to = address(1), v = word(2), done = address(3)] {
    WaitEqual(done, 1);
    std::memcpy(At<void>(to), At<void>(from), size_t{v} * 16);
  });
}

// What tests use.

void* FakeStream() { return new Stream; }

void FakeStreamEnd(void* stream) {
  {
    const std::lock_guard lock(Of(stream)->mutex);
    Of(stream)->stopping = true;
    Of(stream)->changed.notify_all();
  }
  Of(stream)->worker.join();
  delete Of(stream);
}

// Whether the stream was idle within this time.
int FakeWait(void* stream, int milliseconds) { return Of(stream)->Wait(milliseconds) ? 1 : 0; }

void FakeBeginCapture(void* stream) { Of(stream)->capturing = new Graph; }

void* FakeEndCapture(void* stream) {
  Graph* graph = Of(stream)->capturing;
  Of(stream)->capturing = nullptr;
  return graph;
}

int FakeGraphSize(void* graph) { return static_cast<int>(static_cast<Graph*>(graph)->size()); }

void FakeReplay(void* graph, void* stream) {
  for (const Operation& operation : *static_cast<Graph*>(graph)) Of(stream)->Add(operation);
}

void FakeDrop(void* graph) { delete static_cast<Graph*>(graph); }

int FakePinned() { return pinned; }

void FakeFailNextAllocation() { fail_next = 1; }
}
