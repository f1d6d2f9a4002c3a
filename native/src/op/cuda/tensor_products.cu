  // Products of 16-bit numbers by tensor cores. A block's warps share k, in steps of 32 terms; each computes all rows and the tile's
  // columns, NT times 8, and their sums are added up at the end. Which terms a step's two instructions multiply is free as long
  // as both operands have the same, so a thread reads eight that lie together.
#ifndef MULTIPLY_ADD
#define MULTIPLY_ADD(type, d, a0, a1, a2, a3, b0, b1) \
  asm("mma.sync.aligned.m16n8k16.row.col.f32." type "." type ".f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};" \
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) \
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1))
#endif
  static_assert(TILE == NT * 8 && K % 32 == 0);
  constexpr int BANDS = (ROWS + 15) / 16, SUMS = PAIR * BANDS * NT * 4, STEPS = K / 32;
  constexpr int DEPTH = PAIR * NT <= 2 ? 4 : PAIR * NT <= 4 ? 2 : 1;
  // Warps whose sums are in shared memory at once.
  constexpr int SLOTS = SUMS > 32 ? WARPS / 2 : WARPS;
  struct alignas(16) Pack { T v[8]; };
  struct alignas(NT * 2) Row { T v[NT]; };
  __shared__ float scales[ROWS];
  __shared__ float parts[SLOTS * SUMS * 32];
  const int group = lane / 4, part = lane % 4 * 8;

  const T* all[] = {w0, w1, w2};
  const int64_t along[] = {w0_strides[0], w1_strides[0], w2_strides[0]};
  const int64_t beside[] = {w0_strides[1], w1_strides[1], w2_strides[1]};
  const T* ws[PAIR];
  int64_t ks[PAIR], ns[PAIR];
  bool columns = true, rows = true;
