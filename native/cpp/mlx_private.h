// The parts of MLX that are private: no header of MLX promises them, and another version may have others. All that C++
// here knows of them is in this file. `emlx_written_for` says which version that is; src/mlx/private.rs compares it
// with the libmlx that is loaded.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "mlx/array.h"
// The encoder of a CPU stream: `dispatch` and `set_output_array`.
#include "mlx/backend/cpu/encoder.h"
#include "mlx/version.h"

#define EMLX_WRITTEN_FOR "0.32.2"

namespace mlx::core::cu {
class CommandEncoder;
// Absent from an MLX without CUDA.
__attribute__((weak)) CommandEncoder& get_command_encoder(Stream s);
} // namespace mlx::core::cu

namespace emlx {

// The beginning of MLX's encoder of a CUDA stream (mlx/backend/cuda/device.h, whose headers need CUDA's own). A test in
// src/mlx/private.rs compares it with that header.
struct Encoder {
  struct Node {
    void* node;
    std::string type;
    std::string id;
  };
  void* device;
  void* stream;
  void* graph;
  std::shared_ptr<void> worker;
  int node_count;
  bool in_concurrent;
  std::vector<void*> from_nodes;
  std::vector<void*> to_nodes;
  std::string graph_nodes_key;
  std::string graph_deps_key;
  std::vector<Node> concurrent_nodes;
  std::vector<std::shared_ptr<mlx::core::array::Data>> temporaries;
};

inline Encoder& encoder_of(mlx::core::Stream s) {
  if (!mlx::core::cu::get_command_encoder) {
    throw std::runtime_error("[captured] this MLX has no CUDA");
  }
  return reinterpret_cast<Encoder&>(mlx::core::cu::get_command_encoder(s));
}

// MLX's buffers on CUDA are handles of this form (mlx/backend/cuda/allocator.h, whose headers need CUDA's own).
struct CudaBuffer {
  void* data;
  size_t size;
  int device;
};

// The address of what CUDA has computed, 0 where there is none. `data` of an array would move it to where the CPU reads.
inline uint64_t device_address(const mlx::core::array& a) {
  const auto* buffer = static_cast<const CudaBuffer*>(a.buffer().ptr());
  return buffer ? reinterpret_cast<uint64_t>(buffer->data) + a.offset() : 0;
}

} // namespace emlx
