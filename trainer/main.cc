// vitrine-trainer: makes versions that vitrine-server serves.

#include <cstdio>
#include <exception>
#include <string>
#include <utility>
#include <vector>

#include "base/openmp.h"
#include "trainer/commands.h"
#include "trainer/recipe_file.h"

int main(int argc, char** argv) {
  vitrine::LimitOpenMpSpinning(argv);
  CLI::App app{
      "vitrine-trainer makes model versions that vitrine-server serves.\n\n"
      "A version is a folder REGISTRY/MODEL/NUMBER; once published it never "
      "changes.\nSee `vitrine-trainer COMMAND --help`."};
  app.name("vitrine-trainer");
  app.set_version_flag("--version", "vitrine-trainer 0.1.0");
  app.require_subcommand(1);
  app.footer(
      "Examples:\n"
      "  # a small encoder from scratch, trained on a shop's own data\n"
      "  vitrine-trainer init --vocab vocab.txt --out encoder\n"
      "  vitrine-trainer fit --from encoder --items items.jsonl \\\n"
      "      --task relevance --data relevance.jsonl \\\n"
      "      --learning-rate 1e-3 --epochs 10 --out registry --model shop\n"
      "  # a pretrained checkpoint, served as it is\n"
      "  vitrine-trainer import --from ms-marco-MiniLM-L-6-v2 \\\n"
      "      --out registry --model shop\n"
      "  # how good a version is on labelled rows\n"
      "  vitrine-trainer evaluate shop/1 --registry registry \\\n"
      "      --items items.jsonl --task relevance --data test.jsonl\n"
      "  # the same version in int8, where that loses next to nothing\n"
      "  vitrine-trainer quantize shop/1 --out registry --items items.jsonl "
      "\\\n"
      "      --task relevance --data relevance.jsonl\n\n"
      "Exit status: 0 done, 1 failed or rejected, 2 wrong usage, 130 "
      "interrupted.");
  vitrine::CommandFunction run;
  vitrine::AddInitCommand(&app, &run);
  vitrine::AddPretrainCommand(&app, &run);
  vitrine::AddImportCommand(&app, &run);
  vitrine::AddFitCommand(&app, &run);
  vitrine::AddEvaluateCommand(&app, &run);
  vitrine::AddQuantizeCommand(&app, &run);
  vitrine::AddWorkCommand(&app, &run);
  auto arguments = vitrine::WithRecipe({argv, argv + argc});
  if (!arguments.ok()) {
    std::fprintf(stderr, "vitrine-trainer: %s\n",
                 std::string(arguments.status().message()).c_str());
    return 2;
  }
  try {
    // CLI11 takes them from the back.
    std::vector<std::string> reversed(arguments->rbegin(),
                                      arguments->rend() - 1);
    app.parse(std::move(reversed));
  } catch (const CLI::ParseError& e) {
    return app.exit(e) == 0 ? 0 : 2;
  }
  absl::Status status;
  try {
    status = run();
  } catch (const std::exception& e) {
    status = absl::InternalError(e.what());
  }
  if (status.ok()) return 0;
  std::fprintf(stderr, "vitrine-trainer: %s\n",
               std::string(status.message()).c_str());
  return absl::IsCancelled(status) ? 130 : 1;
}
