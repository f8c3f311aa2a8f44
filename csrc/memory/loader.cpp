#include "memory/loader.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <system_error>
#include <thread>
#include <utility>

#include "base/align.h"
#include "base/error.h"
#include "memory/file_reader.h"
#include "memory/map_reader.h"
#include "memory/node_policy.h"

namespace lsg {
namespace {

// One request: long enough for a disk's best rate, short enough to share among threads and to stop
// between. A multiple of a huge page, so that no two threads share one.
constexpr uint64_t kChunkBytes = uint64_t{4} << 20;
constexpr int kDefaultThreads = 4;
constexpr auto kPollInterval = std::chrono::milliseconds(100);

// A layer and how it is read.
struct Source {
  LayerMemory* layer;
  std::unique_ptr<MapReader> map;
  std::unique_ptr<FileReader> huge;
  std::vector<const std::byte*> data;  // where each part goes
};

struct Chunk {
  const Source* source;
  uint64_t offset;
  uint64_t bytes;
  std::byte* to;
};

struct NodeLoad {
  uint64_t huge_bytes = 0;
  std::shared_ptr<Arena> arena;
  uint64_t arena_used = 0;
  std::vector<Chunk> chunks;
  std::atomic<size_t> next{0};
  uint64_t total_bytes = 0;
  std::atomic<uint64_t> done_bytes{0};
  std::atomic<int> readers{0};
};

using Job = std::function<void()>;

// 2 MiB of a mapped file with pages that are not where they belong.
struct Window {
  const Source* source;
  uint64_t offset;
  auto operator<=>(const Window&) const = default;
};

class Load {
 public:
  explicit Load(const std::vector<LayerMemory*>& layers) {
    for (LayerMemory* layer : layers) {
      const bool huge = layer->mode() == LoadMode::kHuge;
      auto source = std::make_unique<Source>(Source{layer, nullptr, nullptr, {}});
      if (huge) {
        source->huge = std::make_unique<FileReader>(layer->path());
      } else {
        source->map = std::make_unique<MapReader>(*layer);
      }
      sources_.push_back(std::move(source));
      for (const LayerPart& part : layer->parts()) {
        NodeLoad& node = nodes_[part.node];
        node.total_bytes += part.bytes;
        if (huge) node.huge_bytes += part.bytes;
      }
    }
    for (auto& [number, node] : nodes_) {
      if (node.huge_bytes > 0) {
        node.arena = std::make_shared<Arena>(node.huge_bytes, number);
      }
    }
    for (const auto& source : sources_) Plan(*source);
  }

  void Run(int threads_per_node, const LoadPoll& poll) {
    const int wanted = threads_per_node > 0 ? threads_per_node : kDefaultThreads;
    RunThreads(poll, [&](std::vector<Job>& jobs) {
      for (auto& [number, node] : nodes_) {
        node.readers = static_cast<int>(std::min<size_t>(wanted, node.chunks.size()));
        for (int i = 0; i < node.readers; ++i) {
          jobs.push_back([this, number = number, &node = node] { Read(number, node); });
        }
      }
    });
    std::sort(windows_.begin(), windows_.end());
    windows_.erase(std::unique(windows_.begin(), windows_.end()), windows_.end());
    RunThreads(poll, [&](std::vector<Job>& jobs) {
      for (size_t i = 0; i < std::min<size_t>(wanted, windows_.size()); ++i) {
        jobs.push_back([this] { Settle(); });
      }
    });
    poll(Progress());
    HandOver();
  }

 private:
  void Plan(Source& source) {
    for (const LayerPart& part : source.layer->parts()) {
      NodeLoad& node = nodes_.at(part.node);
      auto* to = const_cast<std::byte*>(part.data);
      if (source.huge != nullptr && part.bytes > 0) {
        to = node.arena->data() + node.arena_used;
        node.arena_used += part.bytes;
      }
      source.data.push_back(to);
      const uint64_t end = part.offset + part.bytes;
      for (uint64_t at = part.offset, next; at < end; at = next) {
        next = std::min(end, AlignUp(at + 1, kChunkBytes));
        node.chunks.push_back({&source, at, next - at, to + (at - part.offset)});
      }
    }
  }

