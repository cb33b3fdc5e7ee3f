#pragma once

// Checkpoints of a run: so much of it that the run, begun again, goes on with
// the same bits.
//
//   <folder>/checkpoint-<number>/state.textproto   see training_state.proto
//                                <name>.safetensors
//
// A checkpoint is written beside the one before it, which goes when the new
// one is on disk: a crash at any instant leaves a whole one. Every file's
// SHA-256 is checked on the way in. One run at a time uses a folder.

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "vitrine/internal/training_state.pb.h"

namespace at {
class Tensor;
}

namespace vitrine {

// A file of a checkpoint, and the tensors that it is written from and read
// into: fp32, contiguous, on any device.
struct StateFile {
  std::string name;  // "parameters"
  std::vector<std::string> names;
  std::vector<at::Tensor> tensors;  // one for each name
  // False: as this object last wrote or read the file, which then is linked
  // into the new checkpoint.
  bool changed = true;
};

class Optimizer;

// A file for each of its moments, in place.
void AddMoments(Optimizer* optimizer, std::vector<StateFile>* files);

class TrainingStateStore {
 public:
  // `fingerprint` tells runs apart that must not go on from each other's
  // checkpoints.
  TrainingStateStore(std::string folder, std::string fingerprint)
      : folder_(std::move(folder)), fingerprint_(std::move(fingerprint)) {}

  // Fills in fingerprint, files and digest of `state`. When it fails, the
  // checkpoint before is still there.
  absl::Status Save(internal::TrainingState state,
                    const std::vector<StateFile>& files);

  // The newest checkpoint that fits. A file that the checkpoint has none of is
  // left as it is. kNotFound: there is none; any other error says why what is
  // there cannot be used, and nothing was changed.
  absl::Status Load(internal::TrainingState* state,
                    const std::vector<StateFile>& files);

 private:
  absl::Status LoadFrom(const std::string& path, internal::TrainingState* state,
                        const std::vector<StateFile>& files) const;

  const std::string folder_;
  const std::string fingerprint_;
  std::string last_;  // the checkpoint written or read last
  internal::TrainingState last_state_;
};

// Removes the checkpoints, and the folder where nothing else is in it.
absl::Status RemoveTrainingStates(const std::string& folder);

}  // namespace vitrine
