#include "memory/loader.h"

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <exception>
#include <map>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>

#include "base/error.h"
#include "memory/file_reader.h"
#include "memory/node_policy.h"

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22  // Linux 5.14
#endif

namespace lsg {
namespace {

// One request: long enough for a disk's best rate, short enough to share among threads and to stop
// between.
constexpr uint64_t kChunkBytes = uint64_t{4} << 20;
constexpr int kDefaultThreads = 4;
constexpr auto kPollInterval = std::chrono::milliseconds(100);

struct Chunk {
  const LayerMemory* layer;
  const FileReader* file;  // null: map
  uint64_t offset;
  uint64_t bytes;
  std::byte* data;
};

struct NodeLoad {
  int node = kAnyNode;
  uint64_t huge_bytes = 0;
  std::shared_ptr<Arena> arena;
  uint64_t arena_used = 0;
  std::vector<Chunk> chunks;
  uint64_t total_bytes = 0;
  std::atomic<size_t> next{0};
  std::atomic<uint64_t> done_bytes{0};
  std::atomic<int> readers{0};
};

void Populate(const Chunk& chunk) {
  if (madvise(chunk.data, chunk.bytes, MADV_POPULATE_READ) == 0) return;
  if (errno == EFAULT) {
    throw FormatError(chunk.layer->path() +
                      ": became shorter while it was loaded, or cannot be read; copy or convert it "
                      "again");
  }
  if (errno == ENOMEM) {
    throw CapacityError(chunk.layer->path() + ": its pages cannot be brought into memory (" +
                        std::strerror(errno) + ")");
  }
  // An older kernel: a read of each page does the same, one fault at a time.
  for (uint64_t at = 0; at < chunk.bytes; at += kPageBytes) {
    static_cast<void>(*reinterpret_cast<const volatile std::byte*>(chunk.data + at));
  }
}

// Whether all of the chunk is in the page cache: a copy then beats the disk. The kernel says so to
// the file's owner only, and yes to others; they read through the page cache.
bool IsCached(const std::byte* mapped, uint64_t bytes) {
  std::vector<unsigned char> resident(bytes / kPageBytes);
  if (mincore(const_cast<std::byte*>(mapped), bytes, resident.data()) != 0) return false;
  return std::all_of(resident.begin(), resident.end(), [](unsigned char page) { return page & 1; });
}

void Bring(const Chunk& chunk) {
  if (chunk.file == nullptr) {
    Populate(chunk);
    return;
  }
  const bool cached = IsCached(chunk.layer->file_data(chunk.offset), chunk.bytes);
  chunk.file->Read(chunk.offset, {chunk.data, chunk.bytes}, cached);
}

class Load {
 public:
  explicit Load(const std::vector<LayerMemory*>& layers) : layers_(layers) {
    for (const LayerMemory* layer : layers_) {
      for (const LayerPart& part : layer->parts()) {
        NodeLoad& node = nodes_[part.node];
        node.node = part.node;
        node.total_bytes += part.bytes;
        if (layer->mode() == LoadMode::kHuge) node.huge_bytes += part.bytes;
      }
    }
    for (auto& [number, node] : nodes_) {
      if (node.huge_bytes > 0) {
        node.arena = std::make_shared<Arena>(node.huge_bytes, std::vector<int>{number});
      }
    }
    for (const LayerMemory* layer : layers_) Plan(*layer);
  }

  void Run(int threads_per_node, const LoadPoll& poll) {
    {
      std::vector<std::jthread> readers;
      // Also when a thread cannot be started: those that run stop before they are joined.
      try {
        for (auto& [number, node] : nodes_) {
          const int wanted = threads_per_node > 0 ? threads_per_node : kDefaultThreads;
          const int threads = static_cast<int>(std::min<size_t>(wanted, node.chunks.size()));
          node.readers += threads;
          running_ += threads;
          for (int i = 0; i < threads; ++i) readers.emplace_back([this, &node] { Read(node); });
        }
        for (std::unique_lock lock(mutex_);
             !ended_.wait_for(lock, kPollInterval, [&] { return running_ == 0; });) {
          lock.unlock();
          poll(Progress());
          lock.lock();
        }
      } catch (...) {
        stop_ = true;
        throw;
      }
    }
    if (error_) std::rethrow_exception(error_);
    poll(Progress());
    HandOver();
  }

 private:
  void Plan(const LayerMemory& layer) {
    const FileReader* file = nullptr;
    if (layer.mode() == LoadMode::kHuge) {
      files_.push_back(std::make_unique<FileReader>(layer.path()));
      file = files_.back().get();
    }
    std::vector<const std::byte*>& data = data_.emplace_back();
    for (const LayerPart& part : layer.parts()) {
      NodeLoad& node = nodes_.at(part.node);
      auto* to = const_cast<std::byte*>(part.data);
      if (file != nullptr && part.bytes > 0) {
        to = node.arena->data() + node.arena_used;
        node.arena_used += part.bytes;
      }
      data.push_back(to);
      for (uint64_t at = 0; at < part.bytes; at += kChunkBytes) {
        node.chunks.push_back(
            {&layer, file, part.offset + at, std::min(kChunkBytes, part.bytes - at), to + at});
      }
    }
  }

  void Read(NodeLoad& node) {
    try {
      BindThread(node.node);
      for (size_t at = node.next++; at < node.chunks.size() && !stop_; at = node.next++) {
        Bring(node.chunks[at]);
        node.done_bytes += node.chunks[at].bytes;
      }
      if (--node.readers == 0 && !stop_ && node.arena != nullptr) node.arena->Seal();
    } catch (...) {
      const std::lock_guard lock(mutex_);
      if (!error_) error_ = std::current_exception();
      stop_ = true;
    }
    const std::lock_guard lock(mutex_);
    --running_;
    ended_.notify_one();
  }

  std::vector<NodeProgress> Progress() const {
    std::vector<NodeProgress> progress;
    for (const auto& [number, node] : nodes_) {
      progress.push_back({number, node.done_bytes, node.total_bytes});
    }
    return progress;
  }

  void HandOver() {
    for (size_t i = 0; i < layers_.size(); ++i) {
      if (layers_[i]->mode() == LoadMode::kMap) {
        layers_[i]->SetLoaded();
        continue;
      }
      std::vector<std::shared_ptr<const Arena>> arenas;
      for (const LayerPart& part : layers_[i]->parts()) {
        if (part.bytes > 0) arenas.push_back(nodes_.at(part.node).arena);
      }
      layers_[i]->SetLoaded(data_[i], std::move(arenas));
    }
  }

  std::vector<LayerMemory*> layers_;
  std::map<int, NodeLoad> nodes_;
  std::vector<std::unique_ptr<FileReader>> files_;
  std::vector<std::vector<const std::byte*>> data_;  // of each layer's parts
  std::mutex mutex_;
  std::condition_variable ended_;
  int running_ = 0;
  std::exception_ptr error_;
  std::atomic<bool> stop_{false};
};

}  // namespace

void LoadLayers(const std::vector<LayerMemory*>& layers, int threads_per_node,
                const LoadPoll& poll) {
  Load(layers).Run(threads_per_node, poll);
}

}  // namespace lsg
