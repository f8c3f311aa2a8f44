#include "gpu/hand_over.h"

#include <immintrin.h>
#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <utility>

#include "base/error.h"
#include "gpu/kernels_ptx.h"

namespace lsg {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::microseconds;
using std::chrono::milliseconds;
using std::chrono::seconds;

// The dispatcher spins through a decode step and the scheduler's work between two of them; then it
// looks at the doorbell ever less often. Looking twice a millisecond costs well under 1 % of a
// core.
constexpr auto kSpin = milliseconds(2);
constexpr auto kDoze = milliseconds(100);
constexpr auto kDozing = microseconds(20);
constexpr auto kSleeping = microseconds(500);
// How long a failed job's GPU is kept waiting, so that nothing is served from its output while the
// process is being ended.
constexpr auto kGrace = seconds(2);

constexpr int kVectorBytes = 16;
// A vector for each thread, so that all reads over PCIe are in flight at once, in few blocks: each
// polls, and several have to wait for one another before they ring.
constexpr unsigned kWarp = 32;
constexpr unsigned kMaxThreads = 1024;
constexpr unsigned kMaxBlocks = 16;

int64_t ElementBytes(FloatDtype dtype) { return dtype == FloatDtype::kF32 ? 4 : 2; }

}  // namespace

// Each on a cache line of its own: the GPU writes one while the dispatcher reads the other.
struct HandOver::Flags {
  // The number of the job whose inputs are there, 0 when it was taken.
  alignas(64) std::atomic<uint32_t> doorbell;
  alignas(64) std::atomic<uint32_t> done;

  static_assert(std::atomic<uint32_t>::is_always_lock_free && sizeof(std::atomic<uint32_t>) == 4);
};

HandOver::Pinned::Pinned(const CudaDriver& driver_in, int64_t bytes) : driver(driver_in) {
  driver.Check(driver.mem_host_alloc(&host, static_cast<size_t>(std::max<int64_t>(bytes, 64)),
                                     kCuMemHostAllocPortable | kCuMemHostAllocDeviceMap),
               "pin memory for the experts' inputs and outputs");
  const CuResult mapped = driver.mem_host_get_device_pointer(&device, host, 0);
  // What a constructor throws out of, no destructor frees.
  if (mapped != 0) driver.mem_free_host(host);
  driver.Check(mapped, "map pinned memory");
}

HandOver::Pinned::~Pinned() { driver.mem_free_host(host); }

HandOver::Buffers::Buffers(const CudaDriver& driver, int64_t hidden_bytes_in, int64_t entries_in)
    : hidden_bytes(hidden_bytes_in),
      entries(entries_in),
      hidden(driver, hidden_bytes),
      ids(driver, entries * 4),
      weights(driver, entries * 4),
      out(driver, hidden_bytes) {}

HandOver::HandOver(Compute compute, const HandOverOptions& options)
    : compute_(std::move(compute)), options_(options), driver_(options.library) {
  flags_memory_ = std::make_unique<Pinned>(driver_, sizeof(Flags));
  flags_ = new (flags_memory_->host) Flags{};
  Reserve(options.hidden_bytes, options.entries);
  if (options_.way == Way::kHostFunc) return;
  if (options_.way == Way::kKernels) {
    CuModule module;
    driver_.Check(driver_.module_load_data(&module, kHandOverPtx), "compile lsg's kernels");
    module_ = {module, driver_.module_unload};
    driver_.Check(driver_.module_get_function(&send_, module, kSendKernel), "find lsg_send");
    driver_.Check(driver_.module_get_function(&receive_, module, kReceiveKernel),
                  "find lsg_receive");
  }
  dispatcher_ = std::jthread([this](const std::stop_token& stop) { Dispatch(stop); });
  if (options_.core >= 0) {
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(options_.core, &set);
    if (pthread_setaffinity_np(dispatcher_.native_handle(), sizeof set, &set) != 0) {
      throw CapacityError("the dispatcher cannot be pinned to core " +
                          std::to_string(options_.core) +
                          ": it does not exist or this process may not use it");
    }
  }
}

HandOver::~HandOver() { Close(); }

