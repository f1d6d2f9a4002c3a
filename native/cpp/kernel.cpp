// Operations of MLX's graph whose kernel is our own: a function in Rust (native/cpu) on the CPU, a text in CUDA's C++
// (src/op/cuda/) on the GPU. Built by build.rs where there is no Accelerate; called through src/mlx alone. MLX has no C
// interface for operations of one's own, hence C++.

#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "buffers.h"
#include "mlx/c/array.h"
#include "mlx/c/error.h"
#include "mlx/c/private/enums.h"
#include "mlx/c/stream.h"
#include "mlx/allocator.h"
#include "mlx/array.h"
#include "mlx/fast.h"
#include "mlx/primitives.h"
#include "mlx_private.h"

namespace core = mlx::core;

extern "C" {

// What a kernel sees of an array while it runs; the same in native/cpu/src/view.rs.
struct emlx_view {
  void* data;
  const int32_t* shape;
  const int64_t* strides;
  size_t rank;
};

// A kernel and what is done with it. `run` gives false where it failed, after writing why into `message`.
struct emlx_kernel {
  const void* kernel;
  const char* name;
  bool (*run)(
      const void* kernel,
      const emlx_view* inputs,
      size_t count,
      const emlx_view* outs,
      size_t out_count,
      char* message,
      size_t size);
  bool (*equal)(const void* kernel, const void* other);
  void (*drop)(const void* kernel);
};
}

namespace {

// As in src/cpu/node.rs.
enum Layout { ROWS = 0, TOGETHER = 1, LIKE_FIRST = 2, HEADS_INSIDE = 3, RESHAPED = 4 };

class Kernel : public core::Primitive {
 public:
  // How many inputs and outputs have one shape and layout.
  struct Part {
    size_t inputs;
    size_t outputs;
  };

  Kernel(
      core::Stream stream,
      const emlx_kernel& kernel,
      int layout,
      std::vector<uint8_t> takers,
      std::vector<Part> parts = {})
      : core::Primitive(stream),
        kernel_(std::make_shared<Owned>(kernel)),
        layout_(layout),
        takers_(std::move(takers)),
        parts_(std::move(parts)) {}

  void eval_cpu(const std::vector<core::array>& inputs, std::vector<core::array>& outs) override {
    if (layout_ == RESHAPED && reshape(inputs[0], outs[0])) {
      return;
    }
    if (!parts_.empty()) {
      size_t input = 0, out = 0;
      for (const auto& part : parts_) {
        allocate_all(inputs.data() + input, takers_.data() + input, part.inputs, outs.data() + out, part.outputs);
        input += part.inputs;
        out += part.outputs;
      }
    } else if (outs.size() == 1) {
      allocate(inputs, outs[0]);
    } else {
      allocate_all(inputs.data(), takers_.data(), inputs.size(), outs.data(), outs.size());
    }
    auto& encoder = core::cpu::get_command_encoder(stream());
    std::vector<core::array> held;
    held.reserve(inputs.size() + outs.size());
    for (const auto& input : inputs) {
      held.push_back(core::array::unsafe_weak_copy(input));
      encoder.set_input_array(input);
    }
    for (auto& out : outs) {
      held.push_back(core::array::unsafe_weak_copy(out));
      encoder.set_output_array(out);
    }
    encoder.dispatch([kernel = kernel_, held = std::move(held), count = inputs.size()]() mutable {
      run(kernel->of, held, count);
    });
  }

  void eval_gpu(const std::vector<core::array>&, std::vector<core::array>&) override {
    throw std::runtime_error(std::string("[") + name() + "] is a kernel for the CPU");
  }

  const char* name() const override {
    return kernel_->of.name;
  }

  bool is_equivalent(const core::Primitive& other) const override {
    const auto& that = static_cast<const Kernel&>(other);
    return kernel_->of.equal(kernel_->of.kernel, that.kernel_->of.kernel);
  }

  struct Owned {
    explicit Owned(const emlx_kernel& kernel) : of(kernel) {}
    Owned(const Owned&) = delete;
    ~Owned() {
      of.drop(of.kernel);
    }
    const emlx_kernel of;
  };

