// Nodes of MLX's graph that call libraries of CUDA's, cuSOLVER and cuBLAS, on the node's stream. Rust makes the calls.
// Here inputs and outputs get their memory, and what MLX has gathered for the stream is launched before. Built by
// build.rs where cpp/kernel.cpp is; called through src/mlx/cuda/solver.rs alone.

#include <cstdint>
#include <cstring>
#include <exception>
#include <limits>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "mlx/c/array.h"
#include "mlx/c/error.h"
#include "mlx/c/private/enums.h"
#include "mlx/c/stream.h"
#include "mlx/allocator.h"
#include "mlx/array.h"
#include "mlx/ops.h"
#include "mlx/primitives.h"
#include "mlx_private.h"
#include "pending.h"

namespace core = mlx::core;

extern "C" {

// What Rust does of a node; the same in src/mlx/cuda/solver.rs. Both calls give false where they failed, after writing
// why into `message`. The stream is CUDA's, or null on the CPU.
struct emlx_solving {
  const void* payload;
  // Bytes of memory that the calls need beside inputs and outputs.
  bool (*scratch)(const void* payload, void* stream, size_t* bytes, char* message, size_t size);
  // Calls the library. The first outputs hold the inputs that are overwritten.
  bool (*run)(
      const void* payload,
      void* stream,
      const uint64_t* inputs,
      const uint64_t* outputs,
      uint64_t scratch,
      char* message,
      size_t size);
  void (*drop)(const void* payload);
};
}

namespace {

struct Owned {
  explicit Owned(const emlx_solving& solving) : of(solving) {}
  Owned(const Owned&) = delete;
  ~Owned() {
    of.drop(of.payload);
  }

  size_t scratch(void* stream) const {
    size_t bytes = 0;
    char message[256] = "failed without a message";
    if (!of.scratch(of.payload, stream, &bytes, message, sizeof(message))) {
      throw std::runtime_error(message);
    }
    return bytes;
  }

  void run(
      void* stream,
      const std::vector<uint64_t>& inputs,
      const std::vector<uint64_t>& outputs,
      uint64_t scratch) const {
    char message[256] = "failed without a message";
    if (!of.run(of.payload, stream, inputs.data(), outputs.data(), scratch, message, sizeof(message))) {
      throw std::runtime_error(message);
    }
  }

  const emlx_solving of;
};

core::array::Flags rows_of(const core::array& a) {
  size_t wide = 0;
  for (const auto size : a.shape()) {
    wide += size > 1;
  }
  return {.contiguous = true, .row_contiguous = true, .col_contiguous = wide <= 1};
}

// Inputs are in rows and have elements. The first `taken` outputs begin as copies of the first inputs.
class Solver : public core::Primitive {
 public:
  Solver(core::Stream s, const emlx_solving& solving, size_t taken)
      : core::Primitive(s), stream_(s), owned_(std::make_shared<Owned>(solving)), taken_(taken) {}

  // With a library for the CPU, which tests have.
  void eval_cpu(const std::vector<core::array>& inputs, std::vector<core::array>& outputs) override {
    auto& encoder = core::cpu::get_command_encoder(stream_);
    std::vector<core::array> from, to;
    for (const auto& input : inputs) {
      encoder.set_input_array(input);
      from.push_back(core::array::unsafe_weak_copy(input));
    }
    for (auto& output : outputs) {
      output.set_data(core::allocator::malloc(output.nbytes()));
      encoder.set_output_array(output);
      to.push_back(core::array::unsafe_weak_copy(output));
    }
    encoder.dispatch([owned = owned_, from = std::move(from), to = std::move(to), taken = taken_]() mutable {
      std::vector<uint64_t> given, made;
      for (auto& input : from) {
        given.push_back(reinterpret_cast<uint64_t>(input.data<void>()));
      }
      for (auto& output : to) {
        made.push_back(reinterpret_cast<uint64_t>(output.data<void>()));
      }
      for (size_t i = 0; i < taken; ++i) {
        std::memcpy(to[i].data<void>(), from[i].data<void>(), to[i].nbytes());
      }
      std::vector<double> scratch(owned->scratch(nullptr) / sizeof(double) + 1);
      owned->run(nullptr, given, made, reinterpret_cast<uint64_t>(scratch.data()));
    });
  }

