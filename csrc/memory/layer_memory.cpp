#include "memory/layer_memory.h"

#include <sys/mman.h>

#include <utility>

#include "base/error.h"

namespace lsg {
namespace {

void CheckRanges(const std::vector<NodeUnits>& units, int units_in_file, const std::string& path) {
  int end = units.empty() ? -1 : units.front().begin;
  bool right = end >= 0;
  for (const NodeUnits& range : units) {
    right = right && range.begin == end && range.end >= range.begin;
    end = range.end;
  }
  if (right && end <= units_in_file) return;
  throw Error(path + ": units " + (units.empty() ? "none" : std::to_string(units.front().begin)) +
              " to " + std::to_string(end) + " asked for, but it has " +
              std::to_string(units_in_file) + ", in ranges that follow each other");
}

}  // namespace

LayerMemory::LayerMemory(const std::string& path, LoadMode mode, std::vector<NodeUnits> units)
    : path_(path),
      mode_(mode),
      units_(std::move(units)),
      file_(std::make_unique<LayerFile>(path)),
      spec_(file_->spec()) {
  if (!units_.empty() && units_.back().end < 0) {
    units_.back().end = static_cast<int>(spec_.num_units());
  }
  CheckRanges(units_, static_cast<int>(spec_.num_units()), path_);
  for (const NodeUnits& range : units_) {
    parts_.push_back({range.node, spec_.record_offset(range.begin, 0),
                      (range.end - range.begin) * spec_.unit_bytes()});
  }
  parts_.push_back({units_.back().node, spec_.table_offset(), spec_.table_bytes()});
  if (mode_ == LoadMode::kMap) {
    // Page faults then read 2 MiB at a time, into one page where the file system can.
    madvise(const_cast<std::byte*>(file_->data()), spec_.file_bytes(), MADV_HUGEPAGE);
    for (LayerPart& part : parts_) part.data = file_->data() + part.offset;
  }
}

uint64_t LayerMemory::Lock() {
  uint64_t locked = 0;
  for (const LayerPart& part : parts_) {
    // The pages are there, so none has to be brought in.
    if (mlock2(part.data, part.bytes, MLOCK_ONFAULT) == 0) locked += part.bytes;
  }
  return locked;
}

void LayerMemory::SetLoaded() {
  unit_data_.clear();
  for (size_t i = 0; i < units_.size(); ++i) {
    for (int unit = units_[i].begin; unit < units_[i].end; ++unit) {
      unit_data_.push_back(parts_[i].data + (unit - units_[i].begin) * spec_.unit_bytes());
    }
  }
  loaded_ = true;
}

void LayerMemory::SetLoaded(const std::vector<const std::byte*>& data,
                            std::vector<std::shared_ptr<const Arena>> arenas) {
  for (size_t i = 0; i < parts_.size(); ++i) parts_[i].data = data[i];
  arenas_ = std::move(arenas);
  file_.reset();
  SetLoaded();
}

}  // namespace lsg