  // Computes a kernel where it is asked for, into arrays in rows.
  static std::vector<core::array> now(
      const emlx_kernel& kernel,
      std::vector<core::array> arrays,
      const core::Shape& shape,
      const std::vector<core::Dtype>& dtypes) {
    const size_t count = arrays.size();
    size_t size = 1;
    for (auto length : shape) {
      size *= length;
    }
    for (const auto& dtype : dtypes) {
      arrays.emplace_back(emlx::take_buffer(size * dtype.size()), shape, dtype, emlx::give_buffer);
    }
    run(kernel, arrays, count);
    arrays.erase(arrays.begin(), arrays.begin() + count);
    return arrays;
  }

  static emlx_view view(core::array& a) {
    // An empty array has no buffer.
    return {a.size() == 0 ? nullptr : a.data<void>(), a.shape().data(), a.strides().data(), a.ndim()};
  }

 private:
  // Runs a kernel on its inputs, of which there are `count`, and its outputs behind them.
  static void run(const emlx_kernel& kernel, std::vector<core::array>& arrays, size_t count) {
    std::vector<emlx_view> views;
    views.reserve(arrays.size());
    for (auto& array : arrays) {
      views.push_back(view(array));
    }
    const size_t outs = arrays.size() - count;
    char message[256] = "failed without a message";
    if (!kernel.run(kernel.kernel, views.data(), count, views.data() + count, outs, message, sizeof(message))) {
      throw std::runtime_error(std::string("[") + kernel.name + "] " + message);
    }
  }

  // Gives outputs of one shape their memory: all have the layout of the inputs of their shape where these agree, else
  // they lie in rows. An output may have an input's memory if `takers` says that it is not too early.
  static void allocate_all(
      const core::array* inputs, const uint8_t* takers, size_t count, core::array* outs, size_t out_count) {
    const core::array* like = nullptr;
    bool agree = true;
    for (size_t j = 0; j < count; ++j) {
      const auto& input = inputs[j];
      if (input.shape() == outs[0].shape()) {
        like = like ? like : &input;
        agree = agree && is_whole(input) && input.strides() == like->strides();
      }
    }
    agree = agree && like;
    std::vector<bool> is_taken(count, false);
    for (size_t i = 0; i < out_count; ++i) {
      size_t taken = count;
      for (size_t j = 0; j < count && taken == count; ++j) {
        const auto& input = inputs[j];
        const bool fits = input.shape() == outs[i].shape() && (agree || (is_whole(input) && input.flags().row_contiguous));
        // An array that is two inputs is needed by both.
        if (fits && !is_taken[j] && takers[j] <= i && may_take(input, outs[i])) {
          taken = j;
        }
      }
      if (taken < count) {
        is_taken[taken] = true;
        outs[i].copy_shared_buffer(inputs[taken]);
      } else if (agree) {
        const size_t size = like->data_size();
        emlx::give_memory(outs[i], size, like->strides(), like->flags());
      } else {
        emlx::give_memory(outs[i]);
      }
    }
  }

  static bool is_whole(const core::array& a) {
    return a.flags().contiguous && a.data_size() == a.size();
  }

  // Gives `out` its memory, as src/cpu/node.rs says of each layout.
  void allocate(const std::vector<core::array>& inputs, core::array& out) const {
    const auto& first = inputs[0];
    if (layout_ == TOGETHER && take_together(inputs, out)) {
      return;
    }
    if (layout_ == LIKE_FIRST && first.ndim() > 0 && first.flags().contiguous && first.strides().back() == 1 &&
        first.data_size() == first.size()) {
      take_layout(first, out);
      return;
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
      emlx::give_memory(out, out.size(), strides, flags);
      return;
    }
    emlx::give_memory(out);
  }

