// Has MLX launch what an encoder of CUDA's has gathered, for nodes that go on with the plain stream: captured.cpp and
// solver.cpp.
#pragma once

#include <memory>
#include <vector>

#include "mlx/array.h"
#include "mlx/primitives.h"
#include "mlx/transforms.h"

namespace emlx {

// Does nothing: submitting it has MLX launch what its encoder has gathered.
class Nothing : public mlx::core::UnaryPrimitive {
 public:
  explicit Nothing(mlx::core::Stream s) : mlx::core::UnaryPrimitive(s) {}
  void eval_cpu(const std::vector<mlx::core::array>&, mlx::core::array& out) override {
    out.set_data(mlx::core::allocator::malloc(out.nbytes()));
  }
  void eval_gpu(const std::vector<mlx::core::array>&, mlx::core::array& out) override {
    out.set_data(mlx::core::allocator::malloc(out.nbytes()));
  }
  const char* name() const override {
    return "Nothing";
  }
};

inline void submit_pending(mlx::core::Stream s) {
  using mlx::core::array;
  mlx::core::async_eval({array(mlx::core::Shape{1}, mlx::core::uint8, std::make_shared<Nothing>(s), {})});
}

} // namespace emlx