void HandOver::Stop() {
  {
    const std::lock_guard lock(failure_mutex_);
    stopped_ = true;
  }
  failure_changed_.notify_all();
}

void HandOver::Close() {
  Stop();
  dispatcher_ = {};
}

void HandOver::Reserve(int64_t hidden_bytes, int64_t entries) {
  if (!buffers_.empty()) {
    const Buffers& now = *buffers_.back();
    if (hidden_bytes <= now.hidden_bytes && entries <= now.entries) return;
    // The old ones stay, for graphs that refer to them: twice as large at least, they are few.
    hidden_bytes = std::max(hidden_bytes, 2 * now.hidden_bytes);
    entries = std::max(entries, 2 * now.entries);
  }
  buffers_.push_back(std::make_unique<Buffers>(driver_, hidden_bytes, entries));
}

std::pair<uint32_t, const HandOver::Job*> HandOver::Remember(const Job& job) {
  const std::lock_guard lock(jobs_mutex_);
  auto found = std::find(jobs_.begin(), jobs_.end(), job);
  if (found == jobs_.end()) found = jobs_.insert(jobs_.end(), job);
  return {static_cast<uint32_t>(found - jobs_.begin()) + 1, &*found};
}

void HandOver::Submit(CuStream stream, int layer, const GpuBatch& batch) {
  const Buffers& buffers = *buffers_.back();
  const int64_t row = batch.hidden_size * ElementBytes(batch.dtype);
  const int64_t entries = int64_t{batch.tokens} * batch.top_k;
  if (batch.tokens * row > buffers.hidden_bytes || entries > buffers.entries) {
    throw Error("a batch of " + std::to_string(batch.tokens) +
                " tokens is to be captured, but no batch as large was computed before, and "
                "memory cannot be pinned during a capture; capture smaller batches "
                "(--cuda-graph-bs-decode)");
  }
  const auto [number, job] =
      Remember({this, &buffers, layer, batch.tokens, batch.top_k, batch.hidden_size, batch.dtype});
  const bool vectors =
      row % kVectorBytes == 0 && batch.hidden % kVectorBytes == 0 && batch.out % kVectorBytes == 0;
  if (options_.way == Way::kKernels && vectors) {
    SubmitKernels(stream, batch, *job, number);
  } else {
    SubmitCopies(stream, batch, *job, number);
  }
}

void HandOver::SubmitCopies(CuStream stream, const GpuBatch& batch, const Job& job,
                            uint32_t number) {
  const Buffers& b = *job.buffers;
  const size_t hidden_bytes = batch.hidden_size * ElementBytes(batch.dtype) * batch.tokens;
  const size_t entry_bytes = sizeof(float) * batch.tokens * batch.top_k;
  driver_.Check(driver_.memcpy_dtoh_async(b.hidden.host, batch.hidden, hidden_bytes, stream),
                "enqueue the copy of hidden states");
  driver_.Check(driver_.memcpy_dtoh_async(b.ids.host, batch.topk_ids, entry_bytes, stream),
                "enqueue the copy of expert ids");
  driver_.Check(driver_.memcpy_dtoh_async(b.weights.host, batch.topk_weights, entry_bytes, stream),
                "enqueue the copy of routing weights");
  if (options_.way == Way::kHostFunc) {
    const auto run = [](void* payload) {
      const Job& mine = *static_cast<const Job*>(payload);
      mine.owner->Run(mine);
    };
    driver_.Check(driver_.launch_host_func(stream, run, const_cast<Job*>(&job)),
                  "enqueue a host function");
  } else {
    const CuDevicePtr doorbell = flags_memory_->device + offsetof(Flags, doorbell);
    const CuDevicePtr done = flags_memory_->device + offsetof(Flags, done);
    CuMemOp ring[] = {{CuMemOp::kWrite32, done, 0, CuMemOp::kWriteDefault, 0, 0},
                      {CuMemOp::kWrite32, doorbell, number, CuMemOp::kWriteDefault, 0, 0}};
    CuMemOp wait[] = {{CuMemOp::kWait32, done, 1, CuMemOp::kWaitEqual, 0, 0}};
    driver_.Check(driver_.stream_batch_mem_op(stream, 2, ring, 0), "enqueue the doorbell");
    driver_.Check(driver_.stream_batch_mem_op(stream, 1, wait, 0), "enqueue the wait for the CPU");
  }
  driver_.Check(driver_.memcpy_htod_async(batch.out, b.out.host, hidden_bytes, stream),
                "enqueue the copy of the experts' output");
}