  // Another look at an array in the shape of `out`, whose size it has. False where elements have to be moved for that.
  static bool reshape(const core::array& in, core::array& out) {
    // Axes of the array that lie as one, from the innermost, and the elements between two places of each.
    std::vector<std::pair<int64_t, int64_t>> runs;
    for (int axis = in.ndim() - 1; axis >= 0; --axis) {
      const int64_t size = in.shape(axis), step = in.strides()[axis];
      if (size == 1) {
        continue;
      }
      if (!runs.empty() && step == runs.back().first * runs.back().second) {
        runs.back().first *= size;
      } else {
        runs.emplace_back(size, step);
      }
    }
    core::Strides strides(out.ndim(), 1);
    size_t run = 0;
    int64_t below = 1;
    for (int axis = out.ndim() - 1; axis >= 0; --axis) {
      const int64_t size = out.shape(axis);
      if (run < runs.size() && below == runs[run].first && size > 1) {
        below = 1;
        ++run;
      }
      if (run == runs.size()) {
        // Axes of one element are left.
        strides[axis] = below;
        continue;
      }
      const auto [whole, step] = runs[run];
      if (whole % (below * size) != 0) {
        return false;
      }
      strides[axis] = below * step;
      below *= size;
    }
    auto flags = in.flags();
    flags.row_contiguous = flags.col_contiguous = in.data_size() == out.size();
    int64_t rows = 1, columns = 1;
    for (int i = 0; i < static_cast<int>(out.ndim()); ++i) {
      const int last = out.ndim() - 1 - i;
      flags.row_contiguous = flags.row_contiguous && (out.shape(last) == 1 || strides[last] == rows);
      flags.col_contiguous = flags.col_contiguous && (out.shape(i) == 1 || strides[i] == columns);
      rows *= out.shape(last);
      columns *= out.shape(i);
    }
    out.copy_shared_buffer(in, strides, flags, in.data_size());
    return true;
  }

  // The layout of all inputs of the result's shape, and the memory of one that nobody else needs. False where they do
  // not agree and none of them that is laid out in rows can be taken.
  static bool take_together(const std::vector<core::array>& inputs, core::array& out) {
    const core::array* like = nullptr;
    const core::array* taken = nullptr;
    bool agree = true;
    for (const auto& input : inputs) {
      if (input.shape() != out.shape()) {
        continue;
      }
      const bool whole = is_whole(input);
      like = like ? like : &input;
      agree = agree && whole && input.strides() == like->strides();
      if (!taken && whole && may_take(input, out)) {
        taken = &input;
      }
    }
    if (!like || !(agree || (taken && taken->flags().row_contiguous))) {
      return false;
    }
    take_layout(taken ? *taken : *like, out);
    return true;
  }

  // The input's layout, and its memory where nobody else needs it.
  static void take_layout(const core::array& in, core::array& out) {
    if (may_take(in, out)) {
      out.copy_shared_buffer(in);
    } else {
      emlx::give_memory(out, in.data_size(), in.strides(), in.flags());
    }
  }

  // As MLX's own operations decide it.
  static bool may_take(const core::array& in, const core::array& out) {
    return in.is_donatable() && in.itemsize() == out.itemsize() && in.buffer_size() <= out.nbytes() + 16384;
  }

  const std::shared_ptr<Owned> kernel_;
  const int layout_;
  // For each input the number of the first output that may have its memory, where there are several.
  const std::vector<uint8_t> takers_;
  // Where outputs are of several shapes: what belongs together, in the order of inputs and outputs.
  const std::vector<Part> parts_;
};

} // namespace

// Arrays that a kernel takes and makes. Outputs are of one shape. `takers` has a number for each input, or is null where
// there is one output.
extern "C" struct emlx_arrays {
  const mlx_array* inputs;
  size_t count;
  const uint8_t* takers;
  const int* shape;
  size_t rank;
  const mlx_dtype* dtypes;
  size_t outputs;
};

