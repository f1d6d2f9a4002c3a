  // A block looks at a row. NaN is before all numbers, and of equals the first one counts.
  constexpr int VEC = 16 / sizeof(T);
  struct alignas(16) Pack { T v[VEC]; };
  __shared__ float highest[THREADS / 32];
  __shared__ int places[THREADS / 32];
  const T* row = from + static_cast<size_t>(blockIdx.x) * LENGTH;
  float top = -INFINITY;
  int place = LENGTH;
  auto better = [](float a, int at, float b, int other) {
    if (a != a || b != b) return b == b || (a != a && (LAST ? at > other : at < other));
    return a > b || (a == b && at < other);
  };
  auto look = [&](float value, int at) {
    if (place == LENGTH || better(value, at, top, place)) {
      top = value;
      place = at;
    }
  };
  const bool even = reinterpret_cast<size_t>(row) % 16 == 0 && sizeof(T) <= 4;
  constexpr int PACKS = LENGTH / VEC;
  if (even) {
#pragma unroll 4
    for (int p = threadIdx.x; p < PACKS; p += THREADS) {
      const Pack pack = reinterpret_cast<const Pack*>(row)[p];
#pragma unroll
      for (int i = 0; i < VEC; i++) look(static_cast<float>(pack.v[i]), p * VEC + i);
    }
  }
  for (int i = (even ? PACKS * VEC : 0) + threadIdx.x; i < LENGTH; i += THREADS) look(static_cast<float>(row[i]), i);
  auto join = [&](float value, int at) {
    if (at < LENGTH) look(value, at);
  };
  for (int by = 16; by > 0; by /= 2) {
    const float value = __shfl_xor_sync(0xffffffff, top, by);
    const int at = __float_as_int(__shfl_xor_sync(0xffffffff, __int_as_float(place), by));
    join(value, at);
  }
  if (threadIdx.x % 32 == 0) {
    highest[threadIdx.x / 32] = top;
    places[threadIdx.x / 32] = place;
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int w = 1; w < THREADS / 32; w++) join(highest[w], places[w]);
    to[blockIdx.x] = place;
  }
