// Routed experts of a GPU's batch, computed on the CPU in stream order: Submit puts the inputs'
// way to the host, the wait for the CPU and the output's way back onto a CUDA stream, which may be
// capturing a graph.
//
// Invariant: what a captured Submit refers to (pinned buffers, flags, the job's description) lives
// as long as the HandOver and never moves, so graphs may be captured, dropped and captured again.
// All Submits of one HandOver share the buffers: the caller's streams run them one after the other.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "engine/batch.h"
#include "gpu/cuda_driver.h"

namespace lsg {

// kHostFunc: copies, and a host-function node that computes. kMemOps: copies, and stream memory
// operations that ring for the dispatcher thread and wait for it. kKernels: two small kernels that
// copy, ring and wait.
enum class Way { kHostFunc, kMemOps, kKernels };

struct HandOverOptions {
  Way way = Way::kKernels;
  int64_t hidden_bytes = 0;  // pinned for hidden, and as many for out
  int64_t entries = 0;       // tokens · top_k, pinned for ids and for weights
  int core = -1;             // where the dispatcher runs, -1: anywhere
  std::string library = "libcuda.so.1";
};

// One call's tensors on the GPU, contiguous; hidden_size counts elements of a row.
struct GpuBatch {
  CuDevicePtr hidden, topk_ids, topk_weights, out;
  int tokens, top_k, hidden_size;
  FloatDtype dtype;
};

class HandOver {
 public:
  using Compute = std::function<void(int layer, const Batch&)>;

  // Needs a current CUDA context. Throws CompatError without a driver, Error when it fails.
  HandOver(Compute compute, const HandOverOptions& options);
  // Closes.
  ~HandOver();

  // Makes the pinned buffers at least this large; those of earlier Submits stay as they are. Not
  // while a stream is capturing.
  void Reserve(int64_t hidden_bytes, int64_t entries);

  // Enqueues out = the layer's experts(hidden). Throws Error when the buffers are too small.
  void Submit(CuStream stream, int layer, const GpuBatch& batch);

  // Waits until a computation has failed and says how; nothing when Stop came first.
  std::optional<std::string> WaitForFailure();
  // Lets WaitForFailure return, and answers the GPU of a failed computation at once.
  void Stop();
  // Stops, and ends the dispatcher: all that was submitted has run, and no graph is replayed any
  // more.
  void Close();

  Way way() const { return options_.way; }

 private:
  // Pinned memory, at one address for the host and one for the GPU.
  struct Pinned {
    Pinned(const CudaDriver& driver, int64_t bytes);
    ~Pinned();
    const CudaDriver& driver;
    void* host = nullptr;
    CuDevicePtr device = 0;
  };
  struct Buffers {
    Buffers(const CudaDriver& driver, int64_t hidden_bytes, int64_t entries);
    int64_t hidden_bytes, entries;
    Pinned hidden, ids, weights, out;
  };
  struct Job {
    HandOver* owner;
    const Buffers* buffers;
    int layer, tokens, top_k, hidden_size;
    FloatDtype dtype;
    bool operator==(const Job&) const = default;
  };
  struct Flags;

  // The number of this job, counted from 1, and its description.
  std::pair<uint32_t, const Job*> Remember(const Job& job);
  void SubmitCopies(CuStream stream, const GpuBatch& batch, const Job& job, uint32_t number);
  void SubmitKernels(CuStream stream, const GpuBatch& batch, const Job& job, uint32_t number);
  void Run(const Job& job);
  void Fail(const Job& job, const std::string& what);
  void Dispatch(const std::stop_token& stop);

  const Compute compute_;
  const HandOverOptions options_;
  const CudaDriver driver_;
  std::unique_ptr<void, CuResult (*)(CuModule)> module_{nullptr, nullptr};
  CuFunction send_ = nullptr, receive_ = nullptr;
  std::unique_ptr<Pinned> flags_memory_;
  Flags* flags_ = nullptr;

  std::mutex jobs_mutex_;
  std::deque<Job> jobs_;
  std::vector<std::unique_ptr<Buffers>> buffers_;  // the last is the one in use

  std::mutex failure_mutex_;
  std::condition_variable failure_changed_;
  std::optional<std::string> failure_;
  bool stopped_ = false;
  std::jthread dispatcher_;
};

}  // namespace lsg