// A node that computes `kernel`, which it owns from here on. 0, or 1 with MLX's error handler called.
extern "C" int emlx_kernel_node(
    mlx_array* res, emlx_kernel kernel, int layout, const emlx_arrays* of, const mlx_stream stream) {
  bool owned = false;
  try {
    const auto& s = *static_cast<const core::Stream*>(stream.ctx);
    std::vector<uint8_t> takers;
    if (of->takers) {
      takers.assign(of->takers, of->takers + of->count);
    }
    auto primitive = std::make_shared<Kernel>(s, kernel, layout, std::move(takers));
    owned = true;
    std::vector<core::array> arrays;
    arrays.reserve(of->count);
    for (size_t i = 0; i < of->count; ++i) {
      arrays.push_back(*static_cast<const core::array*>(of->inputs[i].ctx));
    }
    core::Shape shape(of->shape, of->shape + of->rank);
    if (of->outputs == 1) {
      const auto dtype = mlx_dtype_to_cpp(of->dtypes[0]);
      res->ctx = new core::array(std::move(shape), dtype, std::move(primitive), std::move(arrays));
      return 0;
    }
    std::vector<core::Dtype> dtypes;
    for (size_t i = 0; i < of->outputs; ++i) {
      dtypes.push_back(mlx_dtype_to_cpp(of->dtypes[i]));
    }
    std::vector<core::Shape> shapes(of->outputs, shape);
    auto made = core::array::make_arrays(std::move(shapes), dtypes, std::move(primitive), arrays);
    for (size_t i = 0; i < of->outputs; ++i) {
      res[i].ctx = new core::array(std::move(made[i]));
    }
    return 0;
  } catch (const std::exception& e) {
    if (!owned) {
      kernel.drop(kernel.kernel);
    }
    mlx_error("%s", e.what());
    return 1;
  }
}

// What of a node's inputs and outputs belongs together; laid out as in src/mlx.
extern "C" struct emlx_part {
  size_t inputs;
  size_t outputs;
  const int* shape;
  size_t rank;
};

// The same for outputs of several shapes, one for each of `parts`. `of` has all inputs, takers and types of outputs.
extern "C" int emlx_parts_node(
    mlx_array* res,
    emlx_kernel kernel,
    const emlx_part* parts,
    size_t part_count,
    const emlx_arrays* of,
    const mlx_stream stream) {
  bool owned = false;
  try {
    const auto& s = *static_cast<const core::Stream*>(stream.ctx);
    std::vector<Kernel::Part> kept;
    std::vector<core::Shape> shapes;
    for (size_t i = 0; i < part_count; ++i) {
      kept.push_back({parts[i].inputs, parts[i].outputs});
      shapes.insert(shapes.end(), parts[i].outputs, core::Shape(parts[i].shape, parts[i].shape + parts[i].rank));
    }
    std::vector<uint8_t> takers(of->takers, of->takers + of->count);
    auto primitive = std::make_shared<Kernel>(s, kernel, TOGETHER, std::move(takers), std::move(kept));
    owned = true;
    std::vector<core::array> arrays;
    arrays.reserve(of->count);
    for (size_t i = 0; i < of->count; ++i) {
      arrays.push_back(*static_cast<const core::array*>(of->inputs[i].ctx));
    }
    std::vector<core::Dtype> dtypes;
    for (size_t i = 0; i < of->outputs; ++i) {
      dtypes.push_back(mlx_dtype_to_cpp(of->dtypes[i]));
    }
    auto made = core::array::make_arrays(std::move(shapes), dtypes, std::move(primitive), arrays);
    for (size_t i = 0; i < of->outputs; ++i) {
      res[i].ctx = new core::array(std::move(made[i]));
    }
    return 0;
  } catch (const std::exception& e) {
    if (!owned) {
      kernel.drop(kernel.kernel);
    }
    mlx_error("%s", e.what());
    return 1;
  }
}

extern "C" {

// A kernel in CUDA's C++ with what its text depends on; the same in src/mlx.
struct emlx_cuda_kernel {
  const char* name;
  const char* source;
  const char* const* inputs;
  size_t input_count;
  const char* const* outputs;
  size_t output_count;
  const char* const* constants;
  const int* values;
  size_t constant_count;
  bool in_rows;
  int blocks;
  int threads;
};

// A shape, and the input whose type the output has.
struct emlx_output {
  const int* shape;
  size_t rank;
  size_t like;
};
}

