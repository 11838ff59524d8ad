// Packed weights of forward, kept from call to call while the weights hold what they held: inference packs them once.
#pragma once

#include <algorithm>
#include <cstring>
#include <list>
#include <memory>
#include <mutex>
#include <new>
#include <type_traits>
#include <utility>

#include "problem.h"

namespace rmadapter {

class PackedWeights {
 public:
  explicit PackedWeights(size_t bytes)
      : data_(static_cast<char*>(::operator new(bytes, std::align_val_t(64)))), bytes_(bytes) {}
  ~PackedWeights() { ::operator delete(data_, std::align_val_t(64)); }
  PackedWeights(const PackedWeights&) = delete;
  PackedWeights& operator=(const PackedWeights&) = delete;

  char* data() const { return data_; }
  size_t bytes() const { return bytes_; }

 private:
  char* data_;
  size_t bytes_;
};

// The latest ones of all threads. Those of 24 adapters at D = 768 are 6 MB.
class PackedCache {
 public:
  // What packed weights depend on; compared byte by byte.
  struct Key {
    uint64_t fingerprint[8] = {};
    const Kernels* kernels = nullptr;
    int64_t D = 0, r = 0, h = 0, dtype = 0, normalise = 0;

    Key(const Kernels& of, const Problem& p)
        : kernels(&of), D(p.D), r(p.r), h(p.h), dtype(static_cast<int64_t>(p.dtype)), normalise(p.normalise) {}
    bool operator==(const Key& other) const { return std::memcmp(this, &other, sizeof *this) == 0; }
  };
  static_assert(std::has_unique_object_representations_v<Key>, "no padding");

  // Null where there are none. `again`: the last calls asked for them before, so that they are worth keeping; the weights
  // of a training step never are.
  std::shared_ptr<const PackedWeights> find(const Key& key, bool* again) {
    const Lock lock(mutex_, std::try_to_lock);
    if (!lock) return nullptr;
    for (auto entry = entries_.begin(); entry != entries_.end(); ++entry)
      if (entry->first == key) {
        entries_.splice(entries_.begin(), entries_, entry);
        return entry->second;
      }
    *again = std::find(asked_.begin(), asked_.end(), key) != asked_.end();
    if (!*again) {
      asked_.push_front(key);
      if (asked_.size() > MOST_ENTRIES) asked_.pop_back();
    }
    return nullptr;
  }

  void keep(const Key& key, std::shared_ptr<const PackedWeights> packed) {
    const Lock lock(mutex_, std::try_to_lock);
    if (!lock) return;
    bytes_ += packed->bytes();
    entries_.emplace_front(key, std::move(packed));
    while (entries_.size() > 1 && (bytes_ > MOST_BYTES || entries_.size() > MOST_ENTRIES)) {
      bytes_ -= entries_.back().second->bytes();
      entries_.pop_back();
    }
  }

 private:
  // Nobody waits for it: a thread that finds it taken packs for itself, and so does a process that was forked while another
  // thread had it, for which it stays taken.
  using Lock = std::unique_lock<std::mutex>;
  static constexpr size_t MOST_BYTES = 16 << 20, MOST_ENTRIES = 64;
  std::mutex mutex_;
  std::list<Key> asked_;
  std::list<std::pair<Key, std::shared_ptr<const PackedWeights>>> entries_;
  size_t bytes_ = 0;
};

}  // namespace rmadapter
