// What the kernels in native/src/op/cuda/ use of CUDA, on the CPU: a block's threads are fibers of one thread, which
// change places where they wait for one another. So the kernels' arithmetic, indices and barriers are checked where
// there is no GPU. kernels.cpp uses it.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <vector>

#define __shared__ static
#define __device__

struct Index {
  int x;
};
inline Index threadIdx, blockIdx, blockDim, gridDim;

// As MLX hands them to its kernels.
struct Strides {
  int64_t v[8];
  const int64_t& operator[](int axis) const {
    return v[axis];
  }
};

struct bf16 {
  uint16_t bits;
  bf16() = default;
  bf16(float number) {
    uint32_t wide;
    memcpy(&wide, &number, 4);
    bits = (wide + 0x7fff + ((wide >> 16) & 1)) >> 16;
  }
  operator float() const {
    const uint32_t wide = uint32_t(bits) << 16;
    float number;
    memcpy(&number, &wide, 4);
    return number;
  }
};

inline float __int_as_float(int bits) {
  float number;
  memcpy(&number, &bits, 4);
  return number;
}

inline int __float_as_int(float number) {
  int bits;
  memcpy(&bits, &number, 4);
  return bits;
}

// The instructions that make a float of one of 16 bits, and the other way round, as op/cuda/chain/prelude.cu has them.
#define F16_WIDEN(number, bits) number = emulate::wide_of_f16(bits)
#define F16_NARROW(bits, number) bits = emulate::f16_of(number)
// And those that read and write 16 bytes past the cache.
#define READ_ONCE(a, b, c, d, from) \
  do { \
    const auto* words = reinterpret_cast<const u32*>(from); \
    a = words[0], b = words[1], c = words[2], d = words[3]; \
  } while (0)
#define WRITE_ONCE(to, a, b, c, d) \
  do { \
    auto* words = reinterpret_cast<u32*>(to); \
    words[0] = a, words[1] = b, words[2] = c, words[3] = d; \
  } while (0)

namespace emulate {

inline float wide_of_f16(uint16_t bits) {
  const int exponent = bits >> 10 & 31, fraction = bits & 1023;
  float number = exponent == 0 ? std::ldexp(float(fraction), -24) : std::ldexp(float(fraction + 1024), exponent - 25);
  if (exponent == 31) {
    number = fraction ? NAN : INFINITY;
  }
  return bits & 0x8000 ? -number : number;
}

// To the nearest, halves to the even one.
inline uint16_t f16_of(float number) {
  const uint16_t sign = std::signbit(number) ? 0x8000 : 0;
  const float size = std::fabs(number);
  if (size != size) {
    return 0x7fff;
  }
  if (size >= 65520.0f) {
    return sign | 0x7c00;
  }
  if (size < 0x1p-14f) {
    return sign | uint16_t(std::nearbyint(std::ldexp(size, 24)));
  }
  int exponent;
  std::frexp(size, &exponent);
  // Of 11 bits; a carry goes into the exponent.
  const int whole = int(std::nearbyint(std::ldexp(size, 11 - exponent)));
  return sign | uint16_t(((exponent + 14) << 10) + whole - 1024);
}

} // namespace emulate

// By halving an interval in f64.
inline float erfinvf(float number) {
  if (!(std::fabs(number) < 1.0f)) {
    return std::fabs(number) == 1.0f ? std::copysign(INFINITY, number) : NAN;
  }
  if (number == 0.0f) {
    return number;
  }
  const double size = std::fabs(double(number));
  double low = 0.0, high = 6.0;
  for (int i = 0; i < 64; ++i) {
    const double middle = 0.5 * (low + high);
    (std::erf(middle) < size ? low : high) = middle;
  }
  // Near 0 the steps end before the digits do.
  const double near = size * 0.886226925452758;
  return float(std::copysign(size < 1e-5 ? near : 0.5 * (low + high), double(number)));
}

// Other blocks and the host are not there at the same time.
inline void __threadfence_system() {}

inline float rsqrtf(float number) {
  return 1.0f / std::sqrt(number);
}

inline float __fdividef(float a, float b) {
  return a / b;
}

