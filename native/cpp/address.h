// Where arrays lie on the GPU. Of kernel.cpp and captured.cpp.
#pragma once

#include <cstddef>
#include <cstdint>

#include "mlx/array.h"

// The address of what CUDA has computed, 0 where there is none. MLX's buffers on CUDA are handles of this form
// (mlx/backend/cuda/allocator.h, whose headers need CUDA's own); `data` of an array would move it to where the CPU reads.
inline uint64_t device_address(const mlx::core::array& a) {
  struct CudaBuffer {
    void* data;
    size_t size;
    int device;
  };
  const auto* buffer = static_cast<const CudaBuffer*>(a.buffer().ptr());
  return buffer ? reinterpret_cast<uint64_t>(buffer->data) + a.offset() : 0;
}
