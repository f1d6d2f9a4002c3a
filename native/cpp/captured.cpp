// Operations that MLX launches one by one, as one graph of CUDA's that is launched at once: what
// src/program/engine/captured decides on. MLX brings the kernels of its nodes into CUDA graphs as it is, and makes them
// anew for each evaluation. Here the nodes are evaluated once, on inputs that stay where they are, and the graph that
// MLX has made of them is kept, with all the memory that its kernels use. From then on a run copies its inputs to where
// the graph reads them, launches it, and copies its outputs into arrays of their own. Built by build.rs where
// cpp/kernel.cpp is; called through src/mlx/cuda/graph.rs alone.

#include <atomic>
#include <cstdint>
#include <exception>
#include <memory>
#include <stdexcept>
#include <string>
#include <unordered_set>
#include <utility>
#include <vector>

#include "mlx/c/array.h"
#include "mlx/c/error.h"
#include "mlx/c/private/enums.h"
#include "mlx/c/stream.h"
#include "mlx/array.h"
#include "mlx/ops.h"
#include "mlx/primitives.h"
#include "mlx/transforms.h"
#include "composed.h"
#include "mlx_private.h"
#include "pending.h"
#include "walk.h"

namespace core = mlx::core;

extern "C" {

// Bytes to be copied on the GPU; the same in src/mlx/cuda/graph.rs.
struct emlx_copy {
  uint64_t from;
  uint64_t to;
  uint64_t bytes;
};

// What Rust does of it; the same in src/mlx/cuda/graph.rs. All but `destroy` and `drop` give false where they failed,
// after writing why into `message`.
struct emlx_capturing {
  const void* payload;
  emlx::Build build;
  // Makes a graph of CUDA's with edges between its nodes ready for launches.
  bool (*instantiate)(
      const void* payload,
      void* graph,
      void* const* from,
      void* const* to,
      size_t count,
      void** launches,
      char* message,
      size_t size);
  // Has the stream copy, then launch.
  bool (*launch)(
      const void* payload,
      void* launches,
      void* stream,
      const emlx_copy* copies,
      size_t count,
      char* message,
      size_t size);
  void (*destroy)(const void* payload, void* launches);
  void (*drop)(const void* payload);
};
}

namespace {

using emlx::Encoder;
using emlx::Fixed;
using emlx::device_address;
using emlx::encoder_of;
using emlx::submit_pending;
using Held = std::shared_ptr<core::array::Data>;

enum State { NEW = 0, READY = 1, REFUSED = 2 };

// Times that inputs thought to stay may turn out to have moved.
constexpr int MOST_CAPTURES = 4;

// A captured segment for one stream. It is used under the graph's lock, but for `state` and `bytes`.
struct Captured {
  Captured(const emlx_capturing& capturing, std::vector<bool> fixed) : rust(capturing), is_fixed(std::move(fixed)) {}
  Captured(const Captured&) = delete;
  ~Captured() {
    forget();
    rust.drop(rust.payload);
  }

  void forget() {
    if (launches) {
      rust.destroy(rust.payload, launches);
    }
    launches = nullptr;
    fixed.clear();
    copies.clear();
    outs.clear();
    held.clear();
    bytes = 0;
  }

  const emlx_capturing rust;
  const std::vector<bool> is_fixed;
  std::atomic<int> state{NEW};
  std::atomic<size_t> bytes{0};
  int captures = 0;
  void* launches = nullptr;
  std::vector<Fixed> fixed;
  // The graph's own inputs and outputs.
  std::vector<core::array> copies;
  std::vector<core::array> outs;
  std::vector<Held> held;
};

[[noreturn]] void fail(const char* message) {
  throw std::runtime_error(std::string("[captured] ") + message);
}

class Replay : public core::Primitive {
 public:
  Replay(core::Stream s, std::shared_ptr<Captured> captured) : core::Primitive(s), stream_(s), captured_(std::move(captured)) {}

  void eval_cpu(const std::vector<core::array>&, std::vector<core::array>&) override {
    fail("captured operations are CUDA's");
  }

  void eval_gpu(const std::vector<core::array>& inputs, std::vector<core::array>& outputs) override {
    if (captured_->launches && fits(inputs)) {
      return replay(inputs, outputs);
    }
    captured_->forget();
    if (captured_->state == REFUSED || captured_->captures >= MOST_CAPTURES) {
      captured_->state = REFUSED;
      return compute(inputs, outputs);
    }
    captured_->captures++;
    capture(inputs, outputs);
  }

  const char* name() const override {
    return "Captured";
  }

 private:
  bool fits(const std::vector<core::array>& inputs) const {
    size_t next = 0;
    for (size_t i = 0; i < inputs.size(); ++i) {
      if (captured_->is_fixed[i] && !captured_->fixed[next++].is(inputs[i])) {
        return false;
      }
    }
    return true;
  }

