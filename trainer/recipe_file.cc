#include "trainer/recipe_file.h"

#include <algorithm>

#include "CLI/CLI.hpp"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "base/status_macros.h"

namespace vitrine {
namespace {

constexpr char kFlag[] = "--recipe";

bool IsGiven(const std::vector<std::string>& arguments,
             const std::string& flag) {
  return std::any_of(
      arguments.begin(), arguments.end(), [&](const std::string& argument) {
        return argument == flag || absl::StartsWith(argument, flag + "=");
      });
}

std::string PathOf(const std::vector<std::string>& arguments) {
  for (size_t i = 0; i < arguments.size(); ++i) {
    if (arguments[i] == kFlag && i + 1 < arguments.size()) {
      return arguments[i + 1];
    }
    if (absl::StartsWith(arguments[i], absl::StrCat(kFlag, "="))) {
      return arguments[i].substr(sizeof kFlag);
    }
  }
  return "";
}

}  // namespace

const char kRecipeHelp[] =
    "A file of these options, NAME = VALUE a line; what the command line "
    "gives itself comes before it";

absl::StatusOr<std::vector<std::string>> WithRecipe(
    std::vector<std::string> arguments) {
  const std::string path = PathOf(arguments);
  if (path.empty() || arguments.size() < 2) return arguments;
  // CLI11 reads a folder, too, as an empty file.
  RETURN_IF_ERROR(ReadFile(path).status());
  std::vector<CLI::ConfigItem> items;
  try {
    items = CLI::ConfigTOML().from_file(path);
  } catch (const CLI::Error& e) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": ", e.what()));
  }
  std::vector<std::string> options;
  for (const CLI::ConfigItem& item : items) {
    if (!item.parents.empty()) {
      return absl::InvalidArgumentError(absl::StrCat(
          path, ": [", item.parents.front(), "]: a recipe has no sections"));
    }
    const std::string flag = absl::StrCat("--", item.name);
    if (IsGiven(arguments, flag)) continue;
    for (const std::string& value : item.inputs) {
      options.push_back(absl::StrCat(flag, "=", value));
    }
  }
  arguments.insert(arguments.begin() + 2, options.begin(), options.end());
  return arguments;
}

}  // namespace vitrine
