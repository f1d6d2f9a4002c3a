// Memory of arrays that our own kernels compute on the CPU.
#pragma once

#include <cstddef>

#include "mlx/array.h"

namespace emlx {

// Memory of an allocator's, that was kept if there is some, with what gives it back.
mlx::core::allocator::Buffer take_buffer(size_t size);
void give_buffer(mlx::core::allocator::Buffer buffer);

} // namespace emlx
