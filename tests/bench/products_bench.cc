// The floor under an encoder: oneDNN's time for its matrix products alone, with
// packed weights of its own for every layer, so that caches are used as in the
// model. Of the ways to cut the work that are tried, the fastest counts. Prints
// one JSON line.
//
//   products_bench --layers 6 --hidden 384 --dtype bf16
//
// What is left out: attention's own products, softmax, GELU, norms, copies.

#include <omp.h>

#include <algorithm>
#include <barrier>
#include <chrono>
#include <cmath>
#include <iostream>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

#include "CLI/CLI.hpp"
#include "nlohmann/json.hpp"
#include "oneapi/dnnl/dnnl.hpp"

namespace vitrine {
namespace {

using dnnl::memory;

constexpr int64_t kLargestBlock = 512;  // rows

struct Options {
  int64_t layers = 6, hidden = 384, intermediate = 0;
  int64_t tokens = 8192;
  int threads = static_cast<int>(std::thread::hardware_concurrency());
  std::string dtype = "fp32", split, order;
  int64_t block = 0;
  double seconds = 1;
};

// How the work is cut.
struct Plan {
  // Each thread has its own rows, or its own columns of every product.
  bool split_rows = true;
  int64_t block = 256;  // rows in one call
  // Every block through one layer, then the next; else every layer for one
  // block, then the next block.
  bool layer_first = true;
};

struct Types {
  memory::data_type source, weights, result;
};

Types TypesOf(const std::string& dtype) {
  using enum memory::data_type;
  if (dtype == "bf16") return {bf16, bf16, bf16};
  if (dtype == "int8") return {u8, s8, s32};
  return {f32, f32, f32};
}

memory::desc Plain(int64_t rows, int64_t columns, memory::data_type type) {
  return {{rows, columns}, type, memory::format_tag::ab};
}

// Numbers that no arithmetic shortcut recognises.
memory RandomMemory(const memory::desc& desc, const dnnl::engine& engine,
                    dnnl::stream& stream) {
  const auto dims = desc.dims();
  memory plain(Plain(dims[0], dims[1], memory::data_type::f32), engine);
  float* values = static_cast<float*>(plain.get_data_handle());
  std::minstd_rand random(1);
  const bool integers = desc.data_type() == memory::data_type::u8 ||
                        desc.data_type() == memory::data_type::s8;
  const float low = desc.data_type() == memory::data_type::u8 ? 0 : -1;
  std::uniform_real_distribution<float> spread(low, 1);
  for (int64_t i = 0; i < dims[0] * dims[1]; ++i) {
    values[i] = spread(random) * (integers ? 100 : 0.1f);
  }
  memory out(desc, engine);
  dnnl::reorder(plain, out).execute(stream, plain, out);
  stream.wait();
  return out;
}

// What threads share: for each product of a layer (query, key and value in one;
// attention's output; intermediate; output) its code for `rows` rows, and the
// packed weights of all layers.
struct Encoder {
  struct Product {
    int64_t inputs, outputs;
    dnnl::matmul code;
    std::vector<memory> weights;  // (layers)
    size_t scratchpad_bytes;
  };
  std::vector<Product> products;

