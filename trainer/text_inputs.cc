#include "trainer/text_inputs.h"

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "base/file.h"
#include "base/status_macros.h"
#include "trainer/dataset.h"
#include "trainer/line_reader.h"

namespace vitrine {
namespace {

absl::Status AddLine(absl::string_view line, const Featurizer& featurizer,
                     TextInputs::Part* part) {
  const size_t tab = line.find('\t');
  if (tab == absl::string_view::npos) {
    ASSIGN_OR_RETURN(Encoding text, featurizer.Text(line));
    part->single.push_back(std::move(text));
    return absl::OkStatus();
  }
  v1::Item item;
  item.set_title(std::string(absl::StripAsciiWhitespace(line.substr(tab + 1))));
  const absl::string_view query =
      absl::StripAsciiWhitespace(line.substr(0, tab));
  if (query.empty() || item.title().empty()) {
    return absl::InvalidArgumentError(
        "a pair needs a text on both sides of the tab");
  }
  ASSIGN_OR_RETURN(const Tokens query_tokens, featurizer.Query(query));
  ASSIGN_OR_RETURN(const Tokens item_tokens, featurizer.ItemText(item));
  part->pairs.push_back(featurizer.Pair(query_tokens, item_tokens));
  part->single.push_back(featurizer.Single(item_tokens));
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<TextInputs> ReadTextInputs(const std::string& path,
                                          const Featurizer& featurizer,
                                          double validation_share) {
  TextInputs inputs;
  ASSIGN_OR_RETURN(const auto reader, LineReader::Open(path));
  std::string line;
  while (true) {
    ASSIGN_OR_RETURN(const bool more, reader->Next(&line));
    if (!more) break;
    if (absl::StripAsciiWhitespace(line).empty()) continue;
    const std::string key = SameTextKey(line.substr(0, line.find('\t')));
    RETURN_IF_ERROR(Annotate(
        AddLine(line, featurizer,
                IsHeldOut(key, validation_share) ? &inputs.held_out
                                                 : &inputs.calibration),
        reader->where()));
    inputs.digest = Sha256(absl::StrCat(inputs.digest, line));
  }
  if (inputs.digest.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": no lines"));
  }
  return inputs;
}

}  // namespace vitrine
