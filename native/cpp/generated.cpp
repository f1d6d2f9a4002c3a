// Nodes of MLX's graph whose kernel for CUDA is written and compiled by us: src/op/cuda/chain. How the inputs lie is
// known when the node is evaluated; then Rust names the kernel, and MLX launches it as one that came compiled. Built by
// build.rs where cpp/kernel.cpp is; called through src/mlx/cuda/generated.rs alone.

#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "mlx/c/array.h"
#include "mlx/c/error.h"
#include "mlx/c/private/enums.h"
#include "mlx/c/stream.h"
#include "mlx/allocator.h"
#include "mlx/array.h"
#include "mlx/fast.h"
#include "mlx/primitives.h"
#include "composed.h"

namespace core = mlx::core;

extern "C" {

// How an array lies; the same in src/mlx/cuda/generated.rs.
struct emlx_layout {
  const int32_t* shape;
  const int64_t* strides;
  size_t rank;
};

// A launch of a compiled kernel, which lives as long as the process; the same in src/mlx/cuda/generated.rs. Whoever
// asks for it has room for `capacity` arguments.
struct emlx_launch {
  const char* name;
  const uint8_t* image;
  size_t bytes;
  int32_t* arguments;
  size_t capacity;
  size_t count;
  int32_t blocks;
  int32_t threads;
};

// What Rust does of a node; the same in src/mlx/cuda/generated.rs. `build` and `drop` are as in cpp/captured.cpp.
struct emlx_generated {
  const void* payload;
  // Finds the launch for inputs and results that lie so. False where there is none.
  bool (*launch)(
      const void* payload, const emlx_layout* inputs, size_t count, const emlx_layout* out, emlx_launch* launch);
  emlx::Build build;
  void (*drop)(const void* payload);
  // Whether results lie as inputs of their shape do, where these agree; else they lie in rows.
  bool keeps_layout;
};

// An output's shape; the same in src/mlx/cuda/generated.rs.
struct emlx_output {
  const int32_t* shape;
  size_t rank;
  mlx_dtype dtype;
};
}

namespace {

// More than a launch has room for.
constexpr size_t most_arguments = 1024;

// MLX's nodes of compiled kernels by all that they are made of, the inputs' and outputs' arrays aside.
class Launches {
 public:
  std::shared_ptr<core::Primitive> of(
      const emlx_launch& launch,
      const std::vector<core::array>& inputs,
      const std::vector<core::array>& outputs,
      const core::Stream& s) {
    std::string key(launch.name);
    const auto add = [&key](int32_t value) { key.append(reinterpret_cast<const char*>(&value), sizeof(value)); };
    add(s.index);
    add(launch.blocks);
    for (size_t i = 0; i < launch.count; ++i) {
      add(launch.arguments[i]);
    }
    std::lock_guard<std::mutex> guard(lock_);
    if (const auto found = known_.find(key); found != known_.end()) {
      return found->second;
    }
    std::vector<core::Shape> shapes;
    std::vector<core::Dtype> dtypes;
    for (const auto& output : outputs) {
      shapes.push_back(output.shape());
      dtypes.push_back(output.dtype());
    }
    const std::vector<core::fast::ScalarArg> arguments(launch.arguments, launch.arguments + launch.count);
    const std::string image(reinterpret_cast<const char*>(launch.image), launch.bytes);
    const auto made = core::fast::precompiled_cuda_kernel(
        launch.name,
        image,
        inputs,
        shapes,
        dtypes,
        arguments,
        {launch.blocks * launch.threads, 1, 1},
        {launch.threads, 1, 1},
        0,
        std::nullopt,
        false,
        s);
    // More than a process has use for; a program with ever new shapes should not fill the memory.
    constexpr size_t most = 4096;
    if (known_.size() >= most) {
      known_.clear();
    }
    return known_.emplace(key, made.at(0).primitive_ptr()).first->second;
  }

 private:
  std::mutex lock_;
  std::unordered_map<std::string, std::shared_ptr<core::Primitive>> known_;
};

class Generated : public core::Primitive {
 public:
  Generated(core::Stream s, const emlx_generated& rust) : core::Primitive(s), rust_(rust) {}
  Generated(const Generated&) = delete;
  ~Generated() override {
    rust_.drop(rust_.payload);
  }

