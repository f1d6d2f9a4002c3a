// What stands before each generated reduction, behind ../prelude.cu: what a thread keeps of the elements that it has
// seen (a state), and how the states of threads become one.

constexpr int THREADS = 256;

// ---- words of a state, from the lane of the own warp that is `by` away ----

template <class T>
__device__ inline T shuffled(T number, int by) {
  if (sizeof(T) == 8) {
    const u64 bits = u64(number);
    const u32 low = u32(__shfl_xor_sync(0xffffffffu, int(u32(bits)), by));
    const u32 high = u32(__shfl_xor_sync(0xffffffffu, int(u32(bits >> 32)), by));
    return T(u64(high) << 32 | low);
  }
  return T(__shfl_xor_sync(0xffffffffu, int(number), by));
}

__device__ inline float shuffled(float number, int by) {
  return __int_as_float(__shfl_xor_sync(0xffffffffu, __float_as_int(number), by));
}

// ---- states ----

// A sum with what its roundings left out, so that the error does not grow with the number of terms.
struct FloatSum {
  float sum, rest;
  static __device__ inline FloatSum none() {
    return {0.0f, 0.0f};
  }
  __device__ inline void add(float x) {
    const float next = sum + x;
    const float added = next - sum;
    rest += (sum - (next - added)) + (x - added);
    sum = next;
  }
  template <int N>
  __device__ inline void add_all(const float (&x)[N]) {
    float sums[N];
#pragma unroll
    for (int i = 0; i < N; ++i) {
      sums[i] = x[i];
    }
#pragma unroll
    for (int half = N / 2; half > 0; half /= 2) {
#pragma unroll
      for (int i = 0; i < half; ++i) {
        sums[i] += sums[i + half];
      }
    }
    add(sums[0]);
  }
  __device__ inline void join(const FloatSum& other) {
    add(other.sum);
    rest += other.rest;
  }
  __device__ inline FloatSum from(int by) const {
    return {shuffled(sum, by), shuffled(rest, by)};
  }
  // Of a sum that is not finite there is no rest.
  __device__ inline float value() const {
    return rest == rest ? sum + rest : sum;
  }
};

// A state that is a number, which `F` joins with others.
template <class T, class F>
struct Single {
  T number;
  static __device__ inline Single none() {
    return {F::none()};
  }
  __device__ inline void add(T x) {
    number = F::both(number, x);
  }
  template <int N>
  __device__ inline void add_all(const T (&x)[N]) {
#pragma unroll
    for (int i = 0; i < N; ++i) {
      add(x[i]);
    }
  }
  __device__ inline void join(const Single& other) {
    add(other.number);
  }
  __device__ inline Single from(int by) const {
    return {shuffled(number, by)};
  }
  __device__ inline T value() const {
    return number;
  }
};

// Integers wrap around.
template <class T>
struct Sum {
  static __device__ inline T none() {
    return T(0);
  }
  static __device__ inline T both(T a, T b) {
    return T(u64(a) + u64(b));
  }
};

template <class T>
struct Product {
  static __device__ inline T none() {
    return T(1);
  }
  static __device__ inline T both(T a, T b) {
    return T(u64(a) * u64(b));
  }
};

template <>
struct Product<float> {
  static __device__ inline float none() {
    return 1.0f;
  }
  static __device__ inline float both(float a, float b) {
    return a * b;
  }
};

template <class T>
__device__ inline T lowest(T) {
  return T(-1) < T(0) ? T(u64(1) << (8 * sizeof(T) - 1)) : T(0);
}

__device__ inline float lowest(float) {
  return -infinity();
}

template <class T>
__device__ inline T highest(T) {
  return T(~u64(lowest(T(0))));
}

__device__ inline float highest(float) {
  return infinity();
}

template <class T>
__device__ inline T larger(T a, T b) {
  return a > b ? a : b;
}

template <class T>
__device__ inline T smaller(T a, T b) {
  return a < b ? a : b;
}

template <class T>
struct Max {
  static __device__ inline T none() {
    return lowest(T(0));
  }
  static __device__ inline T both(T a, T b) {
    return larger(a, b);
  }
};

template <class T>
struct Min {
  static __device__ inline T none() {
    return highest(T(0));
  }
  static __device__ inline T both(T a, T b) {
    return smaller(a, b);
  }
};

// Of bytes that are 0 or 1.
template <class T>
struct All {
  static __device__ inline T none() {
    return T(1);
  }
  static __device__ inline T both(T a, T b) {
    return T(a & b);
  }
};

template <class T>
struct Any {
  static __device__ inline T none() {
    return T(0);
  }
  static __device__ inline T both(T a, T b) {
    return T(a | b);
  }
};

// The place of the largest or of the smallest element: the first of equals. NaN, of which the first or the last counts,
// is before all.
template <class T, bool IS_MAX, bool IS_LAST_NAN>
struct Place {
  T number;
  u32 place;
  static constexpr u32 nowhere = 0xffffffffu;
  static __device__ inline Place none() {
    return {T(0), nowhere};
  }
  static __device__ inline bool is_first(T a, u32 at_a, T b, u32 at_b) {
    const bool a_is_nan = a != a, b_is_nan = b != b;
    if (a_is_nan || b_is_nan) {
      return a_is_nan && (!b_is_nan || (IS_LAST_NAN ? at_a > at_b : at_a < at_b));
    }
    return (IS_MAX ? a > b : a < b) || (a == b && at_a < at_b);
  }
  __device__ inline void add(T x, u32 at) {
    if (at != nowhere && (place == nowhere || is_first(x, at, number, place))) {
      number = x;
      place = at;
    }
  }
  __device__ inline void join(const Place& other) {
    add(other.number, other.place);
  }
  __device__ inline Place from(int by) const {
    return {shuffled(number, by), shuffled(place, by)};
  }
  __device__ inline u32 value() const {
    return place;
  }
};

// ---- the states of several threads, as one that all of them have ----

template <class S>
__device__ inline void join_warp(S& state) {
#pragma unroll
  for (int by = 16; by > 0; by /= 2) {
    const S other = state.from(by);
    // The same order on both sides, so that both have the same sum.
    if (threadIdx.x & by) {
      S first = other;
      first.join(state);
      state = first;
    } else {
      state.join(other);
    }
  }
}

// `states` has room for one of each warp.
template <class S>
__device__ inline void join_block(S& state, S* states) {
  join_warp(state);
  __syncthreads();
  if (threadIdx.x % 32 == 0) {
    states[threadIdx.x / 32] = state;
  }
  __syncthreads();
  state = states[0];
#pragma unroll
  for (int i = 1; i < THREADS / 32; ++i) {
    state.join(states[i]);
  }
}

// Threads with the same place in rows of so many. `states` has room for one of each thread.
template <int COLUMNS, class S>
__device__ inline void join_columns(S& state, S* states) {
  __syncthreads();
  states[threadIdx.x] = state;
  __syncthreads();
  state = states[threadIdx.x % COLUMNS];
#pragma unroll
  for (int i = 1; i < THREADS / COLUMNS; ++i) {
    state.join(states[threadIdx.x % COLUMNS + i * COLUMNS]);
  }
}