void HandOver::SubmitKernels(CuStream stream, const GpuBatch& batch, const Job& job,
                             uint32_t number) {
  const Buffers& b = *job.buffers;
  const int64_t bytes = batch.hidden_size * ElementBytes(batch.dtype) * batch.tokens;
  uint32_t vectors = static_cast<uint32_t>(bytes / kVectorBytes);
  uint32_t entries = static_cast<uint32_t>(batch.tokens * batch.top_k);
  CuDevicePtr hidden_from = batch.hidden, hidden_to = b.hidden.device;
  CuDevicePtr ids_from = batch.topk_ids, ids_to = b.ids.device;
  CuDevicePtr weights_from = batch.topk_weights, weights_to = b.weights.device;
  CuDevicePtr out_from = b.out.device, out_to = batch.out;
  CuDevicePtr doorbell = flags_memory_->device + offsetof(Flags, doorbell);
  CuDevicePtr done = flags_memory_->device + offsetof(Flags, done);
  void* send[] = {&hidden_from, &hidden_to, &vectors, &ids_from, &ids_to, &weights_from,
                  &weights_to,  &entries,   &done,    &doorbell, &number};
  void* receive[] = {&out_from, &out_to, &vectors, &done};
  const unsigned threads = std::clamp((vectors + kWarp - 1) / kWarp * kWarp, kWarp, kMaxThreads);
  const unsigned blocks = std::clamp((vectors + threads - 1) / threads, 1u, kMaxBlocks);
  driver_.Check(driver_.launch_kernel(send_, blocks, 1, 1, threads, 1, 1, 0, stream, send, nullptr),
                "enqueue lsg_send");
  driver_.Check(
      driver_.launch_kernel(receive_, blocks, 1, 1, threads, 1, 1, 0, stream, receive, nullptr),
      "enqueue lsg_receive");
}

void HandOver::Run(const Job& job) {
  const Buffers& b = *job.buffers;
  try {
    compute_(job.layer, Batch{b.hidden.host, static_cast<const int32_t*>(b.ids.host),
                              static_cast<const float*>(b.weights.host), b.out.host, job.tokens,
                              job.top_k, job.dtype});
  } catch (const std::exception& error) {
    Fail(job, error.what());
  }
}

void HandOver::Fail(const Job& job, const std::string& what) {
  // All ones are a NaN in each of the dtypes.
  std::memset(job.buffers->out.host, 0xff, job.hidden_size * ElementBytes(job.dtype) * job.tokens);
  std::unique_lock lock(failure_mutex_);
  if (!failure_) failure_ = what;
  failure_changed_.notify_all();
  failure_changed_.wait_for(lock, kGrace, [this] { return stopped_; });
}

std::optional<std::string> HandOver::WaitForFailure() {
  std::unique_lock lock(failure_mutex_);
  failure_changed_.wait(lock, [this] { return failure_.has_value() || stopped_; });
  return failure_;
}

void HandOver::Dispatch(const std::stop_token& stop) {
  Clock::time_point last = Clock::now();
  while (!stop.stop_requested()) {
    const uint32_t number = flags_->doorbell.load(std::memory_order_acquire);
    if (number == 0) {
      for (int i = 0; i < 32 && flags_->doorbell.load(std::memory_order_relaxed) == 0; ++i) {
        _mm_pause();
      }
      const auto idle = Clock::now() - last;
      if (idle > kSpin) std::this_thread::sleep_for(idle < kDoze ? kDozing : kSleeping);
      continue;
    }
    // The GPU rings again only after it has seen `done`.
    flags_->doorbell.store(0, std::memory_order_relaxed);
    const Job* job;
    {
      const std::lock_guard lock(jobs_mutex_);
      job = &jobs_[number - 1];
    }
    Run(*job);
    flags_->done.store(1, std::memory_order_release);
    last = Clock::now();
  }
}

}  // namespace lsg