  void eval_cpu(const std::vector<core::array>&, std::vector<core::array>&) override {
    throw std::runtime_error("[generated] is a kernel for CUDA");
  }

  void eval_gpu(const std::vector<core::array>& inputs, std::vector<core::array>& outputs) override {
    static Launches* launches = new Launches();
    const core::array* like = rust_.keeps_layout ? common_layout(inputs, outputs[0]) : nullptr;
    // Another array than an output, which has its layout only once it has memory.
    std::vector<core::array> made;
    for (const auto& output : outputs) {
      made.emplace_back(output.shape(), output.dtype(), nullptr, std::vector<core::array>{});
    }
    const auto layout = [](const core::array& a) {
      return emlx_layout{a.shape().data(), a.strides().data(), a.ndim()};
    };
    std::vector<emlx_layout> layouts;
    for (const auto& input : inputs) {
      layouts.push_back(layout(input));
    }
    const emlx_layout out = layout(like ? *like : made[0]);
    int32_t arguments[most_arguments];
    emlx_launch launch{nullptr, nullptr, 0, arguments, most_arguments, 0, 0, 0};
    if (!rust_.launch(rust_.payload, layouts.data(), layouts.size(), &out, &launch)) {
      return emlx::compute(emlx::built(rust_.build, rust_.payload, "generated", inputs, outputs.size()), outputs);
    }
    launches->of(launch, inputs, made, stream())->eval_gpu(inputs, made);
    for (size_t i = 0; i < outputs.size(); ++i) {
      if (like) {
        outputs[i].copy_shared_buffer(made[i], like->strides(), like->flags(), like->data_size());
      } else {
        outputs[i].copy_shared_buffer(made[i]);
      }
    }
  }

  const char* name() const override {
    return "Generated";
  }

 private:
  // An input with the layout that the results take over: that of all inputs of their shape, where these have no gaps
  // and agree. None where rows do as well.
  static const core::array* common_layout(const std::vector<core::array>& inputs, const core::array& out) {
    const core::array* like = nullptr;
    for (const auto& input : inputs) {
      if (input.shape() != out.shape()) {
        continue;
      }
      bool is_whole = input.flags().contiguous && input.data_size() == input.size();
      for (const auto stride : input.strides()) {
        is_whole = is_whole && stride >= 0;
      }
      if (!is_whole || (like && input.strides() != like->strides())) {
        return nullptr;
      }
      like = &input;
    }
    return like && !like->flags().row_contiguous ? like : nullptr;
  }

  const emlx_generated rust_;
};

} // namespace

// The nodes of a kernel's outputs. The kernel owns its payload from here on, also where this fails. 0, or 1 with MLX's
// error handler called.
extern "C" int emlx_generated_nodes(
    mlx_array* res,
    emlx_generated rust,
    const mlx_array* inputs,
    size_t count,
    const emlx_output* outputs,
    size_t output_count,
    const mlx_stream stream) {
  bool owned = false;
  try {
    const auto& s = *static_cast<const core::Stream*>(stream.ctx);
    auto primitive = std::make_shared<Generated>(s, rust);
    owned = true;
    std::vector<core::array> arrays;
    arrays.reserve(count);
    for (size_t i = 0; i < count; ++i) {
      arrays.push_back(*static_cast<const core::array*>(inputs[i].ctx));
    }
    std::vector<core::Shape> shapes;
    std::vector<core::Dtype> types;
    for (size_t i = 0; i < output_count; ++i) {
      shapes.emplace_back(outputs[i].shape, outputs[i].shape + outputs[i].rank);
      types.push_back(mlx_dtype_to_cpp(outputs[i].dtype));
    }
    auto made = core::array::make_arrays(shapes, types, std::move(primitive), arrays);
    for (size_t i = 0; i < output_count; ++i) {
      res[i].ctx = new core::array(std::move(made.at(i)));
    }
    return 0;
  } catch (const std::exception& e) {
    if (!owned) {
      rust.drop(rust.payload);
    }
    mlx_error("%s", e.what());
    return 1;
  }
}