#pragma unroll
  for (int p = 0; p < PAIR; p++) {
    ks[p] = along[which + p];
    ns[p] = beside[which + p];
    ws[p] = all[which + p] + column * ns[p];
    const bool aligned = reinterpret_cast<size_t>(all[which + p]) % 16 == 0;
    columns = columns && aligned && ks[p] == 1 && ns[p] % 8 == 0;
    rows = rows && aligned && ns[p] == 1 && ks[p] % NT == 0;
  }
  // The tile's column of an instruction's column.
  auto column_of = [&](int j, int c) { return columns ? j * 8 + c : c * NT + j; };

  Pack packs[DEPTH][PAIR][NT];
  auto fetch = [&](int first) {
#pragma unroll
    for (int d = 0; d < DEPTH; d++) {
      const int k = (first + d * WARPS) * 32 + part;
      if (first + d * WARPS >= STEPS) break;
#pragma unroll
      for (int p = 0; p < PAIR; p++) {
        if (columns) {
#pragma unroll
          for (int j = 0; j < NT; j++) packs[d][p][j] = *reinterpret_cast<const Pack*>(ws[p] + (j * 8 + group) * ns[p] + k);
        } else {
#pragma unroll
          for (int i = 0; i < 8; i++) {
            const T* at = ws[p] + (k + i) * ks[p] + group * NT * ns[p];
            Row row;
            if (rows) {
              row = *reinterpret_cast<const Row*>(at);
            } else {
              for (int j = 0; j < NT; j++) row.v[j] = at[j * ns[p]];
            }
#pragma unroll
            for (int j = 0; j < NT; j++) packs[d][p][j].v[i] = row.v[j];
          }
        }
      }
    }
  };
  // The matrix does not depend on what comes before: it is on its way while that is computed.
  fetch(warp);

  const bool x_even = reinterpret_cast<size_t>(x) % 16 == 0 && x_strides[LAST] == 1 && x_strides[AXIS] % 8 == 0;
  auto terms = [&](int r, int k) {
    Pack pack;
    const T* at = x + r * x_strides[AXIS] + k * x_strides[LAST];
    if (x_even) {
      pack = *reinterpret_cast<const Pack*>(at);
    } else {
      for (int i = 0; i < 8; i++) pack.v[i] = at[i * x_strides[LAST]];
    }
    return pack;
  };
  if (NORM) {
    for (int r = warp; r < ROWS; r += WARPS) {
      float squares = 0.0f;
      for (int k = lane * 8; k < K; k += 256) {
        const Pack pack = terms(r, k);
#pragma unroll
        for (int i = 0; i < 8; i++) squares += static_cast<float>(pack.v[i]) * static_cast<float>(pack.v[i]);
      }
      squares = total(squares);
      if (lane == 0) scales[r] = rsqrtf(squares / K + __int_as_float(EPS));
    }
    __syncthreads();
  }
  // The terms of a row from k on, normed; 0 where there is no such row.
  auto normed = [&](int r, int k) {
    Pack pack = {};
    if (r < ROWS) {
      pack = terms(r, k);
      if (NORM) {
        const float scale = scales[r];
#pragma unroll
        for (int i = 0; i < 8; i++) {
          const float weight = static_cast<float>(norm[(k + i) * norm_strides[0]]);
          pack.v[i] = static_cast<T>(rounded(static_cast<float>(pack.v[i]) * scale) * weight);
        }
      }
    }
    return pack;
  };

  float sums[PAIR][BANDS][NT][4] = {};
  for (int first = warp; first < STEPS; first += DEPTH * WARPS) {
    if (first != warp) fetch(first);
#pragma unroll
    for (int d = 0; d < DEPTH; d++) {
      if (first + d * WARPS >= STEPS) break;
      const int k = (first + d * WARPS) * 32 + part;
#pragma unroll
      for (int band = 0; band < BANDS; band++) {
        const Pack low = normed(band * 16 + group, k);
        Pack high = {};
        if (ROWS - band * 16 > 8) high = normed(band * 16 + 8 + group, k);
        const unsigned* a = reinterpret_cast<const unsigned*>(&low);
        const unsigned* b = reinterpret_cast<const unsigned*>(&high);
#pragma unroll
        for (int p = 0; p < PAIR; p++) {
#pragma unroll
          for (int j = 0; j < NT; j++) {
            const unsigned* w = reinterpret_cast<const unsigned*>(&packs[d][p][j]);
            float* sum = sums[p][band][j];
#pragma unroll
            for (int half = 0; half < 4; half += 2) {
              if (F16) {
                MULTIPLY_ADD("f16", sum, a[half], b[half], a[half + 1], b[half + 1], w[half], w[half + 1]);
              } else {
                MULTIPLY_ADD("bf16", sum, a[half], b[half], a[half + 1], b[half + 1], w[half], w[half + 1]);
              }
            }
          }
        }
      }
    }
  }

  float* own = &sums[0][0][0][0];
  if (SLOTS < WARPS) {
    if (warp >= SLOTS) {
#pragma unroll
      for (int i = 0; i < SUMS; i++) parts[((warp - SLOTS) * SUMS + i) * 32 + lane] = own[i];
    }
    __syncthreads();
    if (warp < SLOTS) {
#pragma unroll
      for (int i = 0; i < SUMS; i++) own[i] += parts[(warp * SUMS + i) * 32 + lane];
    }
    __syncthreads();
  }
  if (warp < SLOTS) {
#pragma unroll
    for (int i = 0; i < SUMS; i++) parts[(warp * SUMS + i) * 32 + lane] = own[i];
  }
  __syncthreads();
  constexpr int EACH = BANDS * NT * 4;
  for (int t = threadIdx.x; t < EACH * 32; t += THREADS) {
    const int i = t / 32, of = t % 32, band = i / (NT * 4), j = i / 4 % NT;
    const int r = band * 16 + i % 4 / 2 * 8 + of / 4, c = column_of(j, of % 4 * 2 + i % 2);
    if (r >= ROWS) continue;
    float value[PAIR] = {};
#pragma unroll
    for (int p = 0; p < PAIR; p++) {
      for (int slot = 0; slot < SLOTS; slot++) value[p] += parts[(slot * SUMS + p * EACH + i) * 32 + of];
    }
    write(r, c, value);
  }