  void Read(int number, NodeLoad& node) {
    binder_.Bind(number);
    for (size_t at = node.next++; at < node.chunks.size() && !stop_; at = node.next++) {
      const Chunk& chunk = node.chunks[at];
      if (chunk.source->map != nullptr) {
        BringMapped(chunk, number);
      } else {
        const bool cached = IsCached(chunk.source->layer->file_data(chunk.offset), chunk.bytes);
        chunk.source->huge->Read(chunk.offset, {chunk.to, chunk.bytes}, cached);
      }
      node.done_bytes += chunk.bytes;
    }
    if (--node.readers == 0 && !stop_ && node.arena != nullptr) node.arena->Seal();
  }

  void BringMapped(const Chunk& chunk, int node) {
    if (chunk.source->map->Bring(chunk.offset, chunk.bytes, node)) return;
    const std::lock_guard lock(mutex_);
    const uint64_t end = chunk.offset + chunk.bytes;
    for (uint64_t at = chunk.offset / kHugePageBytes * kHugePageBytes; at < end;
         at += kHugePageBytes) {
      windows_.push_back({chunk.source, at});
    }
  }

  void Settle() {
    for (size_t at = next_window_++; at < windows_.size() && !stop_; at = next_window_++) {
      windows_[at].source->map->Settle(windows_[at].offset, binder_);
    }
  }

  // Runs jobs on threads of their own while the calling thread polls. The first error of either
  // stops all.
  template <typename Fill>
  void RunThreads(const LoadPoll& poll, const Fill& fill) {
    std::vector<Job> jobs;
    fill(jobs);
    size_t running = 0;
    std::exception_ptr error;
    const auto run = [&](const Job& job) {
      std::exception_ptr mine;
      try {
        job();
      } catch (...) {
        stop_ = true;
        mine = std::current_exception();
      }
      const std::lock_guard lock(mutex_);
      if (error == nullptr) error = mine;
      --running;
      ended_.notify_one();
    };
    std::vector<std::jthread> threads;
    try {
      for (const auto& job : jobs) {
        {
          const std::lock_guard lock(mutex_);
          ++running;
        }
        threads.emplace_back(run, std::cref(job));
      }
      std::unique_lock lock(mutex_);
      while (!ended_.wait_for(lock, kPollInterval, [&] { return running == 0; })) {
        lock.unlock();
        poll(Progress());
        lock.lock();
      }
    } catch (const std::system_error& refused) {
      stop_ = true;
      throw CapacityError(std::string("cannot start threads that load experts (") + refused.what() +
                          "); see ulimit -u");
    } catch (...) {
      stop_ = true;
      throw;
    }
    if (error != nullptr) std::rethrow_exception(error);
  }

  std::vector<NodeProgress> Progress() const {
    std::vector<NodeProgress> progress;
    for (const auto& [number, node] : nodes_) {
      progress.push_back({number, node.done_bytes, node.total_bytes});
    }
    return progress;
  }

  void HandOver() {
    for (const auto& source : sources_) {
      if (source->map != nullptr) {
        source->layer->SetLoaded();
        continue;
      }
      std::vector<std::shared_ptr<const Arena>> arenas;
      for (const LayerPart& part : source->layer->parts()) {
        if (part.bytes > 0) arenas.push_back(nodes_.at(part.node).arena);
      }
      source->layer->SetLoaded(source->data, std::move(arenas));
    }
  }

  const ThreadBinder binder_;
  std::vector<std::unique_ptr<Source>> sources_;
  std::map<int, NodeLoad> nodes_;
  std::vector<Window> windows_;
  std::atomic<size_t> next_window_{0};
  std::mutex mutex_;
  std::condition_variable ended_;
  std::atomic<bool> stop_{false};
};

}  // namespace

void LoadLayers(const std::vector<LayerMemory*>& layers, int threads_per_node,
                const LoadPoll& poll) {
  Load(layers).Run(threads_per_node, poll);
}

}  // namespace lsg