  // Columns `part` of `parts` of each product.
  Encoder(const Options& options, int64_t rows, int part, int parts,
          const dnnl::engine& engine) {
    const Types types = TypesOf(options.dtype);
    const int64_t hidden = options.hidden, inner = options.intermediate;
    dnnl::stream stream(engine);
    dnnl::primitive_attr attributes;
    attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
    for (const auto& [inputs, columns] :
         {std::pair(hidden, 3 * hidden), std::pair(hidden, hidden),
          std::pair(hidden, inner), std::pair(inner, hidden)}) {
      const int64_t outputs =
          columns * (part + 1) / parts - columns * part / parts;
      const memory::desc weights({inputs, outputs}, types.weights,
                                 memory::format_tag::any);
      const dnnl::matmul::primitive_desc desc(
          {Plain(rows, inputs, types.source), weights,
           Plain(rows, outputs, types.result)},
          attributes, engine);
      Product product = {inputs,
                         outputs,
                         dnnl::matmul(desc),
                         {},
                         desc.scratchpad_desc().get_size()};
      for (int64_t layer = 0; layer < options.layers; ++layer) {
        product.weights.push_back(
            RandomMemory(desc.weights_desc(), engine, stream));
      }
      products.push_back(std::move(product));
    }
  }
};

// A thread's inputs and outputs.
class Worker {
 public:
  Worker(const Options& options, const Encoder& encoder, const Plan& plan,
         int64_t blocks, const dnnl::engine& engine)
      : encoder_(encoder),
        plan_(plan),
        layers_(options.layers),
        blocks_(blocks),
        stream_(engine) {
    const Types types = TypesOf(options.dtype);
    size_t scratchpad_bytes = 0;
    int64_t widest = 0;
    for (const Encoder::Product& product : encoder.products) {
      scratchpad_bytes = std::max(scratchpad_bytes, product.scratchpad_bytes);
      widest = std::max(widest, product.outputs);
    }
    const memory scratchpad(
        Plain(1, std::max<int64_t>(scratchpad_bytes, 1), memory::data_type::u8),
        engine);
    // A block that runs through all layers uses the same memory in each; a
    // layer that takes all blocks reads and writes all of it.
    const int64_t rows = plan.block * (plan.layer_first ? blocks : 1);
    const auto whole = [&](int64_t width, memory::data_type type) {
      return RandomMemory(Plain(rows, width, type), engine, stream_);
    };
    const auto block_of = [&](const memory& all, int64_t block, int64_t width,
                              memory::data_type type) {
      const memory::desc desc = Plain(plan.block, width, type);
      const size_t offset = plan.layer_first ? block * desc.get_size() : 0;
      return memory(desc, engine,
                    static_cast<char*>(all.get_data_handle()) + offset);
    };
    const memory hidden = whole(options.hidden, types.source);
    const memory inner = whole(options.intermediate, types.source);
    const memory result(Plain(rows, widest, types.result), engine);
    owned_ = {hidden, inner, result};
    for (int64_t layer = 0; layer < layers_; ++layer) {
      for (int64_t block = 0; block < blocks; ++block) {
        for (const Encoder::Product& product : encoder.products) {
          const memory& source =
              product.inputs == options.hidden ? hidden : inner;
          arguments_.push_back(
              {{DNNL_ARG_SRC,
                block_of(source, block, product.inputs, types.source)},
               {DNNL_ARG_WEIGHTS, product.weights[layer]},
               {DNNL_ARG_DST,
                block_of(result, block, product.outputs, types.result)},
               {DNNL_ARG_SCRATCHPAD, scratchpad}});
        }
      }
    }
  }

  // All products of the encoder, once.
  void Run() {
    if (plan_.layer_first) {
      for (int64_t layer = 0; layer < layers_; ++layer) {
        for (int64_t block = 0; block < blocks_; ++block) Layer(layer, block);
      }
    } else {
      for (int64_t block = 0; block < blocks_; ++block) {
        for (int64_t layer = 0; layer < layers_; ++layer) Layer(layer, block);
      }
    }
    stream_.wait();
  }

 private:
  void Layer(int64_t layer, int64_t block) {
    const size_t size = encoder_.products.size();
    for (size_t p = 0; p < size; ++p) {
      encoder_.products[p].code.execute(
          stream_, arguments_[(layer * blocks_ + block) * size + p]);
    }
  }

  const Encoder& encoder_;
  const Plan plan_;
  const int64_t layers_, blocks_;
  dnnl::stream stream_;
  std::vector<memory> owned_;
  // (layers, blocks, products)
  std::vector<std::unordered_map<int, memory>> arguments_;
};

struct Measured {
  Plan plan;
  int64_t tokens = 0;  // of one pass; whole blocks
  double p50_seconds = 0;

