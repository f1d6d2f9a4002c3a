// A loop's step as a graph of CUDA's: what src/program/engine/captured_loop launches again and again. Its nodes are
// evaluated once, on arrays whose memory the loop has for its state, and MLX's encoder gathers the graph of their
// kernels. As in every evaluation of MLX's an operation may write over an array that nothing else needs, so a step
// updates a cache where it lies. Called through src/mlx/cuda/step.rs alone.

#include <cstdint>
#include <exception>
#include <deque>
#include <memory>
#include <unordered_set>
#include <utility>
#include <vector>

#include "mlx/allocator.h"
#include "mlx/array.h"
#include "mlx/c/array.h"
#include "mlx/c/error.h"
#include "mlx/c/private/enums.h"
#include "mlx/c/stream.h"
#include "mlx/primitives.h"
#include "mlx_private.h"
#include "pending.h"
#include "walk.h"

namespace core = mlx::core;

extern "C" {

// What Rust does with the graph and the edges between its nodes: it has its own afterwards, and gives false where that
// failed. The same in src/mlx/cuda/step.rs.
struct emlx_taking {
  void* payload;
  bool (*take)(void* payload, void* graph, void* const* from, void* const* to, size_t count);
};
}

namespace {

using Held = std::shared_ptr<core::array::Data>;

// The memory that a step's kernels use.
struct Step {
  std::vector<Held> held;

  // The size of it, without what is a part of `whole`.
  size_t bytes_beside(const core::array& whole) const {
    const auto start = emlx::device_address(whole), end = start + whole.nbytes();
    size_t bytes = 0;
    std::unordered_set<const core::array::Data*> seen;
    for (const auto& data : held) {
      const auto* buffer = data ? static_cast<const emlx::CudaBuffer*>(data->buffer.ptr()) : nullptr;
      if (buffer && seen.insert(data.get()).second) {
        const auto address = reinterpret_cast<uint64_t>(buffer->data);
        bytes += address >= start && address < end ? 0 : buffer->size;
      }
    }
    return bytes;
  }
};

// Evaluates nodes into the stream's encoder. An array's memory is held as soon as something has read it: then nothing
// writes over it, but for the operation that reads it first and alone.
void evaluate(std::deque<core::array>& order, const std::unordered_set<const core::array::Data*>& fixed, Step& step) {
  while (!order.empty()) {
    auto a = std::move(order.front());
    order.pop_front();
    auto outputs = a.outputs();
    a.primitive().eval_gpu(a.inputs(), outputs);
    std::unordered_set<const core::array::Data*> own;
    for (auto& output : outputs) {
      output.set_status(core::array::Status::evaluated);
      own.insert(output.data_shared_ptr().get());
    }
    for (const auto& input : a.inputs()) {
      const auto& data = input.data_shared_ptr();
      if (data && !own.contains(data.get()) && !fixed.contains(data.get())) {
        step.held.push_back(data);
      }
    }
    for (const auto& sibling : a.siblings()) {
      step.held.push_back(sibling.data_shared_ptr());
    }
    a.detach();
  }
}

} // namespace

// An array in a part of another one's memory, which has to live longer. 0, or 1 with MLX's error handler called.
extern "C" int emlx_step_part(
    mlx_array* res, const mlx_array whole, size_t offset, const int* shape, size_t rank, mlx_dtype dtype) {
  try {
    const auto& of = *static_cast<const core::array*>(whole.ctx);
    const auto* buffer = static_cast<const emlx::CudaBuffer*>(of.buffer().ptr());
    const core::Shape own(shape, shape + rank);
    size_t bytes = mlx_dtype_to_cpp(dtype).size();
    for (const auto size : own) {
      bytes *= size;
    }
    if (!buffer || offset + bytes > of.nbytes()) {
      throw std::runtime_error("[step] a part lies outside of the memory");
    }
    auto part = std::make_unique<emlx::CudaBuffer>(
        emlx::CudaBuffer{reinterpret_cast<void*>(emlx::device_address(of) + offset), bytes, buffer->device});
    res->ctx = new core::array(
        core::allocator::Buffer(part.get()), own, mlx_dtype_to_cpp(dtype), [](core::allocator::Buffer b) {
          delete static_cast<emlx::CudaBuffer*>(b.ptr());
        });
    part.release();
    return 0;
  } catch (const std::exception& e) {
    mlx_error("%s", e.what());
    return 1;
  }
}

