// vitrine-train-pieces: a SentencePiece model from the lines on standard input,
// serialized on standard output. Part of `vitrine-trainer pretrain`, which says
// why it is a program of its own (piece_model.h); it links Debian's library as
// it is, and neither Abseil nor our protobuf.
//
//   vitrine-train-pieces NAME=VALUE...     options of the library's trainer

#include <sentencepiece_trainer.h>

#include <cstdio>
#include <iostream>
#include <string>
#include <unordered_map>

namespace {

class StandardInput : public sentencepiece::SentenceIterator {
 public:
  StandardInput() { Next(); }
  bool done() const override { return done_; }
  void Next() override { done_ = !std::getline(std::cin, line_); }
  const std::string& value() const override { return line_; }
  sentencepiece::util::Status status() const override { return {}; }

 private:
  std::string line_;
  bool done_ = false;
};

}  // namespace

int main(int argc, char** argv) {
  std::ios::sync_with_stdio(false);
  std::unordered_map<std::string, std::string> options;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    const size_t sign = argument.find('=');
    if (sign == std::string::npos) {
      std::fprintf(stderr, "%s is not NAME=VALUE\n", argv[i]);
      return 2;
    }
    options[argument.substr(0, sign)] = argument.substr(sign + 1);
  }
  StandardInput input;
  std::string model;
  const auto status =
      sentencepiece::SentencePieceTrainer::Train(options, &input, &model);
  if (!status.ok()) {
    std::fprintf(stderr, "%s\n", status.ToString().c_str());
    return 1;
  }
  const bool written =
      std::fwrite(model.data(), 1, model.size(), stdout) == model.size() &&
      std::fflush(stdout) == 0;
  return written ? 0 : 1;
}
