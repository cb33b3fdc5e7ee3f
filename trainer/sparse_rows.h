#pragma once

#include <cstdint>
#include <vector>

namespace vitrine {

// Rows of features, one after the other.
struct SparseRows {
  std::vector<int64_t> begins = {0};
  std::vector<int32_t> columns;
  std::vector<float> values;

  size_t size() const { return begins.size() - 1; }

  void Add(int32_t column, float value) {
    columns.push_back(column);
    values.push_back(value);
  }
  void EndRow() { begins.push_back(static_cast<int64_t>(columns.size())); }
};

}  // namespace vitrine