namespace emulate {

// Where a thread was left. C's own contexts call the kernel of the system each time, which takes most of a test's time.
#if defined(__x86_64__)
extern "C" void emulate_change(void** from, void* to);
// Keeps the registers that a function has to keep, and goes on where `to` was left.
asm(R"(
  .pushsection .text
  .weak emulate_change
  .hidden emulate_change
  .type emulate_change, @function
emulate_change:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
  .size emulate_change, . - emulate_change
  .popsection
)");

struct Context {
  void* stack = nullptr;
  void begin(std::vector<char>& memory, void (*run)()) {
    const uintptr_t end = reinterpret_cast<uintptr_t>(memory.data() + memory.size()) & ~uintptr_t(15);
    // Six registers, where to go, and where that returns to: it never does.
    void** top = reinterpret_cast<void**>(end) - 8;
    std::fill(top, top + 8, nullptr);
    top[6] = reinterpret_cast<void*>(run);
    stack = top;
  }
};

inline void change(Context& from, Context& to) {
  emulate_change(&from.stack, to.stack);
}
#else
struct Context {
  ucontext_t own;
  void begin(std::vector<char>& memory, void (*run)()) {
    getcontext(&own);
    own.uc_stack.ss_sp = memory.data();
    own.uc_stack.ss_size = memory.size();
    own.uc_link = nullptr;
    makecontext(&own, run, 0);
  }
};

inline void change(Context& from, Context& to) {
  swapcontext(&from.own, &to.own);
}
#endif

struct Fiber {
  Context context;
  std::vector<char> stack = std::vector<char>(128 * 1024);
  bool done = false;
};

// A place where `count` threads wait for one another.
struct Barrier {
  int count = 0, arrived = 0;
  long round = 0;
};

inline std::vector<Fiber> fibers;
inline Context scheduler;
inline Barrier block;
inline std::vector<Barrier> warps;
inline std::vector<float> lanes;
inline std::function<void()> kernel;

inline void wait(Barrier& barrier) {
  const long round = barrier.round;
  if (++barrier.arrived == barrier.count) {
    barrier.arrived = 0;
    ++barrier.round;
    return;
  }
  while (barrier.round == round) {
    const int own = threadIdx.x;
    change(fibers[own].context, scheduler);
    threadIdx.x = own;
  }
}

inline void run_fiber() {
  kernel();
  fibers[threadIdx.x].done = true;
  change(fibers[threadIdx.x].context, scheduler);
}

// Runs a kernel in blocks of threads, one block after the other.
inline void launch(int blocks, int threads, std::function<void()> body) {
  kernel = std::move(body);
  gridDim.x = blocks;
  fibers.resize(threads);
  lanes.resize(threads);
  blockDim.x = threads;
  for (blockIdx.x = 0; blockIdx.x < blocks; ++blockIdx.x) {
    block = Barrier{threads};
    warps.assign(threads / 32, Barrier{32});
    for (auto& fiber : fibers) {
      fiber.done = false;
      fiber.context.begin(fiber.stack, run_fiber);
    }
    int left = threads;
    for (long turns = 0; left > 0; ++turns) {
      if (turns > 1000000) {
        puts("the threads of a block wait for one another for ever");
        exit(1);
      }
      left = 0;
      for (threadIdx.x = 0; threadIdx.x < threads; ++threadIdx.x) {
        const int own = threadIdx.x;
        if (!fibers[own].done) {
          change(scheduler, fibers[own].context);
          threadIdx.x = own;
          left += !fibers[own].done;
        }
      }
    }
  }
}

// Runs a kernel whose threads do not wait for one another.
template <class Body>
inline void each(int blocks, int threads, Body body) {
  gridDim.x = blocks;
  blockDim.x = threads;
  for (blockIdx.x = 0; blockIdx.x < blocks; ++blockIdx.x) {
    for (threadIdx.x = 0; threadIdx.x < threads; ++threadIdx.x) {
      body();
    }
  }
}

} // namespace emulate

inline void __syncthreads() {
  emulate::wait(emulate::block);
}

// Of the lane `from` of the own warp.
inline float __shfl_sync(unsigned, float number, int from) {
  const int own = threadIdx.x;
  auto& warp = emulate::warps[own / 32];
  emulate::lanes[own] = number;
  emulate::wait(warp);
  const float other = emulate::lanes[own / 32 * 32 + from];
  emulate::wait(warp);
  return other;
}

inline int __shfl_xor_sync(unsigned mask, int number, int by) {
  return __float_as_int(__shfl_sync(mask, __int_as_float(number), threadIdx.x % 32 ^ by));
}

inline float __shfl_xor_sync(unsigned mask, float number, int by) {
  return __shfl_sync(mask, number, threadIdx.x % 32 ^ by);
}

namespace emulate {

inline std::vector<std::vector<float>> fragments;

// The product of a 16 x 16 and a 16 x 8 matrix, added to a 16 x 8 one, of which each of a warp's threads has a part.
inline void multiply_add(float* d, const unsigned (&a)[4], const unsigned (&b)[2], float (*number)(unsigned, int)) {
  const int own = threadIdx.x, lane = own % 32, first = own / 32 * 32;
  if (fragments.size() < lanes.size()) {
    fragments.resize(lanes.size());
  }
  auto& numbers = fragments[own];
  numbers.clear();
  for (int i = 0; i < 6; ++i) {
    for (int half = 0; half < 2; ++half) {
      numbers.push_back(number(i < 4 ? a[i] : b[i - 4], half));
    }
  }
  wait(warps[own / 32]);
  for (int i = 0; i < 4; ++i) {
    const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
    for (int k = 0; k < 16; ++k) {
      // Four words of the first matrix: the upper and the lower rows of the first terms, then of the last ones.
      const auto& left = fragments[first + row % 8 * 4 + k % 8 / 2];
      const auto& right = fragments[first + column * 4 + k % 8 / 2];
      d[i] += left[(row / 8 + k / 8 * 2) * 2 + k % 2] * right[8 + k / 8 * 2 + k % 2];
    }
  }
  wait(warps[own / 32]);
}

} // namespace emulate

#define MULTIPLY_ADD(type, d, a0, a1, a2, a3, b0, b1) \
  emulate::multiply_add(d, {a0, a1, a2, a3}, {b0, b1}, [](unsigned word, int half) { \
    const uint16_t bits = word >> (16 * half); \
    T number; \
    memcpy(&number, &bits, 2); \
    return float(number); \
  })
