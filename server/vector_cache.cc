#include "server/vector_cache.h"

#include <algorithm>
#include <map>

#include "absl/strings/str_cat.h"
#include "base/file.h"

namespace vitrine {
namespace {

// What an entry costs beside its vector and its key, about: two list links,
// control block, hash slot.
constexpr int64_t kEntryOverheadBytes = 192;

// Lengths go first, so that no two items give the same bytes.
void AppendPart(absl::string_view part, std::string* out) {
  absl::StrAppend(out, part.size(), ":", part);
}

}  // namespace

VectorCache::VectorCache(int64_t max_bytes, CacheMetrics metrics)
    : max_bytes_(max_bytes), metrics_(metrics) {}

std::string VectorCache::KeyOf(absl::string_view model,
                               absl::string_view version,
                               absl::string_view head, const v1::Item& item) {
  std::string text;
  AppendPart(model, &text);
  AppendPart(version, &text);
  AppendPart(head, &text);
  AppendPart(item.title(), &text);
  AppendPart(item.brand(), &text);
  AppendPart(item.description(), &text);
  absl::StrAppend(&text, item.categories_size(), ";");
  for (const std::string& category : item.categories()) {
    AppendPart(category, &text);
  }
  // A map has no order of its own.
  std::map<absl::string_view, absl::string_view> attributes;
  for (const auto& [key, value] : item.attributes()) attributes[key] = value;
  for (const auto& [key, value] : attributes) {
    AppendPart(key, &text);
    AppendPart(value, &text);
  }
  return Sha256(text);
}

std::shared_ptr<const VectorCache::Entry> VectorCache::Find(
    const std::string& key) {
  std::shared_ptr<const Entry> found;
  if (enabled()) {
    MutexLock lock(mu_);
    const auto it = index_.find(key);
    if (it != index_.end()) {
      nodes_.splice(nodes_.begin(), nodes_, it->second);
      found = it->second->entry;
    }
  }
  prometheus::Counter* counter =
      found != nullptr ? metrics_.hits : metrics_.misses;
  if (counter != nullptr) counter->Increment();
  return found;
}

void VectorCache::Insert(const std::string& key,
                         std::shared_ptr<const Entry> entry) {
  const int64_t bytes = static_cast<int64_t>(
      key.size() + entry->vector.size() * sizeof(float) + kEntryOverheadBytes);
  if (bytes > max_bytes_) return;
  MutexLock lock(mu_);
  if (index_.contains(key)) return;  // another call was faster
  while (bytes_ + bytes > max_bytes_) DropOldest();
  nodes_.push_front({key, std::move(entry), bytes});
  index_.emplace(nodes_.front().key, nodes_.begin());
  bytes_ += bytes;
  if (metrics_.bytes != nullptr) metrics_.bytes->Set(bytes_);
}

void VectorCache::DropOldest() {
  const Node& node = nodes_.back();
  bytes_ -= node.bytes;
  index_.erase(node.key);
  nodes_.pop_back();
}

int64_t VectorCache::bytes() const {
  MutexLock lock(mu_);
  return bytes_;
}

}  // namespace vitrine