namespace {

using Primitives = std::unordered_map<std::string, std::shared_ptr<core::Primitive>>;

// What a kernel's text and launch depend on, as bytes.
std::string key_of(const emlx_cuda_kernel& kernel, const std::vector<core::array>& inputs, const core::Stream& s) {
  std::string key(kernel.name);
  key.push_back('\0');
  const auto add = [&key](int value) { key.append(reinterpret_cast<const char*>(&value), sizeof(value)); };
  add(s.index);
  add(kernel.blocks);
  add(kernel.threads);
  for (size_t i = 0; i < kernel.constant_count; ++i) {
    add(kernel.values[i]);
  }
  for (const auto& input : inputs) {
    add(static_cast<int>(input.dtype().val()) * 2 + (input.ndim() > 0));
  }
  return key;
}

} // namespace

// The nodes of a kernel's outputs. MLX writes out the whole text of a kernel at each call, which takes longer than to
// launch it: here it is done once for all calls that differ in their arrays alone. 0, or 1 with MLX's error handler
// called.
extern "C" int emlx_cuda_node(
    mlx_array* res,
    const emlx_cuda_kernel* kernel,
    const mlx_array* inputs,
    const emlx_output* outputs,
    const mlx_stream stream) {
  // More than a process has use for; a program with ever new shapes should not fill the memory.
  constexpr size_t most = 4096;
  static std::mutex lock;
  static Primitives* known = new Primitives();
  try {
    const auto& s = *static_cast<const core::Stream*>(stream.ctx);
    std::vector<core::array> arrays;
    arrays.reserve(kernel->input_count);
    for (size_t i = 0; i < kernel->input_count; ++i) {
      arrays.push_back(*static_cast<const core::array*>(inputs[i].ctx));
    }
    std::vector<core::Shape> shapes;
    std::vector<core::Dtype> dtypes;
    for (size_t i = 0; i < kernel->output_count; ++i) {
      shapes.emplace_back(outputs[i].shape, outputs[i].shape + outputs[i].rank);
      dtypes.push_back(arrays.at(outputs[i].like).dtype());
    }
    const auto key = key_of(*kernel, arrays, s);
    std::shared_ptr<core::Primitive> primitive;
    {
      std::lock_guard<std::mutex> guard(lock);
      if (const auto found = known->find(key); found != known->end()) {
        primitive = found->second;
      }
    }
    std::vector<core::array> made;
    if (primitive) {
      made = core::array::make_arrays(std::move(shapes), dtypes, primitive, arrays);
    } else {
      const std::vector<std::string> input_names(kernel->inputs, kernel->inputs + kernel->input_count);
      const std::vector<std::string> output_names(kernel->outputs, kernel->outputs + kernel->output_count);
      std::vector<std::pair<std::string, core::fast::TemplateArg>> constants{{"T", arrays.at(0).dtype()}};
      for (size_t i = 0; i < kernel->constant_count; ++i) {
        constants.emplace_back(kernel->constants[i], kernel->values[i]);
      }
      const auto call =
          core::fast::cuda_kernel(kernel->name, input_names, output_names, kernel->source, "", kernel->in_rows, 0);
      made = call(
          arrays,
          shapes,
          dtypes,
          {kernel->blocks * kernel->threads, 1, 1},
          {kernel->threads, 1, 1},
          constants,
          std::nullopt,
          false,
          s);
      std::lock_guard<std::mutex> guard(lock);
      if (known->size() >= most) {
        known->clear();
      }
      known->emplace(key, made.at(0).primitive_ptr());
    }
    for (size_t i = 0; i < kernel->output_count; ++i) {
      res[i].ctx = new core::array(std::move(made.at(i)));
    }
    return 0;
  } catch (const std::exception& e) {
    mlx_error("%s", e.what());
    return 1;
  }
}

