#pragma once

// CUDA graphs for small batches. A small batch takes a GPU less time than the
// CPU needs to launch its hundred kernels one by one; a graph is launched as a
// whole. It always runs over the same memory and shapes, so batches are rounded
// up to shapes of which there are few, and what has been captured for a shape
// is kept. One of few headers that include LibTorch.

#include <ATen/ATen.h>

#include <compare>
#include <functional>
#include <memory>

#include "model/batch.h"
#include "model/gpu_batch.h"

namespace vitrine {

struct GraphKey {
  GpuShape shape;
  HeadMask heads = 0;  // that are run

  auto operator<=>(const GraphKey&) const = default;
};

// Any thread may call Run.
class CudaGraphs {
 public:
  // From a block on the device to a result on the device, fp32, by kernels
  // alone: it neither waits for the device nor depends on anything but the key.
  using Work =
      std::function<at::Tensor(const at::Tensor& block, const GraphKey& key)>;

  virtual ~CudaGraphs() = default;

  // The result of the work on `block` (pinned, int32), in memory of the host.
  // A shape's first batches run without a graph; when a capture fails, all
  // batches do from then on. Throws what LibTorch throws.
  virtual at::Tensor Run(const GraphKey& key, const at::Tensor& block) = 0;

  // Graphs held; for tests.
  virtual int size() const = 0;
};

// `work` must stay callable as long as the object lives. Null where this
// build's LibTorch has no CUDA, or none that can be captured beside other
// threads.
std::unique_ptr<CudaGraphs> NewCudaGraphs(CudaGraphs::Work work,
                                          int max_graphs = 64);

}  // namespace vitrine
