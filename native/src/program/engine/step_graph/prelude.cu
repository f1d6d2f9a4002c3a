typedef long long int64_t;
#define INFINITY __int_as_float(0x7f800000)

// Numbers of 16 bits, computed with as float. ROUND is the instruction that makes one, WIDEN gives the float of `bits`.
#define HALF(NAME, ROUND, WIDEN)                                          \
  struct NAME {                                                           \
    unsigned short bits;                                                  \
    NAME() = default;                                                     \
    __device__ explicit NAME(float number) {                              \
      asm(ROUND " %0, %1;" : "=h"(bits) : "f"(number));                   \
    }                                                                     \
    __device__ explicit operator float() const { return WIDEN(bits); }    \
  };

__device__ inline float of_bf16(unsigned short bits) {
  return __int_as_float(static_cast<int>(bits) << 16);
}

__device__ inline float of_f16(unsigned short bits) {
  float number;
  asm("cvt.f32.f16 %0, %1;" : "=f"(number) : "h"(bits));
  return number;
}

HALF(bf16, "cvt.rn.bf16.f32", of_bf16)
HALF(f16, "cvt.rn.f16.f32", of_f16)