extern "C" uint64_t emlx_device_address(mlx_array a) {
  return emlx::device_address(*static_cast<const core::array*>(a.ctx));
}

extern "C" mlx_dtype emlx_promoted(mlx_dtype a, mlx_dtype b) {
  return mlx_dtype_to_c(core::promote_types(mlx_dtype_to_cpp(a), mlx_dtype_to_cpp(b)));
}

// How a computed array lies, as long as it lives.
extern "C" void emlx_view_of(const mlx_array array, emlx_view* view) {
  *view = Kernel::view(*static_cast<core::array*>(array.ctx));
}

namespace {

// Whether computing a node on the CPU is another look at its input's memory, and nothing for a stream's thread.
bool is_view(const core::array& a) {
  if (!a.has_primitive() || a.inputs().size() != 1 || !a.siblings().empty()) {
    return false;
  }
  const std::string name = a.primitive().name();
  const auto& in = a.inputs()[0];
  if (name == "Transpose" || name == "Slice" || name == "Broadcast" || name == "Squeeze" || name == "ExpandDims" ||
      name == "Copy") {
    return true;
  }
  // Where nothing has to be copied.
  const bool in_rows = in.status() == core::array::Status::available && in.flags().row_contiguous;
  if (name == "Reshape" || name == "Flatten" || name == "Unflatten") {
    return in_rows;
  }
  return name.starts_with("View ") && in_rows && in.itemsize() == a.itemsize();
}

bool look(core::array& a, int depth) {
  if (a.is_available()) {
    return true;
  }
  if (a.status() != core::array::Status::unscheduled || depth == 0 || a.is_tracer()) {
    return false;
  }
  if (!a.has_primitive() || a.inputs().size() != 1 || !look(a.inputs()[0], depth - 1) || !is_view(a)) {
    return false;
  }
  a.primitive().device() == core::Device::cpu ? void() : throw std::invalid_argument("a view on another device");
  std::vector<core::array> outputs{a};
  a.primitive().eval_cpu(a.inputs(), outputs);
  a.set_status(core::array::Status::available);
  a.detach();
  return true;
}

// Whether an array is computed, after it has been if it is a view of a computed one, or a view of such a view.
bool is_computed(core::array& a) {
  try {
    return look(a, 4);
  } catch (const std::exception&) {
    // It stays a node, which says what is wrong when it is evaluated.
    return false;
  }
}

} // namespace

// Computes an array that is a view of a computed one. Whether it is computed now. The graph's lock is held.
extern "C" bool emlx_look(const mlx_array array) {
  return is_computed(*static_cast<core::array*>(array.ctx));
}

// Computes a kernel at once: 0. 2 where an input is neither computed nor a view of what is; 1 with MLX's error handler
// called. The graph's lock is held, and `kernel` stays the caller's.
extern "C" int emlx_kernel_now(mlx_array* res, const emlx_kernel* kernel, const emlx_arrays* of) {
  try {
    std::vector<core::array> arrays;
    arrays.reserve(of->count + of->outputs);
    for (size_t i = 0; i < of->count; ++i) {
      arrays.push_back(*static_cast<const core::array*>(of->inputs[i].ctx));
      // Asking may take a stream's failure along; the caller sees to it that there is none.
      if (!is_computed(arrays.back())) {
        return 2;
      }
    }
    std::vector<core::Dtype> dtypes;
    for (size_t i = 0; i < of->outputs; ++i) {
      dtypes.push_back(mlx_dtype_to_cpp(of->dtypes[i]));
    }
    const core::Shape shape(of->shape, of->shape + of->rank);
    auto made = Kernel::now(*kernel, std::move(arrays), shape, dtypes);
    for (size_t i = 0; i < of->outputs; ++i) {
      res[i].ctx = new core::array(std::move(made[i]));
    }
    return 0;
  } catch (const std::exception& e) {
    mlx_error("%s", e.what());
    return 1;
  }
}

// The version of MLX that mlx_private.h was written for.
extern "C" const char* emlx_written_for() {
  return EMLX_WRITTEN_FOR;
}
