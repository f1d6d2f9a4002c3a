typedef long long int64_t;
#define INFINITY __int_as_float(0x7f800000)

struct bf16 {
  unsigned short bits;
  __device__ bf16() = default;
  __device__ explicit bf16(float number) {
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(number));
  }
  __device__ explicit operator float() const {
    return __int_as_float(static_cast<int>(bits) << 16);
  }
};

struct f16 {
  unsigned short bits;
  __device__ f16() = default;
  __device__ explicit f16(float number) {
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(number));
  }
  __device__ explicit operator float() const {
    float number;
    asm("cvt.f32.f16 %0, %1;" : "=f"(number) : "h"(bits));
    return number;
  }
};