  double tokens_per_s() const { return tokens / p50_seconds; }
};

// Passes of all threads together, for `seconds`, after one that warms up.
Measured Measure(const Options& options, Plan plan, int64_t tokens,
                 double seconds) {
  omp_set_num_threads(1);
  const dnnl::engine engine(dnnl::engine::kind::cpu, 0);
  const int threads = options.threads;
  const int64_t rows =
      plan.split_rows ? (tokens + threads - 1) / threads : tokens;
  const int64_t blocks = (rows + plan.block - 1) / plan.block;
  // Blocks of one size that together are little more than the rows.
  plan.block = (rows + blocks - 1) / blocks;
  std::vector<Encoder> encoders;
  const int parts = plan.split_rows ? 1 : threads;
  for (int part = 0; part < parts; ++part) {
    encoders.emplace_back(options, plan.block, part, parts, engine);
  }

  std::barrier meet(threads);
  bool done = false;  // written by the first thread between two meetings
  std::vector<double> passes;
  const auto work = [&](int thread) {
    omp_set_num_threads(1);  // counts for this thread alone
    using Clock = std::chrono::steady_clock;
    Worker worker(options, encoders[thread % parts], plan, blocks, engine);
    worker.Run();
    const Clock::time_point begin = Clock::now();
    while (true) {
      meet.arrive_and_wait();
      if (done) break;
      const Clock::time_point start = Clock::now();
      worker.Run();
      meet.arrive_and_wait();
      if (thread > 0) continue;
      const Clock::time_point end = Clock::now();
      passes.push_back(std::chrono::duration<double>(end - start).count());
      done = std::chrono::duration<double>(end - begin).count() > seconds;
    }
  };
  std::vector<std::thread> others;
  for (int thread = 1; thread < threads; ++thread) {
    others.emplace_back(work, thread);
  }
  work(0);
  for (std::thread& other : others) other.join();

  std::sort(passes.begin(), passes.end());
  return {plan, plan.block * blocks * (plan.split_rows ? threads : 1),
          passes[passes.size() / 2]};
}

// Sizes of blocks to try for so many rows.
std::vector<int64_t> Blocks(const Options& options, int64_t rows) {
  if (options.block > 0) return {std::min(options.block, rows)};
  std::vector<int64_t> blocks;
  for (int64_t block = 64; block < std::min(rows, kLargestBlock); block *= 2) {
    blocks.push_back(block);
  }
  blocks.push_back(std::min(rows, kLargestBlock));
  return blocks;
}

std::vector<Plan> Plans(const Options& options) {
  std::vector<std::string> splits = {options.split};
  std::vector<std::string> orders = {options.order};
  if (options.split.empty()) {
    splits = {"rows"};
    if (options.threads > 1) splits.push_back("columns");
  }
  if (options.order.empty()) orders = {"layers", "blocks"};
  std::vector<Plan> plans;
  for (const std::string& split : splits) {
    const int parts = split == "rows" ? options.threads : 1;
    const int64_t rows = (options.tokens + parts - 1) / parts;
    for (const int64_t block : Blocks(options, rows)) {
      for (const std::string& order : orders) {
        plans.push_back({split == "rows", block, order == "layers"});
      }
    }
  }
  return plans;
}

std::string NameOfIsa() {
  switch (dnnl_get_effective_cpu_isa()) {
    case dnnl_cpu_isa_sse41:
      return "SSE41";
    case dnnl_cpu_isa_avx:
      return "AVX";
    case dnnl_cpu_isa_avx2:
      return "AVX2";
    case dnnl_cpu_isa_avx2_vnni:
      return "AVX2_VNNI";
    case dnnl_cpu_isa_avx512_core:
      return "AVX512_CORE";
    case dnnl_cpu_isa_avx512_core_vnni:
      return "AVX512_CORE_VNNI";
    case dnnl_cpu_isa_avx512_core_bf16:
      return "AVX512_CORE_BF16";
    case dnnl_cpu_isa_avx512_core_amx:
      return "AVX512_CORE_AMX";
    default:
      return "other";
  }
}

double Rounded(double value, int digits) {
  const double scale = std::pow(10, digits);
  return std::round(value * scale) / scale;
}

// The best of several plans on `tokens` tokens, for a moment each.
Plan BestOf(const Options& options, const std::vector<Plan>& plans,
            int64_t tokens) {
  if (plans.size() == 1) return plans[0];
  Plan best;
  double best_tokens_per_s = 0;
  for (const Plan& plan : plans) {
    const double tried =
        Measure(options, plan, tokens, /*seconds=*/0.2).tokens_per_s();
    if (tried > best_tokens_per_s) {
      best = plan;
      best_tokens_per_s = tried;
    }
  }
  return best;
}

void Bench(const Options& options) {
  // All plans on fewer tokens; then the order again, since it is with many that
  // one overflows the caches.
  Plan plan = BestOf(
      options, Plans(options),
      std::min<int64_t>(options.tokens, 2 * kLargestBlock * options.threads));
  std::vector<Plan> orders = {plan};
  if (options.order.empty()) {
    orders.push_back(plan);
    orders.back().layer_first = !plan.layer_first;
  }
  plan = BestOf(options, orders, options.tokens);
  const Measured best = Measure(options, plan, options.tokens, options.seconds);

  const int64_t operations_per_token =
      2 * options.layers *
      (4 * options.hidden * options.hidden +
       2 * options.hidden * options.intermediate);
  const dnnl_version_t& version = *dnnl_version();
  nlohmann::ordered_json out;
  out["engine"] = "products " + options.dtype;
  out["onednn"] = std::to_string(version.major) + "." +
                  std::to_string(version.minor) + "." +
                  std::to_string(version.patch);
  out["isa"] = NameOfIsa();
  out["layers"] = options.layers;
  out["hidden"] = options.hidden;
  out["intermediate"] = options.intermediate;
  out["threads"] = options.threads;
  out["tokens"] = best.tokens;
  out["split"] = best.plan.split_rows ? "rows" : "columns";
  out["order"] = best.plan.layer_first ? "layers" : "blocks";
  out["block"] = best.plan.block;
  out["tokens_per_s"] = std::llround(best.tokens_per_s());
  out["tera_operations_per_s"] =
      Rounded(best.tokens_per_s() * operations_per_token / 1e12, 3);
  out["p50_ms"] = Rounded(best.p50_seconds * 1e3, 3);
  std::cout << out.dump() << std::endl;
}

}  // namespace
}  // namespace vitrine

