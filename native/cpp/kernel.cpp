// An operation of MLX's graph whose kernel is a function of this crate's (src/kernels/). Built by build.rs where there is no
// Accelerate; called by src/kernels/node.rs alone. MLX has no C interface for operations of one's own, so this is the one file of C++.

#include <cstdint>
#include <exception>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "mlx/c/array.h"
#include "mlx/c/error.h"
#include "mlx/c/stream.h"
#include "mlx/allocator.h"
#include "mlx/array.h"
#include "mlx/backend/cpu/encoder.h"
#include "mlx/primitives.h"

namespace core = mlx::core;

extern "C" {

// What a kernel sees of an array while it runs; the same in src/kernels/node.rs.
struct emlx_view {
  void* data;
  const int32_t* shape;
  const int64_t* strides;
  size_t rank;
  // Elements from `data` on without gaps in an order that all arrays share, or 0.
  size_t flat;
  bool row_contiguous;
};

// A kernel and what is done with it. `run` gives false where it failed, after writing why into `message`.
struct emlx_kernel {
  const void* kernel;
  const char* name;
  bool (*run)(const void* kernel, const emlx_view* inputs, size_t count, const emlx_view* out, char* message, size_t size);
  bool (*equal)(const void* kernel, const void* other);
  void (*drop)(const void* kernel);
};
}

namespace {

// As in src/kernels/node.rs.
enum Layout { ROWS = 0, ELEMENTWISE = 1, LIKE_FIRST = 2, HEADS_INSIDE = 3 };

class Kernel : public core::UnaryPrimitive {
 public:
  Kernel(core::Stream stream, const emlx_kernel& kernel, int layout)
      : core::UnaryPrimitive(stream), kernel_(std::make_shared<Owned>(kernel)), layout_(layout) {}

  void eval_cpu(const std::vector<core::array>& inputs, core::array& out) override {
    const bool same = allocate(inputs, out);
    std::vector<core::array> held;
    held.reserve(inputs.size());
    for (const auto& input : inputs) {
      held.push_back(core::array::unsafe_weak_copy(input));
    }
    auto& encoder = core::cpu::get_command_encoder(stream());
    for (const auto& input : inputs) {
      encoder.set_input_array(input);
    }
    encoder.set_output_array(out);
    encoder.dispatch([kernel = kernel_, held = std::move(held), out = core::array::unsafe_weak_copy(out), same]() mutable {
      std::vector<emlx_view> views;
      views.reserve(held.size());
      for (auto& input : held) {
        views.push_back(view(input, same));
      }
      const emlx_view result = view(out, same);
      char message[256] = "failed without a message";
      if (!kernel->of.run(kernel->of.kernel, views.data(), views.size(), &result, message, sizeof(message))) {
        throw std::runtime_error(std::string("[") + kernel->of.name + "] " + message);
      }
    });
  }

  void eval_gpu(const std::vector<core::array>&, core::array&) override {
    throw std::runtime_error(std::string("[") + name() + "] is a kernel for the CPU");
  }

  const char* name() const override {
    return kernel_->of.name;
  }

  bool is_equivalent(const core::Primitive& other) const override {
    const auto& that = static_cast<const Kernel&>(other);
    return kernel_->of.equal(kernel_->of.kernel, that.kernel_->of.kernel);
  }

 private:
  struct Owned {
    explicit Owned(const emlx_kernel& kernel) : of(kernel) {}
    Owned(const Owned&) = delete;
    ~Owned() {
      of.drop(of.kernel);
    }
    const emlx_kernel of;
  };

  static emlx_view view(core::array& a, bool same) {
    return {
        // An empty array has no buffer.
        a.size() == 0 ? nullptr : a.data<void>(),
        a.shape().data(),
        a.strides().data(),
        a.ndim(),
        same ? a.data_size() : 0,
        a.flags().row_contiguous};
  }

  // Gives `out` its memory, as src/kernels/node.rs says of each layout. True where all arrays are laid out alike, without gaps.
  bool allocate(const std::vector<core::array>& inputs, core::array& out) const {
    const auto& first = inputs[0];
    if (layout_ == ELEMENTWISE) {
      bool same = first.flags().contiguous;
      for (const auto& input : inputs) {
        same = same && input.shape() == out.shape() && input.strides() == first.strides() && input.flags().contiguous &&
            input.data_size() == first.data_size();
      }
      if (same) {
        take_layout(first, out);
        return true;
      }
    }
    if (layout_ == LIKE_FIRST && first.ndim() > 0 && first.flags().contiguous && first.strides().back() == 1 &&
        first.data_size() == first.size()) {
      take_layout(first, out);
      return false;
    }
    if (layout_ == HEADS_INSIDE && out.size() > 0) {
      const int64_t heads = out.shape(1), length = out.shape(2), size = out.shape(3);
      const core::Strides strides{heads * length * size, size, heads * size, 1};
      core::array::Flags flags{.contiguous = true, .row_contiguous = true, .col_contiguous = true};
      int64_t below = 1, above = 1;
      for (int i = 0; i < 4; ++i) {
        flags.col_contiguous = flags.col_contiguous && (out.shape(i) == 1 || strides[i] == above);
        flags.row_contiguous = flags.row_contiguous && (out.shape(3 - i) == 1 || strides[3 - i] == below);
        above *= out.shape(i);
        below *= out.shape(3 - i);
      }
      out.set_data(core::allocator::malloc(out.nbytes()), out.size(), strides, flags);
      return false;
    }
    out.set_data(core::allocator::malloc(out.nbytes()));
    return false;
  }

  // The input's layout, and its memory where nobody else needs it.
  static void take_layout(const core::array& in, core::array& out) {
    if (may_take(in, out)) {
      out.copy_shared_buffer(in);
    } else {
      out.set_data(core::allocator::malloc(in.data_size() * out.itemsize()), in.data_size(), in.strides(), in.flags());
    }
  }

  // As MLX's own operations decide it.
  static bool may_take(const core::array& in, const core::array& out) {
    return in.is_donatable() && in.itemsize() == out.itemsize() && in.buffer_size() <= out.nbytes() + 16384;
  }

  const std::shared_ptr<Owned> kernel_;
  const int layout_;
};

} // namespace

// A node that computes `kernel`, which it owns from here on. 0, or 1 with MLX's error handler called.
extern "C" int emlx_kernel_node(
    mlx_array* res,
    emlx_kernel kernel,
    int layout,
    const mlx_array* inputs,
    size_t count,
    const int* shape,
    size_t rank,
    mlx_array like,
    const mlx_stream stream) {
  bool owned = false;
  try {
    const auto& s = *static_cast<const core::Stream*>(stream.ctx);
    auto primitive = std::make_shared<Kernel>(s, kernel, layout);
    owned = true;
    std::vector<core::array> arrays;
    arrays.reserve(count);
    for (size_t i = 0; i < count; ++i) {
      arrays.push_back(*static_cast<const core::array*>(inputs[i].ctx));
    }
    const auto dtype = static_cast<const core::array*>(like.ctx)->dtype();
    res->ctx = new core::array(core::Shape(shape, shape + rank), dtype, std::move(primitive), std::move(arrays));
    return 0;
  } catch (const std::exception& e) {
    if (!owned) {
      kernel.drop(kernel.kernel);
    }
    mlx_error("%s", e.what());
    return 1;
  }
}
