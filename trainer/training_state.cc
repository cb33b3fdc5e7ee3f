#include "trainer/training_state.h"

#include <ATen/ATen.h>
#include <stdlib.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <memory>
#include <system_error>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "base/status_macros.h"
#include "base/textproto.h"
#include "model/safetensors.h"
#include "model/to_tensor.h"
#include "trainer/named_tensors.h"
#include "trainer/optimizer.h"

namespace vitrine {
namespace {

namespace fs = std::filesystem;

constexpr absl::string_view kPrefix = "checkpoint-";
constexpr absl::string_view kUnfinished = ".checkpoint-";
constexpr char kStateFile[] = "state.textproto";

std::string FileName(const StateFile& file) {
  return absl::StrCat(file.name, ".safetensors");
}

// -1 for any other name.
int64_t NumberOf(absl::string_view name) {
  int64_t number = -1;
  if (!absl::StartsWith(name, kPrefix) ||
      !absl::SimpleAtoi(name.substr(kPrefix.size()), &number)) {
    return -1;
  }
  return number;
}

// The checkpoints' numbers, newest first; none where there is no folder.
std::vector<int64_t> Numbers(const std::string& folder) {
  std::vector<int64_t> numbers;
  const auto names = ListFolder(folder);
  if (!names.ok()) return numbers;
  for (const std::string& name : *names) {
    const int64_t number = NumberOf(name);
    if (number >= 0) numbers.push_back(number);
  }
  std::sort(numbers.rbegin(), numbers.rend());
  return numbers;
}

std::string PathOf(const std::string& folder, int64_t number) {
  return JoinPath(folder, absl::StrCat(kPrefix, number));
}

// Everything of ours in `folder` but `keep`.
absl::Status RemoveOthers(const std::string& folder, absl::string_view keep) {
  ASSIGN_OR_RETURN(const std::vector<std::string> names, ListFolder(folder));
  for (const std::string& name : names) {
    const std::string path = JoinPath(folder, name);
    if (path == keep ||
        (NumberOf(name) < 0 && !absl::StartsWith(name, kUnfinished))) {
      continue;
    }
    std::error_code error;
    fs::remove_all(path, error);
    if (error) {
      return absl::InternalError(
          absl::StrCat("remove ", path, ": ", error.message()));
    }
  }
  return absl::OkStatus();
}

std::string DigestOf(internal::TrainingState state) {
  state.clear_digest();
  return Sha256(PrintTextProto(state));
}

absl::Status WriteTensors(const std::string& path, const StateFile& file) {
  std::vector<NamedTensor> tensors;
  for (size_t i = 0; i < file.tensors.size(); ++i) {
    tensors.push_back(
        ToNamed(file.names[i], file.tensors[i], TensorType::kF32));
  }
  return WriteSafetensors(path, tensors);
}

absl::Status Rename(const std::string& from, const std::string& to) {
  if (rename(from.c_str(), to.c_str()) == 0) return absl::OkStatus();
  return absl::Status(
      absl::ErrnoToStatusCode(errno),
      absl::StrCat("rename to ", to, ": ", std::strerror(errno)));
}

}  // namespace

void AddMoments(Optimizer* optimizer, std::vector<StateFile>* files) {
  int number = 0;
  for (const auto& moments : optimizer->GetState().moments) {
    StateFile& file = files->emplace_back();
    file.name = absl::StrCat("moments", ++number);
    file.tensors = moments;
    // By the optimizer's order, which is by group.
    for (size_t i = 0; i < moments.size(); ++i) {
      file.names.push_back(absl::StrCat(i));
    }
  }
}

absl::Status TrainingStateStore::Save(internal::TrainingState state,
                                      const std::vector<StateFile>& files) {
  RETURN_IF_ERROR(MakeFolders(folder_));
  std::string path = JoinPath(folder_, absl::StrCat(kUnfinished, "XXXXXX"));
  if (mkdtemp(path.data()) == nullptr) {
    return absl::Status(
        absl::ErrnoToStatusCode(errno),
        absl::StrCat("create ", path, ": ", std::strerror(errno)));
  }
  absl::Cleanup remove = [&path] {
    std::error_code ignored;
    fs::remove_all(path, ignored);
  };
  state.set_fingerprint(fingerprint_);
  state.clear_files();
  for (const StateFile& file : files) {
    const std::string name = FileName(file);
    const std::string to = JoinPath(path, name);
    internal::FileDigest* const digest = state.add_files();
    if (!file.changed && !last_.empty()) {
      const auto old = std::find_if(
          last_state_.files().begin(), last_state_.files().end(),
          [&name](const internal::FileDigest& f) { return f.name() == name; });
      std::error_code error;
      fs::create_hard_link(JoinPath(last_, name), to, error);
      if (!error && old != last_state_.files().end()) {
        *digest = *old;
        continue;
      }
    }
    RETURN_IF_ERROR(WriteTensors(to, file));
    digest->set_name(name);
    std::error_code error;
    digest->set_size_bytes(static_cast<int64_t>(fs::file_size(to, error)));
    ASSIGN_OR_RETURN(*digest->mutable_sha256(), Sha256OfFile(to));
  }
  state.set_digest(DigestOf(state));
  RETURN_IF_ERROR(WriteFile(JoinPath(path, kStateFile), PrintTextProto(state)));
  RETURN_IF_ERROR(SyncFolder(path));
  const std::vector<int64_t> numbers = Numbers(folder_);
  const std::string final_path =
      PathOf(folder_, numbers.empty() ? 1 : numbers.front() + 1);
  RETURN_IF_ERROR(Rename(path, final_path));
  std::move(remove).Cancel();
  RETURN_IF_ERROR(SyncFolder(folder_));
  last_ = final_path;
  last_state_ = std::move(state);
  return RemoveOthers(folder_, final_path);
}

absl::Status TrainingStateStore::LoadFrom(
    const std::string& path, internal::TrainingState* state,
    const std::vector<StateFile>& files) const {
  internal::TrainingState read;
  RETURN_IF_ERROR(ReadTextProto(JoinPath(path, kStateFile), &read));
  if (read.digest() != DigestOf(read)) {
    return absl::DataLossError(
        absl::StrCat(path, "/", kStateFile, ": its SHA-256 does not fit"));
  }
  if (read.fingerprint() != fingerprint_) {
    return absl::FailedPreconditionError(absl::StrCat(
        path, " is of another run: of other options, data or base version"));
  }
  // All is checked before anything is changed.
  std::vector<std::unique_ptr<Safetensors>> opened(files.size());
  for (size_t i = 0; i < files.size(); ++i) {
    const std::string name = FileName(files[i]);
    const auto digest = std::find_if(
        read.files().begin(), read.files().end(),
        [&name](const internal::FileDigest& f) { return f.name() == name; });
    if (digest == read.files().end()) continue;
    const std::string file = JoinPath(path, name);
    ASSIGN_OR_RETURN(const std::string sha256, Sha256OfFile(file));
    if (sha256 != digest->sha256()) {
      return absl::DataLossError(
          absl::StrCat(file, ": its SHA-256 does not fit"));
    }
    ASSIGN_OR_RETURN(opened[i], OpenSafetensors(file));
    for (size_t t = 0; t < files[i].tensors.size(); ++t) {
      const TensorView* const view = opened[i]->Find(files[i].names[t]);
      const at::Tensor& tensor = files[i].tensors[t];
      if (view == nullptr || view->type != TensorType::kF32 ||
          view->bytes.size() != tensor.nbytes()) {
        return absl::InvalidArgumentError(
            absl::StrCat(file, ": no tensor ", files[i].names[t], " of ",
                         tensor.numel(), " floats"));
      }
    }
  }
  for (size_t i = 0; i < files.size(); ++i) {
    if (opened[i] == nullptr) continue;
    for (size_t t = 0; t < files[i].tensors.size(); ++t) {
      ASSIGN_OR_RETURN(const at::Tensor values,
                       ToTensor(*opened[i]->Find(files[i].names[t])));
      const at::Tensor& tensor = files[i].tensors[t];
      tensor.detach().copy_(values.view(tensor.sizes()));
    }
  }
  *state = std::move(read);
  return absl::OkStatus();
}

absl::Status TrainingStateStore::Load(internal::TrainingState* state,
                                      const std::vector<StateFile>& files) {
  absl::Status newest = absl::NotFoundError(
      absl::StrCat(folder_, ": there is no checkpoint in it"));
  bool first = true;
  for (const int64_t number : Numbers(folder_)) {
    const std::string path = PathOf(folder_, number);
    const absl::Status status = LoadFrom(path, state, files);
    if (status.ok()) {
      last_ = path;
      last_state_ = *state;
      return status;
    }
    if (!std::exchange(first, false)) continue;
    // A file that is not there is damage here.
    newest = absl::IsNotFound(status) ? absl::DataLossError(status.message())
                                      : status;
  }
  return newest;
}

absl::Status RemoveTrainingStates(const std::string& folder) {
  if (!PathExists(folder)) return absl::OkStatus();
  RETURN_IF_ERROR(RemoveOthers(folder, ""));
  rmdir(folder.c_str());  // not where other files are in it
  return absl::OkStatus();
}

}  // namespace vitrine