int main(int argc, char** argv) {
  vitrine::Options options;
  CLI::App app(
      "Times an encoder's matrix products alone and prints one JSON line. "
      "ONEDNN_MAX_CPU_ISA caps the instructions.",
      "products_bench");
  app.add_option("--layers", options.layers, "Layers")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--hidden", options.hidden, "Width")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--intermediate", options.intermediate,
                 "Width inside a layer; 0: four times the width")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  app.add_option("--tokens", options.tokens, "Rows of all threads together")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--threads", options.threads, "Threads")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--dtype", options.dtype, "Type of weights and inputs")
      ->check(CLI::IsMember({"fp32", "bf16", "int8"}))
      ->capture_default_str();
  app.add_option("--split", options.split,
                 "What the threads share out (default: the better)")
      ->check(CLI::IsMember({"rows", "columns"}));
  app.add_option("--order", options.order,
                 "A layer for all blocks of rows first, or a block through all "
                 "layers (default: the better)")
      ->check(CLI::IsMember({"layers", "blocks"}));
  app.add_option("--block", options.block,
                 "Rows in one call; 0: the best of 64 to 512")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  app.add_option("--seconds", options.seconds, "Measured time")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  if (options.intermediate == 0) options.intermediate = 4 * options.hidden;
  try {
    vitrine::Bench(options);
  } catch (const dnnl::error& e) {
    std::cerr << "products_bench: " << options.dtype << ": " << e.what()
              << std::endl;
    return 1;
  }
  return 0;
}
