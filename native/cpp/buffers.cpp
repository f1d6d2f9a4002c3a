// Large buffers of arrays are kept when they are freed, and the one that was freed last is used first (ADR 56). MLX's
// allocator counts those that are kept as active, so its figures are corrected here.

#include "buffers.h"

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <mutex>
#include <vector>

#ifdef __linux__
#include <sys/mman.h>
#endif

#include "mlx/allocator.h"
#include "mlx/memory.h"
#include "mlx_private.h"

namespace core = mlx::core;

namespace {

// Smaller buffers are malloc's alone.
constexpr size_t LEAST = size_t(1) << 20;
// A buffer may be so much larger than an array that takes it. MLX's operations write over an input within the same.
constexpr size_t SLACK = 16384;
// MLX's buffers begin 8 bytes behind what malloc gives, where each vector of 64 bytes is in two lines of the cache.
constexpr size_t LINE = 64;
// Bytes of an array from which it begins with a line.
constexpr size_t ALIGNED = 16384;
constexpr uintptr_t HUGE_PAGE = uintptr_t(1) << 21;

struct Kept {
  core::allocator::Buffer buffer;
  size_t size;
};

struct Pool {
  std::mutex lock;
  // The one that was freed last is at the end.
  std::vector<Kept> kept;
  size_t bytes = 0;
  std::atomic<size_t> limit = 0;
  // The most bytes of arrays so far, as of the last time that `bytes` changed.
  size_t peak = 0;

  static size_t beyond(size_t all, size_t kept) {
    return all - std::min(all, kept);
  }

  size_t active() const {
    return beyond(core::get_active_memory(), bytes);
  }

  // MLX's peak since then belongs to what is kept now.
  size_t most() const {
    return std::max({peak, beyond(core::get_peak_memory(), bytes), active()});
  }

  void change(size_t to) {
    peak = most();
    core::reset_peak_memory();
    bytes = to;
    peak = std::max(peak, active());
  }

  // Takes the oldest out until at most so many bytes are kept.
  std::vector<Kept> shrink(size_t most) {
    size_t left = bytes;
    auto end = kept.begin();
    while (left > most) {
      left -= (end++)->size;
    }
    std::vector<Kept> out(kept.begin(), end);
    kept.erase(kept.begin(), end);
    return out;
  }

  // Frees what was taken out. The lock is held, so that the figures fit.
  void free(const std::vector<Kept>& out) {
    for (const auto& old : out) {
      core::allocator::free(old.buffer);
      change(bytes - old.size);
    }
  }
};

// Never destroyed: arrays may be freed until the process ends.
Pool& pool() {
  static Pool* pool = new Pool();
  return *pool;
}

// Memory that is touched for the first time costs one fault for each page.
void use_huge_pages(void* from, size_t size) {
#ifdef __linux__
  const auto start = (reinterpret_cast<uintptr_t>(from) + HUGE_PAGE - 1) & ~(HUGE_PAGE - 1);
  const auto end = (reinterpret_cast<uintptr_t>(from) + size) & ~(HUGE_PAGE - 1);
  if (end > start) {
    // A wish: a system without such pages refuses it.
    madvise(reinterpret_cast<void*>(start), end - start, MADV_HUGEPAGE);
  }
#endif
}

// Whether an array of so many bytes begins with a line. CUDA's allocator sees to it by itself.
bool is_aligned(size_t bytes) {
  return bytes >= ALIGNED && !core::cu::get_command_encoder;
}

// Room for an array's bytes, from the beginning of a line on.
size_t room(size_t bytes) {
  return is_aligned(bytes) ? bytes + LINE : bytes;
}

// Moves an array that has such room to the beginning of a line.
void align(core::array& out, size_t bytes) {
  if (!is_aligned(bytes)) {
    return;
  }
  const auto start = reinterpret_cast<uintptr_t>(out.data<char>());
  const size_t ahead = (LINE - start % LINE) % LINE;
  if (ahead % out.itemsize() == 0) {
    const auto elements = static_cast<int64_t>(ahead / out.itemsize());
    const core::Strides strides = out.strides();
    out.copy_shared_buffer(out, strides, out.flags(), out.data_size(), elements);
  }
}

} // namespace

namespace emlx {

core::allocator::Buffer take_buffer(size_t size) {
  auto& pool = ::pool();
  if (size < LEAST || pool.limit == 0) {
    return core::allocator::malloc(size);
  }
  {
    std::lock_guard<std::mutex> guard(pool.lock);
    const auto fits = [size](const Kept& own) { return own.size >= size && own.size - size <= SLACK; };
    const auto found = std::find_if(pool.kept.rbegin(), pool.kept.rend(), fits);
    if (found != pool.kept.rend()) {
      const auto own = *found;
      pool.kept.erase(std::next(found).base());
      pool.change(pool.bytes - own.size);
      return own.buffer;
    }
  }
  auto buffer = core::allocator::malloc(size);
  use_huge_pages(buffer.raw_ptr(), size);
  return buffer;
}

void give_buffer(core::allocator::Buffer buffer) {
  auto& pool = ::pool();
  const size_t size = buffer.ptr() && pool.limit > 0 ? core::allocator::allocator().size(buffer) : 0;
  if (size >= LEAST) {
    std::lock_guard<std::mutex> guard(pool.lock);
    // What is kept must not be why MLX waits for memory.
    if (core::get_active_memory() > core::get_memory_limit()) {
      pool.free(pool.shrink(0));
    } else if (const size_t limit = pool.limit; size <= limit) {
      pool.free(pool.shrink(limit - size));
      pool.kept.push_back({buffer, size});
      pool.change(pool.bytes + size);
      return;
    }
  }
  core::allocator::free(buffer);
}

void give_memory(core::array& out) {
  const size_t bytes = out.nbytes();
  out.set_data(take_buffer(room(bytes)), give_buffer);
  align(out, bytes);
}

void give_memory(core::array& out, size_t size, const core::Strides& strides, core::array::Flags flags) {
  const size_t bytes = size * out.itemsize();
  out.set_data(take_buffer(room(bytes)), size, strides, flags, give_buffer);
  align(out, bytes);
}

} // namespace emlx

extern "C" {

// How many bytes are kept at most, and how many were before. False for an MLX with CUDA, which has a cache of its own.
bool emlx_keep_buffers(size_t limit, size_t* before) {
  if (core::cu::get_command_encoder) {
    return false;
  }
  auto& pool = ::pool();
  std::lock_guard<std::mutex> guard(pool.lock);
  *before = pool.limit;
  pool.limit = limit;
  pool.free(pool.shrink(limit));
  return true;
}

// Frees all that is kept.
void emlx_clear_buffers() {
  auto& pool = ::pool();
  std::lock_guard<std::mutex> guard(pool.lock);
  pool.free(pool.shrink(0));
}

// Bytes that are kept, and those of arrays: now, and the most of them.
void emlx_memory(size_t* kept, size_t* active, size_t* peak) {
  auto& pool = ::pool();
  std::lock_guard<std::mutex> guard(pool.lock);
  *kept = pool.bytes;
  *active = pool.active();
  *peak = pool.most();
}

void emlx_reset_peak() {
  auto& pool = ::pool();
  std::lock_guard<std::mutex> guard(pool.lock);
  pool.peak = 0;
  core::reset_peak_memory();
}
}
