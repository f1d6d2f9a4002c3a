// Memory of arrays that our own kernels compute on the CPU.
#pragma once

#include <cstddef>

#include "mlx/array.h"

namespace emlx {

// Memory of an allocator's, that was kept if there is some, with what gives it back.
mlx::core::allocator::Buffer take_buffer(size_t size);
void give_buffer(mlx::core::allocator::Buffer buffer);

// Gives an array such memory, in which it lies in rows, or as these strides say. That of a large array begins with a
// line of the cache.
void give_memory(mlx::core::array& out);
void give_memory(
    mlx::core::array& out, size_t size, const mlx::core::Strides& strides, mlx::core::array::Flags flags);

} // namespace emlx