  void eval_gpu(const std::vector<core::array>& inputs, std::vector<core::array>& outputs) override {
    auto& encoder = emlx::encoder_of(stream_);
    const size_t bytes = owned_->scratch(encoder.stream);
    std::vector<uint64_t> given, made;
    for (const auto& input : inputs) {
      given.push_back(emlx::device_address(input));
    }
    for (size_t i = 0; i < outputs.size(); ++i) {
      auto& output = outputs[i];
      if (i < taken_ && inputs[i].is_donatable() && inputs[i].flags().row_contiguous) {
        output.copy_shared_buffer(inputs[i]);
      } else {
        const auto memory = i < taken_ ? copied(inputs[i]) : fresh(inputs[0], output.size(), output.dtype());
        const core::array plain(output.shape(), output.dtype(), nullptr, {});
        output.copy_shared_buffer(memory, plain.strides(), rows_of(output), output.size());
      }
      made.push_back(emlx::device_address(output));
    }
    // 16 bytes more than asked for: MLX has other memory for single numbers.
    const auto scratch = fresh(inputs[0], bytes / sizeof(float) + 4, core::float32);
    if (encoder.node_count > 0) {
      emlx::submit_pending(stream_);
    }
    owned_->run(encoder.stream, given, made, emlx::device_address(scratch));
    // Until the stream is done with it. MLX holds inputs and outputs.
    encoder.temporaries.push_back(scratch.data_shared_ptr());
  }

  const char* name() const override {
    return "Solver";
  }

 private:
  // An array along one axis, made by MLX's copy of a view, so that it has memory of MLX's stream.
  core::array made(const core::array& from, size_t size, int64_t stride, core::Dtype dtype) const {
    if (size > static_cast<size_t>(std::numeric_limits<int32_t>::max())) {
      throw std::runtime_error("[linalg] the matrices need more than 2147483647 numbers at once");
    }
    core::array seen(core::Shape{static_cast<int32_t>(size)}, dtype, nullptr, {});
    // Not said to be in rows, or MLX shares the memory.
    const core::array::Flags none{.contiguous = false, .row_contiguous = false, .col_contiguous = false};
    seen.copy_shared_buffer(from, core::Strides{stride}, none, stride == 0 ? 1 : size);
    auto copy = core::contiguous(seen, false, stream_);
    std::vector<core::array> outputs{copy};
    copy.primitive().eval_gpu({seen}, outputs);
    return outputs[0];
  }

  core::array copied(const core::array& from) const {
    return made(from, from.size(), 1, from.dtype());
  }

  // Whose elements mean nothing. The type is no wider than that of `like`.
  core::array fresh(const core::array& like, size_t size, core::Dtype dtype) const {
    return made(like, size, 0, dtype);
  }

  const core::Stream stream_;
  const std::shared_ptr<Owned> owned_;
  const size_t taken_;
};

} // namespace

// The nodes of outputs of these shapes and types, the first `taken` of which have the shapes of the first inputs. The
// node owns its payload from here on, also where this fails. 0, or 1 with MLX's error handler called.
extern "C" int emlx_solver_nodes(
    mlx_array* res,
    emlx_solving solving,
    const mlx_array* inputs,
    size_t count,
    size_t taken,
    const int* const* shapes,
    const size_t* ranks,
    const mlx_dtype* dtypes,
    size_t output_count,
    const mlx_stream stream) {
  bool owned = false;
  try {
    const auto& s = *static_cast<const core::Stream*>(stream.ctx);
    auto primitive = std::make_shared<Solver>(s, solving, taken);
    owned = true;
    std::vector<core::array> arrays;
    arrays.reserve(count);
    for (size_t i = 0; i < count; ++i) {
      arrays.push_back(*static_cast<const core::array*>(inputs[i].ctx));
    }
    std::vector<core::Shape> all;
    std::vector<core::Dtype> types;
    for (size_t i = 0; i < output_count; ++i) {
      all.emplace_back(shapes[i], shapes[i] + ranks[i]);
      types.push_back(mlx_dtype_to_cpp(dtypes[i]));
    }
    auto made = core::array::make_arrays(std::move(all), types, std::move(primitive), arrays);
    for (size_t i = 0; i < output_count; ++i) {
      res[i].ctx = new core::array(std::move(made.at(i)));
    }
    return 0;
  } catch (const std::exception& e) {
    if (!owned) {
      solving.drop(solving.payload);
    }
    mlx_error("%s", e.what());
    return 1;
  }
}
