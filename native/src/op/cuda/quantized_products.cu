  // SPLIT warps share MINE columns, each of which is a row of words: a thread reads a word of each of them, so that it reads its numbers of x
  // once.
  constexpr int PER = 32 / BITS, MINE = 4, WORDS = K / PER, STEP = 32 * SPLIT;
  static_assert(TILE == WARPS / SPLIT * MINE);
  __shared__ float parts[SPLIT * ROWS * PAIR * TILE];
  const unsigned int* all[] = {w0, w1, w2};
  const T* all_scales[] = {scales0, scales1, scales2};
  const T* all_biases[] = {biases0, biases1, biases2};
  const int64_t down[][3] = {
      {w0_strides[0], scales0_strides[0], biases0_strides[0]},
      {w1_strides[0], scales1_strides[0], biases1_strides[0]},
      {w2_strides[0], scales2_strides[0], biases2_strides[0]}};
  const int64_t along[][3] = {
      {w0_strides[1], scales0_strides[1], biases0_strides[1]},
      {w1_strides[1], scales1_strides[1], biases1_strides[1]},
      {w2_strides[1], scales2_strides[1], biases2_strides[1]}};
  const int part = warp % SPLIT, own = warp / SPLIT * MINE;

  unsigned int words[PAIR][MINE];
  T scales[PAIR][MINE], biases[PAIR][MINE];
  auto fetch = [&](int at) {
    if (at >= WORDS) return;
    const int group = at * PER / GROUP;
#pragma unroll
    for (int p = 0; p < PAIR; p++) {
      const int64_t* rows = down[which + p];
      const int64_t* columns = along[which + p];
#pragma unroll
      for (int m = 0; m < MINE; m++) {
        const int64_t row = column + own + m;
        words[p][m] = all[which + p][row * rows[0] + at * columns[0]];
        scales[p][m] = all_scales[which + p][row * rows[1] + group * columns[1]];
        biases[p][m] = all_biases[which + p][row * rows[2] + group * columns[2]];
      }
    }
  };
  // The matrix does not depend on what comes before: it is on its way while that is computed.
  fetch(part * 32 + lane);

  widen();

  float sum[PAIR][MINE][ROWS] = {};
  for (int at = part * 32 + lane; at < WORDS; at += STEP) {
    // scale · Σ x · code + bias · Σ x
    float dots[PAIR][MINE][ROWS] = {}, plain[ROWS] = {};
#pragma unroll
    for (int i = 0; i < PER; i++) {
      float value[ROWS];
#pragma unroll
      for (int r = 0; r < ROWS; r++) {
        value[r] = xs[r * K + at * PER + i];
        plain[r] += value[r];
      }
#pragma unroll
      for (int p = 0; p < PAIR; p++) {
#pragma unroll
        for (int m = 0; m < MINE; m++) {
          // A code in the last bits of 2^23 is that number and the code: faster than a conversion.
          const unsigned int bits = words[p][m] >> (i * BITS) & ((1u << BITS) - 1);
          const float code = __int_as_float(static_cast<int>(0x4b000000u | bits)) - 8388608.0f;
#pragma unroll
          for (int r = 0; r < ROWS; r++) dots[p][m][r] += value[r] * code;
        }
      }
    }
#pragma unroll
    for (int p = 0; p < PAIR; p++) {
#pragma unroll
      for (int m = 0; m < MINE; m++) {
        const float scale = static_cast<float>(scales[p][m]), bias = static_cast<float>(biases[p][m]);
#pragma unroll
        for (int r = 0; r < ROWS; r++) sum[p][m][r] += scale * dots[p][m][r] + bias * plain[r];
      }
    }
    fetch(at + STEP);
  }
#pragma unroll
  for (int p = 0; p < PAIR; p++) {
#pragma unroll
    for (int m = 0; m < MINE; m++) {
#pragma unroll
      for (int r = 0; r < ROWS; r++) {
        const float value = total(sum[p][m][r]);
        if (lane == 0) parts[((part * ROWS + r) * PAIR + p) * TILE + own + m] = value;
      }
    }
  }
  __syncthreads();

  finish(parts, SPLIT);
