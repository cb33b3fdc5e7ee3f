#pragma once

// Text for a terminal: aligned columns that know how wide characters are.

#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace vitrine {

// Columns that `text` takes on a terminal: 0 for combining characters, 2 for
// wide ones. Invalid bytes count 1.
int DisplayWidth(absl::string_view text);

// `text` on one line, safe to print: controls (escape sequences too) become
// spaces and invalid bytes U+FFFD. Longer than `max_width` columns: cut, "…".
std::string Printable(absl::string_view text, int max_width = 1 << 20);

class Table {
 public:
  enum Align { kLeft, kRight };

  // A column whose cells are all empty is left out.
  void AddColumn(absl::string_view title, Align align = kLeft);
  // One cell a column, printable.
  void AddRow(std::vector<std::string> cells);
  // Two spaces between columns, no spaces at the ends of lines.
  std::string ToString() const;

 private:
  struct Column {
    std::string title;
    Align align;
  };
  std::vector<Column> columns_;
  std::vector<std::vector<std::string>> rows_;
};

}  // namespace vitrine
