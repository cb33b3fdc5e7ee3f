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
#include "absl/types/span.h"
#include "vitrine/internal/training_state.pb.h"

namespace vitrine {

// A file of a checkpoint, and the memory that it is written from and read
// into.
struct StateFile {
  struct Tensor {
    std::string name;
    absl::Span<float> values;
  };
  std::string name;  // "parameters"
  std::vector<Tensor> tensors;
  // False: as this object last wrote or read the file, which then is linked
  // into the new checkpoint.
  bool changed = true;
};

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
