// Nodes that Rust builds on top of a node's inputs while the node is evaluated: what the node would be without what is
// its own. captured.cpp and generated.cpp use it.
#pragma once

#include <cstddef>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "mlx/array.h"
#include "mlx/c/array.h"
#include "mlx/transforms.h"

namespace emlx {

// Builds nodes on top of the inputs, and hands over a handle of each output. False where it failed, after writing why
// into `message`.
using Build = bool (*)(
    const void* payload,
    const mlx_array* inputs,
    size_t count,
    mlx_array* outputs,
    size_t output_count,
    char* message,
    size_t size);

inline std::vector<mlx::core::array> built(
    Build build, const void* payload, const char* name, const std::vector<mlx::core::array>& inputs, size_t count) {
  std::vector<mlx_array> given;
  for (const auto& input : inputs) {
    given.push_back({const_cast<mlx::core::array*>(&input)});
  }
  std::vector<mlx_array> made(count, mlx_array{nullptr});
  char message[256] = "failed without a message";
  const bool ok = build(payload, given.data(), given.size(), made.data(), count, message, sizeof(message));
  std::vector<mlx::core::array> outs;
  for (auto& handle : made) {
    if (handle.ctx) {
      outs.push_back(std::move(*static_cast<mlx::core::array*>(handle.ctx)));
      delete static_cast<mlx::core::array*>(handle.ctx);
    }
  }
  if (!ok || outs.size() != count) {
    throw std::runtime_error(std::string("[") + name + "] " + message);
  }
  return outs;
}

// Evaluates such nodes, and gives the outputs their memory.
inline void compute(std::vector<mlx::core::array> outs, std::vector<mlx::core::array>& outputs) {
  mlx::core::async_eval(outs);
  for (size_t i = 0; i < outputs.size(); ++i) {
    auto out = outs[i];
    if (out.event().valid() && out.event().stream() != outputs[i].primitive().stream()) {
      out.wait();
    }
    outputs[i].copy_shared_buffer(out);
  }
}

} // namespace emlx
