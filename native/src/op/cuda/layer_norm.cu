  // A block norms a row, which it reads once and keeps in T. Means and sums of squared deviations are merged in pairs (Chan, Golub and
  // LeVeque): of a thread's packs, of a warp's lanes and of the block's warps. That takes one barrier where two sums take two.
  struct alignas(sizeof(T) * VEC) Pack { T v[VEC]; };
  struct alignas(16) Part { float mean, squares, count; };
  constexpr int STEP = THREADS * VEC, CHUNKS = (SIZE + STEP - 1) / STEP, WARPS = THREADS / 32;
  constexpr int MERGED = WARPS > 16 ? 32 : WARPS > 8 ? 16 : WARPS > 4 ? 8 : WARPS > 2 ? 4 : WARPS;
  // Whether all threads have as many numbers, and all warps; their counts are constants then.
  constexpr bool EVEN = SIZE == CHUNKS * STEP, EVEN_WARPS = EVEN && WARPS == MERGED;
  __shared__ Part parts[WARPS];
  const int lane = threadIdx.x % 32, first = threadIdx.x * VEC;
  const T* row = x + static_cast<size_t>(blockIdx.x) * SIZE;
  T* to = out + static_cast<size_t>(blockIdx.x) * SIZE;
  const float epsilon = eps[0];
  auto within = [&](int c) { return (c + 1) * STEP <= SIZE || c * STEP + first < SIZE; };
  auto load = [&](const T* from, Pack* packs) {
#pragma unroll
    for (int c = 0; c < CHUNKS; c++) {
      if (within(c)) packs[c] = *reinterpret_cast<const Pack*>(from + c * STEP + first);
    }
  };
  // A pack whose numbers are converted anew: the compiler would keep what they were converted to, in twice the registers.
  auto fresh = [](Pack pack) {
    unsigned words[(sizeof(Pack) + 3) / 4] = {};
    memcpy(words, &pack, sizeof(Pack));
#pragma unroll
    for (auto& word : words) asm volatile("" : "+r"(word));
    memcpy(&pack, words, sizeof(Pack));
    return pack;
  };
  float mean = 0.0f, squares = 0.0f, count = 0.0f;
  // With `others` numbers, which are this share of all.
  auto join = [&](float other, float more, float others, float share) {
    const float apart = other - mean;
    mean += apart * share;
    squares += more;
    squares += apart * (count * share) * apart;
    count += others;
  };
  Pack values[CHUNKS], weights[CHUNKS], biases[CHUNKS];
  // Slices may begin anywhere; x is given for what is absent. One branch for all loads, or each would wait for the one before.
  const bool aligned = (reinterpret_cast<size_t>(x) | reinterpret_cast<size_t>(weight) | reinterpret_cast<size_t>(bias)) %
                           sizeof(Pack) == 0;
  if (aligned) {
    load(row, values);
    if (WEIGHTED) load(weight, weights);
    if (BIASED) load(bias, biases);
#pragma unroll
    for (int c = 0; c < CHUNKS; c++) {
      if (within(c)) {
        const Pack pack = fresh(values[c]);
        float own[VEC], sums[VEC], total = 0.0f;
#pragma unroll
        for (int i = 0; i < VEC; i++) sums[i] = own[i] = static_cast<float>(pack.v[i]);
#pragma unroll
        for (int by = VEC / 2; by > 0; by /= 2) {
#pragma unroll
          for (int i = 0; i < by; i++) sums[i] += sums[i + by];
        }
        const float middle = sums[0] / VEC;
#pragma unroll
        for (int i = 0; i < VEC; i++) total += (own[i] - middle) * (own[i] - middle);
        join(middle, total, VEC, 1.0f / (c + 1));
      }
    }
  } else {
#pragma unroll 1
    for (int i = threadIdx.x; i < SIZE; i += THREADS) {
      join(static_cast<float>(row[i]), 0.0f, 1.0f, __fdividef(1.0f, count + 1.0f));
    }
  }
  if (EVEN) count = SIZE / THREADS;
  auto merge = [&](int by, bool even) {
    const float other = __shfl_xor_sync(0xffffffff, mean, by), more = __shfl_xor_sync(0xffffffff, squares, by);
    const float others = even ? count : __shfl_xor_sync(0xffffffff, count, by);
    join(other, more, others, even ? 0.5f : __fdividef(others, fmaxf(count + others, 1.0f)));
  };
#pragma unroll
  for (int by = 1; by < 32; by *= 2) merge(by, EVEN);
  if (WARPS > 1) {
    if (lane == 0) parts[threadIdx.x / 32] = {mean, squares, count};
    __syncthreads();
    const int warp = lane % MERGED;
    const Part part = warp < WARPS ? parts[warp] : Part{0.0f, 0.0f, 0.0f};
    mean = part.mean;
    squares = part.squares;
    if (!EVEN_WARPS) count = part.count;
#pragma unroll
    for (int by = 1; by < MERGED; by *= 2) merge(by, EVEN_WARPS);
  }
  // Lanes have merged in different orders, and rounded so.
  mean = __shfl_sync(0xffffffff, mean, 0);
  squares = __shfl_sync(0xffffffff, squares, 0);
  const float scale = rsqrtf(squares * (1.0f / SIZE) + epsilon);
  auto normal = [&](T value, T w, T b) {
    float y = (static_cast<float>(value) - mean) * scale;
    if (WEIGHTED) y *= static_cast<float>(w);
    if (BIASED) y += static_cast<float>(b);
    return static_cast<T>(y);
  };
  if (aligned) {
#pragma unroll
    for (int c = 0; c < CHUNKS; c++) {
      if (within(c)) {
        const Pack pack = fresh(values[c]);
        Pack w = pack, b = pack;
        if (WEIGHTED) w = fresh(weights[c]);
        if (BIASED) b = fresh(biases[c]);
        Pack result;
#pragma unroll
        for (int i = 0; i < VEC; i++) result.v[i] = normal(pack.v[i], w.v[i], b.v[i]);
        *reinterpret_cast<Pack*>(to + c * STEP + first) = result;
      }
    }
  } else {
#pragma unroll 1
    for (int i = threadIdx.x; i < SIZE; i += THREADS) to[i] = normal(row[i], weight[i], bias[i]);
  }
