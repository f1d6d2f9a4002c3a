  // A warp norms and turns one head of a row of queries or keys, or repeats one of values.
  constexpr int HALF = SIZE / 2, PARTS = HALF / 32, EACH = HEADS + 2 * KV_HEADS;
  const int lane = threadIdx.x % 32, item = blockIdx.x * (THREADS / 32) + threadIdx.x / 32;
  if (item >= ROWS * EACH) return;
  const int row = item / EACH, index = item % EACH;
  const int kind = index < HEADS ? 0 : index < HEADS + KV_HEADS ? 1 : 2;
  const int head = kind == 0 ? index : (index - HEADS) % KV_HEADS;
  const T* from = kind == 0 ? q + row * q_strides[0] : kind == 1 ? k + row * k_strides[0] : v + row * v_strides[0];
  const int64_t step = kind == 0 ? q_strides[1] : kind == 1 ? k_strides[1] : v_strides[1];
  from += head * SIZE * step;
  float a[PARTS], b[PARTS];
#pragma unroll
  for (int i = 0; i < PARTS; i++) {
    a[i] = static_cast<float>(from[(i * 32 + lane) * step]);
    b[i] = static_cast<float>(from[(HALF + i * 32 + lane) * step]);
  }
  auto rounded = [](float value) { return static_cast<float>(static_cast<T>(value)); };
  if (kind < 2) {
    if (NORM) {
      float squares = 0.0f;
#pragma unroll
      for (int i = 0; i < PARTS; i++) squares += a[i] * a[i] + b[i] * b[i];
      for (int by = 16; by > 0; by /= 2) squares += __shfl_xor_sync(0xffffffff, squares, by);
      const float scale = rsqrtf(squares / SIZE + __int_as_float(EPS));
      const T* weight = kind == 0 ? q_norm : k_norm;
      const int64_t apart = kind == 0 ? q_norm_strides[0] : k_norm_strides[0];
#pragma unroll
      for (int i = 0; i < PARTS; i++) {
        a[i] = rounded(rounded(a[i] * scale) * static_cast<float>(weight[(i * 32 + lane) * apart]));
        b[i] = rounded(rounded(b[i] * scale) * static_cast<float>(weight[(HALF + i * 32 + lane) * apart]));
      }
    }
    const float place = __int_as_float(SCALE) * static_cast<float>(offset[row * offset_strides[0]]);
#pragma unroll
    for (int i = 0; i < PARTS; i++) {
      const int at = i * 32 + lane;
      const float inverse = OWN_FREQS ? 1.0f / static_cast<float>(freqs[at * freqs_strides[0]])
                                      : exp2f(-static_cast<float>(at) / HALF * __int_as_float(BASE));
      const float cosine = cosf(place * inverse), sine = sinf(place * inverse);
      const float p = a[i], r = b[i];
      a[i] = p * cosine - r * sine;
      b[i] = p * sine + r * cosine;
    }
  }
  T* to = kind == 0 ? out_q + static_cast<size_t>(row * HEADS + head) * SIZE
                    : (kind == 1 ? out_k : out_v) + static_cast<size_t>(row * KV_HEADS + head) * REPEAT * SIZE;
  for (int copy = 0; copy < (kind == 0 ? 1 : REPEAT); copy++) {
#pragma unroll
    for (int i = 0; i < PARTS; i++) {
      to[copy * SIZE + i * 32 + lane] = static_cast<T>(a[i]);
      to[copy * SIZE + HALF + i * 32 + lane] = static_cast<T>(b[i]);
    }
  }
