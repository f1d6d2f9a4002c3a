// What captured.cpp and captured_step.cpp share: which nodes of a stream are to be evaluated together, without MLX
// submitting anything in between, and inputs that are read where they lie.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <unordered_set>
#include <utility>
#include <vector>

#include "mlx/array.h"
#include "mlx/primitives.h"
#include "mlx_private.h"

namespace emlx {

// An input that is read where it lies: its memory, as long as others hold it.
struct Fixed {
  std::weak_ptr<mlx::core::array::Data> data;
  uint64_t address;
  mlx::core::Strides strides;

  static Fixed of(const mlx::core::array& a) {
    return {a.data_shared_ptr(), device_address(a), a.strides()};
  }

  bool is(const mlx::core::array& a) const {
    const auto& other = a.data_shared_ptr();
    return !data.owner_before(other) && !other.owner_before(data) && address == device_address(a) && strides == a.strides();
  }
};

// All nodes that these arrays need, each behind those that it takes. `known` is told of each array that is no such node,
// because it is computed or under way, and says whether it may be taken. Nothing where one may not, or where a node is
// another stream's.
template <typename Known>
std::optional<std::deque<mlx::core::array>> in_order(
    const std::vector<mlx::core::array>& outs, mlx::core::Stream stream, Known known) {
  using mlx::core::array;
  std::deque<array> order;
  std::unordered_set<std::uintptr_t> seen;
  std::vector<std::pair<array, size_t>> open;
  const auto visit = [&](const array& a) {
    if (!seen.insert(a.id()).second) {
      return true;
    }
    if (a.status() != array::Status::unscheduled) {
      return static_cast<bool>(known(a));
    }
    if (!a.has_primitive() || a.primitive().stream() != stream) {
      return false;
    }
    for (const auto& sibling : a.siblings()) {
      seen.insert(sibling.id());
    }
    open.emplace_back(a, 0);
    return true;
  };
  for (const auto& out : outs) {
    if (!visit(out)) {
      return std::nullopt;
    }
    while (!open.empty()) {
      auto& [a, next] = open.back();
      if (next < a.inputs().size()) {
        const auto input = a.inputs()[next++];
        if (!visit(input)) {
          return std::nullopt;
        }
      } else {
        order.push_back(a);
        open.pop_back();
      }
    }
  }
  return order;
}

} // namespace emlx
