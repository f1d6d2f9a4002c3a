  // A block's threads stand WIDE across, each with 16 bytes of a row, and the rest share the rows.
  struct alignas(16) Pack { T v[16 / sizeof(T)]; };
  constexpr int VEC = 16 / sizeof(T), LANES = THREADS / WIDE, UNROLL = 4;
  static_assert(TILE == WIDE * VEC);
  __shared__ float parts[WARPS * ROWS * PAIR * TILE];
  const T* all[] = {w0, w1, w2};
  const int64_t along[] = {w0_strides[0], w1_strides[0], w2_strides[0]};
  const int64_t beside[] = {w0_strides[1], w1_strides[1], w2_strides[1]};
  const T* ws[PAIR];
  int64_t ks[PAIR], ns[PAIR];
  bool rows = true, columns = K % VEC == 0;
#pragma unroll
  for (int p = 0; p < PAIR; p++) {
    ks[p] = along[which + p];
    ns[p] = beside[which + p];
    ws[p] = all[which + p] + column * ns[p];
    const bool aligned = reinterpret_cast<size_t>(all[which + p]) % 16 == 0;
    rows = rows && aligned && ns[p] == 1 && ks[p] % VEC == 0;
    columns = columns && aligned && ks[p] == 1 && ns[p] % VEC == 0;
  }

  const int across = (threadIdx.x % WIDE) * VEC, from = threadIdx.x / WIDE;
  Pack packs[PAIR][UNROLL];
  auto fetch = [&](int first) {
#pragma unroll
    for (int p = 0; p < PAIR; p++) {
#pragma unroll
      for (int u = 0; u < UNROLL; u++) {
        const int k = first + u * LANES + from;
        if (k < K) {
          const T* at = ws[p] + k * ks[p] + across * ns[p];
          if (rows) {
            packs[p][u] = *reinterpret_cast<const Pack*>(at);
          } else {
            for (int i = 0; i < VEC; i++) packs[p][u].v[i] = at[i * ns[p]];
          }
        }
      }
    }
  };
  // The matrix does not depend on what comes before: it is on its way while that is computed.
  if (!columns) fetch(0);

  widen();

  int slots = WARPS;
  if (columns) {
    slots = 1;
    for (int c = warp; c < TILE; c += WARPS) {
#pragma unroll
      for (int p = 0; p < PAIR; p++) {
        float sum[ROWS] = {};
        const T* at = ws[p] + c * ns[p];
#pragma unroll 4
        for (int k = lane * VEC; k < K; k += 32 * VEC) {
          const Pack pack = *reinterpret_cast<const Pack*>(at + k);
#pragma unroll
          for (int r = 0; r < ROWS; r++) {
#pragma unroll
            for (int i = 0; i < VEC; i++) sum[r] += xs[r * K + k + i] * static_cast<float>(pack.v[i]);
          }
        }
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
          sum[r] = total(sum[r]);
          if (lane == 0) parts[(r * PAIR + p) * TILE + c] = sum[r];
        }
      }
    }
  } else {
    float sum[PAIR][ROWS][VEC] = {};
    for (int first = 0; first < K; first += UNROLL * LANES) {
#pragma unroll
      for (int u = 0; u < UNROLL; u++) {
        const int k = first + u * LANES + from;
        if (k < K) {
#pragma unroll
          for (int r = 0; r < ROWS; r++) {
            const float value = xs[r * K + k];
#pragma unroll
            for (int p = 0; p < PAIR; p++) {
#pragma unroll
              for (int i = 0; i < VEC; i++) sum[p][r][i] += value * static_cast<float>(packs[p][u].v[i]);
            }
          }
        }
      }
      if (first + UNROLL * LANES < K) fetch(first + UNROLL * LANES);
    }
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
#pragma unroll
      for (int p = 0; p < PAIR; p++) {
#pragma unroll
        for (int i = 0; i < VEC; i++) {
          float value = sum[p][r][i];
          for (int by = 16; by >= WIDE; by /= 2) value += __shfl_xor_sync(0xffffffff, value, by);
          if (lane < WIDE) parts[((warp * ROWS + r) * PAIR + p) * TILE + lane * VEC + i] = value;
        }
      }
    }
  }
  __syncthreads();

  finish(parts, slots);
