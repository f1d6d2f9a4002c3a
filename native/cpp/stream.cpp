// What MLX's C interface does not have of the CPU's streams: tasks of our own between MLX's, how many tasks are under
// way, whether a graph is small, and how an array may lie in memory. Built by build.rs where cpp/kernel.cpp is;
// called through src/mlx.rs alone.

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <string>
#include <vector>

#include "mlx/c/array.h"
#include "mlx/c/error.h"
#include "mlx/c/stream.h"
#include "mlx/array.h"
#include "mlx/primitives.h"
#include "mlx/scheduler.h"

namespace core = mlx::core;

// Has the stream's thread call `run`, once, after what was submitted before. With `ask`, the stream is asked for its
// failure first, which it then forgets: `failure` is its text, null where there is none. 0, or 1 with MLX's error
// handler called, and then `run` is not.
extern "C" int emlx_stream_task(
    const mlx_stream stream,
    bool ask,
    void (*run)(void* payload, const char* failure),
    void* payload) {
  try {
    const auto s = *static_cast<const core::Stream*>(stream.ctx);
    core::scheduler::enqueue(s, [s, ask, run, payload] {
      if (ask) {
        try {
          core::scheduler::check_error(s);
        } catch (const std::exception& e) {
          run(payload, e.what());
          return;
        }
      }
      run(payload, nullptr);
    });
    return 0;
  } catch (const std::exception& e) {
    mlx_error("%s", e.what());
    return 1;
  }
}

// How many groups of tasks are under way, over all streams. From 11 on, who submits waits.
extern "C" int emlx_active_tasks() {
  return core::scheduler::n_active_tasks();
}

// Whether what is to be computed for these arrays is at most `most` nodes of together at most `bytes`, all of them on
// the stream.
extern "C" bool
emlx_is_small(const mlx_array* arrays, size_t count, const mlx_stream stream, size_t most, size_t bytes) {
  const auto& s = *static_cast<const core::Stream*>(stream.ctx);
  std::vector<const core::array*> nodes;
  nodes.reserve(most);
  size_t total = 0;
  const auto add = [&](const core::array& a) {
    if (a.status() != core::array::Status::unscheduled) {
      return true;
    }
    for (const auto* node : nodes) {
      if (node->id() == a.id()) {
        return true;
      }
    }
    total += a.nbytes();
    // One without a primitive has no value and never will; MLX's submission says so.
    if (nodes.size() == most || total > bytes || !a.has_primitive() || a.primitive().stream() != s) {
      return false;
    }
    nodes.push_back(&a);
    return true;
  };
  for (size_t i = 0; i < count; ++i) {
    if (!add(*static_cast<const core::array*>(arrays[i].ctx))) {
      return false;
    }
  }
  for (size_t i = 0; i < nodes.size(); ++i) {
    for (const auto& input : nodes[i]->inputs()) {
      if (!add(input)) {
        return false;
      }
    }
  }
  return true;
}

namespace {

bool may_repeat(const core::array& a, size_t& visits) {
  if (a.status() != core::array::Status::unscheduled || !a.has_primitive()) {
    for (size_t axis = 0; axis < a.ndim(); ++axis) {
      if (a.shape(axis) > 1 && a.strides(axis) == 0) {
        return true;
      }
    }
    return false;
  }
  if (visits == 0) {
    return true;
  }
  --visits;
  const auto& inputs = a.inputs();
  if (inputs.empty()) {
    return false;
  }
  const std::string name = a.primitive().name();
  if (name == "Broadcast" && inputs[0].size() != a.size()) {
    return true;
  }
  // Operations on elements keep the strides that their inputs have in common, and views those of the array.
  for (const auto& input : inputs) {
    if (!may_repeat(input, visits)) {
      return false;
    }
  }
  return true;
}

} // namespace

// Whether elements of an array may lie at one place in memory, as those of a broadcast array do: true where it would
// take long to find out. The graph's lock is held.
extern "C" bool emlx_may_repeat(const mlx_array array) {
  size_t visits = 64;
  return may_repeat(*static_cast<const core::array*>(array.ctx), visits);
}

namespace {

// An array's own strides, or those that a transposition of its last two axes leaves in front of them.
bool has_dense_matrices(const core::array& a) {
  if (a.ndim() < 3) {
    return true;
  }
  if (a.status() == core::array::Status::unscheduled && a.has_primitive()) {
    if (std::string(a.primitive().name()) != "Transpose") {
      return false;
    }
    const auto axes = static_cast<const core::Transpose&>(a.primitive()).state();
    for (size_t axis = 0; axis + 2 < axes.size(); ++axis) {
      if (axes[axis] != static_cast<int>(axis)) {
        return false;
      }
    }
    return has_dense_matrices(a.inputs()[0]);
  }
  auto stride = static_cast<int64_t>(a.shape(-1)) * a.shape(-2);
  for (int axis = static_cast<int>(a.ndim()) - 3; axis >= 0; --axis) {
    if (a.shape(axis) > 1 && a.strides(axis) != stride) {
      return false;
    }
    stride *= a.shape(axis);
  }
  return true;
}

} // namespace

// Whether the matrices of an array surely lie one after another, in rows or in columns. The graph's lock is held.
extern "C" bool emlx_has_dense_matrices(const mlx_array array) {
  try {
    return has_dense_matrices(*static_cast<const core::array*>(array.ctx));
  } catch (const std::exception&) {
    return false;
  }
}

// Frees the buffer of a computed array if nothing else holds the array or the buffer. A small one takes its place. The
// graph's lock is held.
extern "C" bool emlx_strip(const mlx_array array) {
  try {
    auto& a = *static_cast<core::array*>(array.ctx);
    if (!a.is_donatable()) {
      return false;
    }
    // Never taken down: the process leaves as it is.
    static const auto* nothing = new core::array({0.0f, 0.0f});
    a.copy_shared_buffer(*nothing, a.strides(), a.flags(), 0);
    return true;
  } catch (const std::exception&) {
    return false;
  }
}

// Arrays that are computed when others are, and that nobody else has: waiting changes an array. Null with MLX's error
// handler called. The graph's lock is held.
extern "C" void* emlx_waits(const mlx_array* arrays, size_t count) {
  try {
    auto waits = std::make_unique<std::vector<core::array>>();
    for (size_t i = 0; i < count; ++i) {
      const auto& a = *static_cast<const core::array*>(arrays[i].ctx);
      if (a.status() == core::array::Status::evaluated && a.event().valid()) {
        auto& own = waits->emplace_back(core::Shape{}, core::bool_, nullptr, std::vector<core::array>{});
        own.attach_event(a.event());
        own.set_status(core::array::Status::evaluated);
      }
    }
    return waits.release();
  } catch (const std::exception& e) {
    mlx_error("%s", e.what());
    return nullptr;
  }
}

extern "C" void emlx_waits_drop(void* waits) {
  delete static_cast<std::vector<core::array>*>(waits);
}

// Waits for them, awake for the first so many microseconds. Takes them. 0, or 1 with MLX's error handler called.
extern "C" int emlx_wait(void* held, int64_t awake) {
  const std::unique_ptr<std::vector<core::array>> waits(static_cast<std::vector<core::array>*>(held));
  try {
    const auto until = std::chrono::steady_clock::now() + std::chrono::microseconds(awake);
    for (auto& own : *waits) {
      while (awake > 0 && !own.is_available() && std::chrono::steady_clock::now() < until) {
      }
      own.wait();
    }
    return 0;
  } catch (const std::exception& e) {
    mlx_error("%s", e.what());
    return 1;
  }
}
