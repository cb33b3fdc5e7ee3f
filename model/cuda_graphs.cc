#include "model/cuda_graphs.h"

#include <torch/version.h>

// Versions before 2.1 capture in a mode that forbids all threads of the process
// to allocate meanwhile.
#if defined(VITRINE_CUDA) &&    \
    (TORCH_VERSION_MAJOR > 2 || \
     (TORCH_VERSION_MAJOR == 2 && TORCH_VERSION_MINOR >= 1))
#define VITRINE_CUDA_GRAPHS 1
#endif

#ifdef VITRINE_CUDA_GRAPHS

#include <ATen/cuda/CUDAGraph.h>
#include <c10/core/StreamGuard.h>
#include <c10/cuda/CUDAStream.h>

#include <exception>
#include <list>
#include <map>
#include <utility>

#include "base/log.h"
#include "base/mutex.h"
#include "model/torch_status.h"

namespace vitrine {
namespace {

// Batches of a shape before it is worth a graph. The first one also makes
// LibTorch load kernels and allocate workspaces, which a capture must not.
constexpr int kRunsBeforeCapture = 2;

// All work goes to one stream, so that what is enqueued under the mutex never
// overlaps: graphs can share their scratch memory, and a block may be written
// for the next batch while the last one's graph still waits to run.
class CudaGraphsImpl final : public CudaGraphs {
 public:
  CudaGraphsImpl(Work work, int max_graphs)
      : work_(std::move(work)),
        max_graphs_(max_graphs),
        stream_(c10::cuda::getStreamFromPool()),
        pool_(at::cuda::graph_pool_handle()) {
    // The weights were written on another stream. (A CUDAStream's own call, not
    // a Stream's, would want libcudart, which PyTorch's wheels keep aside.)
    c10::cuda::getCurrentCUDAStream().unwrap().synchronize();
  }

  at::Tensor Run(const GraphKey& key, const at::Tensor& block) override {
    at::Tensor out;
    {
      MutexLock lock(mu_);
      const c10::StreamGuard guard(stream_.unwrap());
      Entry& entry = Find(key, block.numel());
      entry.block.copy_(block, /*non_blocking=*/true);
      at::Tensor result;
      if (entry.graph != nullptr) {
        entry.graph->replay();
        result = entry.result;
      } else {
        result = work_(entry.block, key);
      }
      out = at::empty(result.sizes(),
                      result.options().device(at::kCPU).pinned_memory(true));
      out.copy_(result, /*non_blocking=*/true);
      if (entry.graph == nullptr && ++entry.runs >= kRunsBeforeCapture &&
          !capture_failed_) {
        Capture(key, &entry);
      }
    }
    // Without the mutex: the next batch can be enqueued meanwhile.
    stream_.unwrap().synchronize();
    return out;
  }

  int size() const override {
    MutexLock lock(mu_);
    int count = 0;
    for (const auto& [key, entry] : entries_) count += entry.graph != nullptr;
    return count;
  }

 private:
  struct Entry {
    at::Tensor block;  // on the device; the graph reads it
    int runs = 0;
    // Null until captured.
    std::unique_ptr<at::cuda::CUDAGraph> graph;
    at::Tensor result;  // on the device; the graph writes it
    std::list<GraphKey>::iterator use;
  };

  Entry& Find(const GraphKey& key, int64_t block_size)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    const auto it = entries_.find(key);
    if (it != entries_.end()) {
      uses_.splice(uses_.begin(), uses_, it->second.use);
      return it->second;
    }
    if (static_cast<int>(entries_.size()) >= max_graphs_) {
      stream_.unwrap().synchronize();  // it may be running
      entries_.erase(uses_.back());
      uses_.pop_back();
    }
    Entry& entry = entries_[key];
    entry.block = at::empty(
        {block_size}, at::TensorOptions(stream_.device()).dtype(at::kInt));
    uses_.push_front(key);
    entry.use = uses_.begin();
    return entry;
  }

  // The block holds a batch of the shape, though nothing runs here. Only this
  // thread is kept from what a capture cannot hold, such as allocations outside
  // of LibTorch: others serve and load meanwhile.
  void Capture(const GraphKey& key, Entry* entry)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    auto graph = std::make_unique<at::cuda::CUDAGraph>();
    bool capturing = false;
    try {
      graph->capture_begin(pool_, cudaStreamCaptureModeThreadLocal);
      capturing = true;
      at::Tensor result = work_(entry->block, key);
      capturing = false;
      graph->capture_end();
      entry->result = std::move(result);
      entry->graph = std::move(graph);
    } catch (const std::exception& e) {
      capture_failed_ = true;
      Log(LogLevel::kWarning, "cuda_graphs_off",
          {{"status", TorchStatus(e)}, {"tokens", key.shape.tokens}});
      if (!capturing) return;
      try {
        graph->capture_end();  // the stream must leave the capture
      } catch (const std::exception&) {
      }
    }
  }

  const Work work_;
  const int max_graphs_;
  const c10::cuda::CUDAStream stream_;
  const decltype(at::cuda::graph_pool_handle()) pool_;

  mutable Mutex mu_;
  std::map<GraphKey, Entry> entries_ ABSL_GUARDED_BY(mu_);
  std::list<GraphKey> uses_ ABSL_GUARDED_BY(mu_);  // the latest first
  bool capture_failed_ ABSL_GUARDED_BY(mu_) = false;
};

}  // namespace

std::unique_ptr<CudaGraphs> NewCudaGraphs(CudaGraphs::Work work,
                                          int max_graphs) {
  return std::make_unique<CudaGraphsImpl>(std::move(work), max_graphs);
}

}  // namespace vitrine

#else

namespace vitrine {

std::unique_ptr<CudaGraphs> NewCudaGraphs(CudaGraphs::Work, int) {
  return nullptr;
}

}  // namespace vitrine

#endif
