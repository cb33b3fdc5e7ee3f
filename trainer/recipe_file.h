#pragma once

// A recipe: a file of a command's own options, so that what works for a kind
// of data has a name and is given again in a word.
//
//   # deploy/recipes/search.toml
//   learning-rate = 3e-4
//   epochs = 3

#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace vitrine {

// What --recipe of a command says; its help.
extern const char kRecipeHelp[];

// The command line with the options of the file that --recipe names put right
// after the command, but for those that the command line gives itself.
// kInvalidArgument: a file that cannot be read, or is no TOML; a section.
absl::StatusOr<std::vector<std::string>> WithRecipe(
    std::vector<std::string> arguments);

}  // namespace vitrine
