// What stands before each generated kernel (text.rs): types, packs of elements and the functions whose meaning is the
// CPU's (native/cpu/src/elementwise, native/cpu/src/math). CUDA's headers are left out: they take longer to compile
// than a kernel. test/cuda/emulate.hpp has F16_WIDEN and F16_NARROW for the CPU.
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef signed char s8;
typedef short s16;
typedef int s32;
typedef long long s64;

#ifndef F16_WIDEN
#define F16_WIDEN(number, bits) asm("cvt.f32.f16 %0, %1;" : "=f"(number) : "h"(bits))
#define F16_NARROW(bits, number) asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(number))
// 16 bytes that the cache need not keep.
#define READ_ONCE(a, b, c, d, from) \
  asm("ld.cs.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(a), "=r"(b), "=r"(c), "=r"(d) : "l"(from))
#define WRITE_ONCE(to, a, b, c, d) \
  asm volatile("st.cs.v4.u32 [%0], {%1, %2, %3, %4};" : : "l"(to), "r"(a), "r"(b), "r"(c), "r"(d) : "memory")
#endif

// ---- elements ----

template <class T, int N>
struct alignas(sizeof(T) * N) Pack {
  T v[N];
};

struct alignas(16) Words {
  u32 v[4];
};

// `count` elements; 0 in the places beyond them. A whole pack is read at once, past the cache where it is used `once`.
template <class T, int N, bool once = false>
__device__ inline Pack<T, N> read_pack(const T* from, int count, bool is_whole) {
  if (is_whole) {
    if constexpr (once && sizeof(Pack<T, N>) == sizeof(Words)) {
      union {
        Words words;
        Pack<T, N> pack;
      } read;
      READ_ONCE(read.words.v[0], read.words.v[1], read.words.v[2], read.words.v[3], from);
      return read.pack;
    }
    return *reinterpret_cast<const Pack<T, N>*>(from);
  }
  Pack<T, N> pack;
#pragma unroll
  for (int i = 0; i < N; ++i) {
    pack.v[i] = i < count ? from[i] : T(0);
  }
  return pack;
}

template <class T, int N, bool once = false>
__device__ inline void write_pack(const Pack<T, N>& pack, T* to, int count, bool is_whole) {
  if (is_whole) {
    if constexpr (once && sizeof(Pack<T, N>) == sizeof(Words)) {
      union {
        Pack<T, N> pack;
        Words words;
      } written = {pack};
      WRITE_ONCE(to, written.words.v[0], written.words.v[1], written.words.v[2], written.words.v[3]);
      return;
    }
    *reinterpret_cast<Pack<T, N>*>(to) = pack;
    return;
  }
#pragma unroll
  for (int i = 0; i < N; ++i) {
    if (i < count) {
      to[i] = pack.v[i];
    }
  }
}

// Of the two halves that an argument of 64 bits comes in.
__device__ inline s64 joined(int low, int high) {
  return s64(u64(u32(high)) << 32 | u32(low));
}

// ---- floats of 16 bits, computed with as float ----

__device__ inline float of_f16(u16 bits) {
  float number;
  F16_WIDEN(number, bits);
  return number;
}

__device__ inline u16 to_f16(float number) {
  u16 bits;
  F16_NARROW(bits, number);
  return bits;
}

__device__ inline float of_bf16(u16 bits) {
  return __int_as_float(s32(u32(bits) << 16));
}

__device__ inline u16 to_bf16(float number) {
  const u32 bits = u32(__float_as_int(number));
  return number != number ? u16(bits >> 16 | 0x40) : u16((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

__device__ inline float round_f16(float number) {
  return of_f16(to_f16(number));
}

__device__ inline float round_bf16(float number) {
  return of_bf16(to_bf16(number));
}

// ---- functions of floats ----

__device__ inline float infinity() {
  return __int_as_float(0x7f800000);
}

// By way of e^-|x|, which loses nothing on either side.
__device__ inline float sigmoid(float x) {
  const float e = expf(-fabsf(x));
  return (x < 0.0f ? e : 1.0f) / (1.0f + e);
}

// 0 of NaN.
__device__ inline float sign(float x) {
  return x > 0.0f ? 1.0f : x < 0.0f ? -1.0f : 0.0f;
}

// Halves away from zero. What is added is the largest number below a half.
__device__ inline float round_away(float x) {
  return truncf(x + copysignf(0.49999997f, x));
}

// NaN where either is, and the first of two that are equal.
__device__ inline float larger(float a, float b) {
  return b != b || b > a ? b : a;
}

__device__ inline float smaller(float a, float b) {
  return b != b || b < a ? b : a;
}

__device__ inline float power(float a, float b) {
  return b == 2.0f ? a * a : b == 3.0f ? a * a * a : powf(a, b);
}

// With the divisor's sign, of a zero too.
__device__ inline float floor_mod(float a, float b) {
  const float rest = fmodf(a, b);
  if (rest == 0.0f) {
    return copysignf(rest, b);
  }
  return (rest < 0.0f) != (b < 0.0f) ? rest + b : rest;
}

// ---- division of integers: by zero all are 0, and the smallest integer by -1 wraps around ----

template <class T>
__device__ inline bool is_minus_one(T b) {
  return T(-1) < T(0) && b == T(-1);
}

template <class T>
__device__ inline T quotient(T a, T b) {
  return b == T(0) ? T(0) : is_minus_one(b) ? T(0ull - u64(a)) : T(a / b);
}

template <class T>
__device__ inline T int_fmod(T a, T b) {
  return b == T(0) || is_minus_one(b) ? T(0) : T(a % b);
}

// Whether a remainder with the dividend's sign has another one than the divisor.
template <class T>
__device__ inline bool differs(T rest, T b) {
  return rest != T(0) && (rest < T(0)) != (b < T(0));
}

template <class T>
__device__ inline T floor_divide(T a, T b) {
  return T(u64(quotient(a, b)) - differs(int_fmod(a, b), b));
}

template <class T>
__device__ inline T remainder_of(T a, T b) {
  const T rest = int_fmod(a, b);
  return differs(rest, b) ? T(u64(rest) + u64(b)) : rest;
}

// ---- floats to integers ----

// What has no room is the smallest integer.
__device__ inline s32 to_s32(float x) {
  return x >= -2147483648.0f && x < 2147483648.0f ? s32(x) : s32(0x80000000u);
}

__device__ inline s64 to_s64(float x) {
  return x >= -9223372036854775808.0f && x < 9223372036854775808.0f ? s64(x) : s64(0x8000000000000000ull);
}

// As two conversions to signed integers, of which the second takes what is beyond the first's.
__device__ inline u64 to_u64(float x) {
  return x >= 9223372036854775808.0f ? u64(to_s64(x - 9223372036854775808.0f)) ^ 0x8000000000000000ull : u64(to_s64(x));
}

// Beyond the type they wrap around, NaN is 0, and an infinity the largest or smallest.
template <class T>
__device__ inline T to_integer(float x, T low, T high) {
  if (x != x) {
    return T(0);
  }
  if (x == infinity()) {
    return high;
  }
  if (x == -infinity()) {
    return low;
  }
  return sizeof(T) == 8 && T(-1) > T(0) && x > 0.0f ? T(to_u64(x)) : T(to_s64(x));
}