  void replay(const std::vector<core::array>& inputs, std::vector<core::array>& outputs) {
    auto& encoder = encoder_of(stream_);
    std::vector<emlx_copy> copies;
    size_t next = 0;
    for (size_t i = 0; i < inputs.size(); ++i) {
      if (captured_->is_fixed[i]) {
        continue;
      }
      const auto& to = captured_->copies[next++];
      if (to.nbytes() == 0) {
        continue;
      }
      const auto& given = inputs[i];
      if (given.flags().row_contiguous) {
        copies.push_back({device_address(given), device_address(to), to.nbytes()});
        continue;
      }
      const auto rows = copied(given);
      encoder.temporaries.push_back(rows.data_shared_ptr());
      copies.push_back({device_address(rows), device_address(to), to.nbytes()});
    }
    if (encoder.node_count > 0) {
      submit_pending(stream_);
    }
    char message[256] = "failed without a message";
    const auto& rust = captured_->rust;
    if (!rust.launch(rust.payload, captured_->launches, encoder.stream, copies.data(), copies.size(), message, sizeof(message))) {
      fail(message);
    }
    give(outputs);
    hold(encoder);
  }

  void capture(const std::vector<core::array>& inputs, std::vector<core::array>& outputs) {
    auto& encoder = encoder_of(stream_);
    std::vector<core::array> outs;
    const void* graph = nullptr;
    try {
      std::vector<core::array> taken;
      for (size_t i = 0; i < inputs.size(); ++i) {
        if (captured_->is_fixed[i]) {
          captured_->fixed.push_back(Fixed::of(inputs[i]));
          taken.push_back(inputs[i]);
        } else {
          captured_->copies.push_back(copied(inputs[i]));
          captured_->held.push_back(captured_->copies.back().data_shared_ptr());
          taken.push_back(captured_->copies.back());
        }
      }
      submit_pending(stream_);
      graph = encoder.graph;
      outs = built(taken, outputs.size());
      if (!walk(outs)) {
        return give_up(inputs, outputs);
      }
    } catch (const std::exception&) {
      // Such as too little memory for all values at once. What fails in any case fails again.
      return give_up(inputs, outputs);
    }
    // What the kernels need beside arrays.
    captured_->held.insert(captured_->held.end(), encoder.temporaries.begin(), encoder.temporaries.end());
    captured_->outs = std::move(outs);
    const bool is_whole = encoder.graph == graph && encoder.node_count > 0 && !encoder.in_concurrent;
    char message[256] = "failed without a message";
    const auto& rust = captured_->rust;
    if (is_whole &&
        rust.instantiate(
            rust.payload,
            encoder.graph,
            encoder.from_nodes.data(),
            encoder.to_nodes.data(),
            encoder.from_nodes.size(),
            &captured_->launches,
            message,
            sizeof(message))) {
      // The edges are in the graph by now.
      encoder.from_nodes.clear();
      encoder.to_nodes.clear();
      size_t bytes = 0;
      std::unordered_set<const core::array::Data*> seen;
      for (const auto& data : captured_->held) {
        if (data && data->buffer.ptr() && seen.insert(data.get()).second) {
          bytes += core::allocator::allocator().size(data->buffer);
        }
      }
      captured_->bytes = bytes;
      captured_->state = READY;
    } else {
      captured_->state = REFUSED;
    }
    give(outputs);
    hold(encoder);
  }

  // There will be no graph. Kernels that are under way keep their memory.
  void give_up(const std::vector<core::array>& inputs, std::vector<core::array>& outputs) {
    auto& encoder = encoder_of(stream_);
    encoder.temporaries.insert(encoder.temporaries.end(), captured_->held.begin(), captured_->held.end());
    captured_->forget();
    captured_->state = REFUSED;
    submit_pending(stream_);
    compute(inputs, outputs);
  }

  // As if there were no capturing.
  void compute(const std::vector<core::array>& inputs, std::vector<core::array>& outputs) {
    emlx::compute(built(inputs, outputs.size()), outputs);
  }

  std::vector<core::array> built(const std::vector<core::array>& inputs, size_t count) const {
    const auto& rust = captured_->rust;
    return emlx::built(rust.build, rust.payload, "captured", inputs, count);
  }

  // Evaluates all that these arrays need, and keeps the memory of all of it. False where that is not all on the stream;
  // then nothing of it is evaluated.
  bool walk(const std::vector<core::array>& outs) {
    auto order = emlx::in_order(outs, stream_, [this](const core::array& a) {
      const auto& event = a.event();
      if (event.valid() && event.stream() != stream_) {
        return false;
      }
      keep(a);
      return true;
    });
    if (!order) {
      return false;
    }
    for (auto& a : *order) {
      auto outputs = a.outputs();
      a.primitive().eval_gpu(a.inputs(), outputs);
      for (auto& output : outputs) {
        output.set_status(core::array::Status::evaluated);
        keep(output);
      }
    }
    for (auto& a : *order) {
      a.detach();
    }
    return true;
  }