// Evaluates `outs`, hands the graph over and launches it once. `fixed` are arrays whose memory stays with their owners.
// `held` is the step's memory, and `bytes` the size of what is no part of `whole`. 0; 2 where the nodes are not all the stream's, or their graph is
// not one; 1 with MLX's error handler called.
extern "C" int emlx_step_capture(
    void** held,
    size_t* bytes,
    const mlx_array* outs,
    size_t count,
    const mlx_array* fixed,
    size_t fixed_count,
    const mlx_array whole,
    const mlx_stream stream,
    emlx_taking taking) {
  const auto& s = *static_cast<const core::Stream*>(stream.ctx);
  auto step = std::make_unique<Step>();
  try {
    std::vector<core::array> all;
    for (size_t i = 0; i < count; ++i) {
      all.push_back(*static_cast<const core::array*>(outs[i].ctx));
    }
    std::unordered_set<const core::array::Data*> theirs;
    for (size_t i = 0; i < fixed_count; ++i) {
      theirs.insert(static_cast<const core::array*>(fixed[i].ctx)->data_shared_ptr().get());
    }
    auto order = emlx::in_order(all, s, [](const core::array&) { return true; });
    if (!order) {
      return 2;
    }
    emlx::submit_pending(s);
    auto& encoder = emlx::encoder_of(s);
    const void* graph = encoder.graph;
    bool is_taken = false;
    std::exception_ptr failure;
    try {
      evaluate(*order, theirs, *step);
      for (const auto& out : all) {
        const auto& data = out.data_shared_ptr();
        if (data && !theirs.contains(data.get())) {
          step->held.push_back(data);
        }
      }
      // What the kernels need beside arrays.
      step->held.insert(step->held.end(), encoder.temporaries.begin(), encoder.temporaries.end());
      const bool is_whole = encoder.graph == graph && encoder.node_count > 0 && !encoder.in_concurrent;
      is_taken = is_whole &&
          taking.take(taking.payload, encoder.graph, encoder.from_nodes.data(), encoder.to_nodes.data(), encoder.from_nodes.size());
      if (is_taken) {
        // The edges are in the graph by now.
        encoder.from_nodes.clear();
        encoder.to_nodes.clear();
      }
    } catch (const std::exception&) {
      failure = std::current_exception();
    }
    // MLX launches what there is, and keeps its memory as long as it runs.
    encoder.temporaries.insert(encoder.temporaries.end(), step->held.begin(), step->held.end());
    emlx::submit_pending(s);
    if (failure) {
      std::rethrow_exception(failure);
    }
    if (!is_taken) {
      return 2;
    }
    *bytes = step->bytes_beside(*static_cast<const core::array*>(whole.ctx));
    *held = step.release();
    return 0;
  } catch (const std::exception& e) {
    mlx_error("%s", e.what());
    return 1;
  }
}

extern "C" void emlx_step_free(void* held) {
  delete static_cast<Step*>(held);
}

// Remembers an array that is read where it lies, without holding its memory.
extern "C" void* emlx_fixed_new(const mlx_array array) {
  return new emlx::Fixed(emlx::Fixed::of(*static_cast<const core::array*>(array.ctx)));
}

extern "C" bool emlx_fixed_is(const void* fixed, const mlx_array array) {
  return static_cast<const emlx::Fixed*>(fixed)->is(*static_cast<const core::array*>(array.ctx));
}

extern "C" void emlx_fixed_free(void* fixed) {
  delete static_cast<emlx::Fixed*>(fixed);
}
