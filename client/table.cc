#include "client/table.h"

#include <utf8proc.h>

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"

namespace vitrine {
namespace {

// The code point at the start of `text`, which is not empty, and its bytes;
// -1 and one byte where it is invalid.
std::pair<utf8proc_int32_t, size_t> Decode(absl::string_view text) {
  utf8proc_int32_t c;
  const utf8proc_ssize_t bytes =
      utf8proc_iterate(reinterpret_cast<const utf8proc_uint8_t*>(text.data()),
                       static_cast<utf8proc_ssize_t>(text.size()), &c);
  if (bytes <= 0) return {-1, 1};
  return {c, static_cast<size_t>(bytes)};
}

}  // namespace

int DisplayWidth(absl::string_view text) {
  int width = 0;
  while (!text.empty()) {
    const auto [c, bytes] = Decode(text);
    width += c < 0 ? 1 : utf8proc_charwidth(c);
    text.remove_prefix(bytes);
  }
  return width;
}

std::string Printable(absl::string_view text, int max_width) {
  std::string out;
  size_t cut = 0;  // where "…" would go
  int width = 0;
  while (!text.empty()) {
    const auto [c, bytes] = Decode(text);
    const bool control =
        c >= 0 && (utf8proc_category(c) == UTF8PROC_CATEGORY_CC ||
                   utf8proc_category(c) == UTF8PROC_CATEGORY_CF ||
                   utf8proc_category(c) == UTF8PROC_CATEGORY_ZL ||
                   utf8proc_category(c) == UTF8PROC_CATEGORY_ZP);
    const int wide = c < 0 || control ? 1 : utf8proc_charwidth(c);
    if (width + wide > max_width) {
      out.resize(cut);
      return absl::StrCat(out, "…");
    }
    if (c < 0) {
      out += "\uFFFD";
    } else if (control) {
      out += ' ';
    } else {
      out.append(text.data(), bytes);
    }
    width += wide;
    if (width < max_width) cut = out.size();
    text.remove_prefix(bytes);
  }
  return out;
}

void Table::AddColumn(absl::string_view title, Align align) {
  columns_.push_back({std::string(title), align});
}

void Table::AddRow(std::vector<std::string> cells) {
  cells.resize(columns_.size());
  rows_.push_back(std::move(cells));
}

std::string Table::ToString() const {
  std::vector<int> widths(columns_.size(), 0);
  for (const auto& row : rows_) {
    for (size_t i = 0; i < row.size(); ++i) {
      widths[i] = std::max(widths[i], DisplayWidth(row[i]));
    }
  }
  std::vector<std::string> titles;
  for (size_t i = 0; i < columns_.size(); ++i) {
    titles.push_back(columns_[i].title);
    if (widths[i] > 0) {
      widths[i] = std::max(widths[i], DisplayWidth(columns_[i].title));
    }
  }
  std::string out;
  const auto add = [&](const std::vector<std::string>& cells) {
    std::string line;
    for (size_t i = 0; i < cells.size(); ++i) {
      if (widths[i] == 0) continue;
      const std::string pad(widths[i] - DisplayWidth(cells[i]), ' ');
      if (columns_[i].align == kRight) {
        absl::StrAppend(&line, pad, cells[i], "  ");
      } else {
        absl::StrAppend(&line, cells[i], pad, "  ");
      }
    }
    line.erase(line.find_last_not_of(' ') + 1);
    absl::StrAppend(&out, line, "\n");
  };
  add(titles);
  for (const auto& row : rows_) add(row);
  return out;
}

}  // namespace vitrine