  // Holds an array's memory, unless it is that of an input that stays with its owner.
  void keep(const core::array& a) {
    const auto& data = a.data_shared_ptr();
    if (data && !is_of_input(a)) {
      captured_->held.push_back(data);
    }
  }

  bool is_of_input(const core::array& a) const {
    const auto& data = a.data_shared_ptr();
    for (const auto& fixed : captured_->fixed) {
      if (!fixed.data.owner_before(data) && !data.owner_before(fixed.data)) {
        return true;
      }
    }
    return false;
  }

  // The same elements in rows, in memory of their own.
  core::array copied(const core::array& a) const {
    core::array copy(a.shape(), a.dtype(), nullptr, {});
    copy_into(a, copy);
    copy.set_status(core::array::Status::available);
    return copy;
  }

  void copy_into(const core::array& from, core::array& to) const {
    if (from.size() == 0) {
      to.set_data(core::allocator::malloc(to.nbytes()));
      return;
    }
    // Elements in rows go along one axis; MLX copies nothing of arrays without axes.
    const bool in_rows = from.flags().row_contiguous;
    const auto shape = in_rows ? core::Shape{static_cast<int>(from.size())} : from.shape();
    const auto strides = in_rows ? core::Strides{1} : from.strides();
    // MLX shares the memory of what it takes to be in rows.
    core::array seen(shape, from.dtype(), nullptr, {});
    const core::array::Flags none{.contiguous = false, .row_contiguous = false, .col_contiguous = false};
    seen.copy_shared_buffer(from, strides, none, from.data_size());
    auto made = core::contiguous(seen, false, stream_);
    std::vector<core::array> outputs{made};
    made.primitive().eval_gpu({seen}, outputs);
    const core::array plain(to.shape(), to.dtype(), nullptr, {});
    core::array::Flags rows{.contiguous = true, .row_contiguous = true, .col_contiguous = is_column(to)};
    to.copy_shared_buffer(made, plain.strides(), rows, to.size());
  }

  static bool is_column(const core::array& a) {
    size_t wide = 0;
    for (const auto size : a.shape()) {
      wide += size > 1;
    }
    return wide <= 1;
  }

  // Copies the outputs out of the graph's memory; an input seen otherwise is shared.
  void give(std::vector<core::array>& outputs) const {
    for (size_t i = 0; i < outputs.size(); ++i) {
      const auto& out = captured_->outs[i];
      if (is_of_input(out)) {
        outputs[i].copy_shared_buffer(out);
      } else {
        copy_into(out, outputs[i]);
      }
    }
  }

  // Keeps the graph and its memory until the GPU has done what it was just given.
  void hold(Encoder& encoder) const {
    core::array token(core::allocator::Buffer{nullptr}, core::Shape{0}, core::uint8, [captured = captured_](core::allocator::Buffer) {});
    encoder.temporaries.push_back(token.data_shared_ptr());
  }

  const core::Stream stream_;
  const std::shared_ptr<Captured> captured_;
};

} // namespace

// A segment to be captured, which owns `capturing` from here on; `fixed` says of each input whether it is read where it
// lies.
extern "C" void* emlx_captured_new(emlx_capturing capturing, const bool* fixed, size_t count) {
  return new std::shared_ptr<Captured>(std::make_shared<Captured>(capturing, std::vector<bool>(fixed, fixed + count)));
}

extern "C" void emlx_captured_free(void* captured) {
  delete static_cast<std::shared_ptr<Captured>*>(captured);
}

// 0 before the first run, 1 where there is a graph, 2 where there will be none; and the bytes that it holds.
extern "C" int emlx_captured_state(const void* captured, size_t* bytes) {
  const auto& of = **static_cast<const std::shared_ptr<Captured>*>(captured);
  *bytes = of.bytes;
  return of.state;
}

// The nodes of a run's outputs, of these shapes and types. 0, or 1 with MLX's error handler called.
extern "C" int emlx_captured_nodes(
    mlx_array* res,
    const void* captured,
    const mlx_array* inputs,
    size_t count,
    const int* const* shapes,
    const size_t* ranks,
    const mlx_dtype* dtypes,
    size_t output_count,
    const mlx_stream stream) {
  try {
    const auto& s = *static_cast<const core::Stream*>(stream.ctx);
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
    const auto& of = *static_cast<const std::shared_ptr<Captured>*>(captured);
    auto made = core::array::make_arrays(std::move(all), types, std::make_shared<Replay>(s, of), arrays);
    for (size_t i = 0; i < output_count; ++i) {
      res[i].ctx = new core::array(std::move(made.at(i)));
    }
    return 0;
  } catch (const std::exception& e) {
    mlx_error("%s", e.what());
    return 1;
  }
}
