  // A block computes one head of one query: groups of PARTS threads take a key each, and join what they have found at the end. Axes are
  // batch, place, head, size.
  constexpr int VEC = 16 / sizeof(T), PARTS = SIZE / VEC, GROUPS = THREADS / PARTS, UNROLL = 4;
  struct alignas(16) Pack { T v[VEC]; };
  __shared__ float highest[GROUPS], weights[GROUPS], values[GROUPS * SIZE];
  const int head = blockIdx.x % HEADS, batch = blockIdx.x / HEADS, kv_head = head / (HEADS / KV_HEADS);
  const int part = threadIdx.x % PARTS, group = threadIdx.x / PARTS;
  const T* keys = k + batch * k_strides[0] + kv_head * k_strides[2] + part * VEC * k_strides[3];
  const T* vals = v + batch * v_strides[0] + kv_head * v_strides[2] + part * VEC * v_strides[3];
  const bool* seen = reinterpret_cast<const bool*>(mask) + (MASK_BATCH ? batch * mask_strides[0] : 0) +
                     (MASK_HEADS ? head * mask_strides[1] : 0);
  auto even = [](const T* at, const int64_t* strides) {
    return reinterpret_cast<size_t>(at) % 16 == 0 && strides[3] == 1 && strides[1] % VEC == 0;
  };
  const int64_t k_step = k_strides[3], v_step = v_strides[3];
  const bool k_even = even(keys, &k_strides[0]), v_even = even(vals, &v_strides[0]);
  auto load = [](const T* at, int64_t step, bool even) {
    Pack pack;
    if (even) {
      pack = *reinterpret_cast<const Pack*>(at);
    } else {
      for (int i = 0; i < VEC; i++) pack.v[i] = at[i * step];
    }
    return pack;
  };

  float query[VEC], sum[VEC] = {};
#pragma unroll
  for (int i = 0; i < VEC; i++) {
    const int64_t at = batch * q_strides[0] + head * q_strides[2] + (part * VEC + i) * q_strides[3];
    query[i] = static_cast<float>(q[at]) * __int_as_float(SCALE);
  }
  float top = -INFINITY, weight = 0.0f;
  for (int first = 0; first < LENGTH; first += GROUPS * UNROLL) {
    Pack key[UNROLL], value[UNROLL];
    bool taken[UNROLL];
#pragma unroll
    for (int u = 0; u < UNROLL; u++) {
      const int place = first + u * GROUPS + group;
      taken[u] = place < LENGTH && (!MASKED || seen[place * mask_strides[3]]);
      if (taken[u]) {
        key[u] = load(keys + place * k_strides[1], k_step, k_even);
        value[u] = load(vals + place * v_strides[1], v_step, v_even);
      }
    }
#pragma unroll
    for (int u = 0; u < UNROLL; u++) {
      float score = 0.0f;
      if (taken[u]) {
#pragma unroll
        for (int i = 0; i < VEC; i++) score += query[i] * static_cast<float>(key[u].v[i]);
      }
      for (int by = PARTS / 2; by > 0; by /= 2) score += __shfl_xor_sync(0xffffffff, score, by);
      if (taken[u]) {
        const float before = top;
        top = fmaxf(top, score);
        const float kept = expf(before - top), own = expf(score - top);
        weight = weight * kept + own;
#pragma unroll
        for (int i = 0; i < VEC; i++) sum[i] = sum[i] * kept + own * static_cast<float>(value[u].v[i]);
      }
    }
  }
  if (part == 0) {
    highest[group] = top;
    weights[group] = weight;
  }
#pragma unroll
  for (int i = 0; i < VEC; i++) values[group * SIZE + part * VEC + i] = sum[i];
  __syncthreads();

  for (int t = threadIdx.x; t < SIZE; t += THREADS) {
    float most = -INFINITY, all = 0.0f, result = 0.0f;
    for (int g = 0; g < GROUPS; g++) most = fmaxf(most, highest[g]);
    if (most == -INFINITY) {
      // A query that sees no key sees all of them equally.
      const T* at = v + batch * v_strides[0] + kv_head * v_strides[2] + t * v_step;
      for (int place = 0; place < LENGTH; place++) result += static_cast<float>(at[place * v_strides[1]]);
      all = LENGTH;
    } else {
      for (int g = 0; g < GROUPS; g++) {
        const float scale = expf(highest[g] - most);
        all += weights[g] * scale;
        result += values[g * SIZE + t] * scale;
      }
    }
    out[static_cast<size_t>(blockIdx.x) * SIZE + t] = static_cast<T>(result / all);
  }
