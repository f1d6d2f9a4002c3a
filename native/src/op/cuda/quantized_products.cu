  // Each block computes TILE columns of one product, or of both that are gated. SPLIT warps share MINE columns of it, each of which is a row
  // of words: a thread reads a word of each of them, so that it reads its numbers of x once.
  constexpr int PER = 32 / BITS, PAIR = GATED ? 2 : 1, WARPS = THREADS / 32, MINE = 4, TILE = WARPS / SPLIT * MINE;
  constexpr int WORDS = K / PER, STEP = 32 * SPLIT;
  __shared__ float xs[ROWS * K];
  __shared__ float parts[SPLIT * ROWS * PAIR * TILE];
  __shared__ float sums[WARPS];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;

  int tile = blockIdx.x, which = 0;
  if (!GATED && COUNT > 1 && tile >= N0 / TILE) {
    tile -= N0 / TILE;
    which = 1;
    if (COUNT > 2 && tile >= N1 / TILE) {
      tile -= N1 / TILE;
      which = 2;
    }
  }
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
  const int sizes[] = {N0, N1, N2};
  const int n = sizes[which], column = tile * TILE, part = warp % SPLIT, own = warp / SPLIT * MINE;

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

  auto total = [&](float value) {
    for (int by = 16; by > 0; by /= 2) value += __shfl_xor_sync(0xffffffff, value, by);
    return value;
  };
#pragma unroll
  for (int r = 0; r < ROWS; r++) {
    float squares = 0.0f;
    for (int i = threadIdx.x; i < K; i += THREADS) {
      const float value = static_cast<float>(x[r * x_strides[AXIS] + i * x_strides[AXIS + 1]]);
      xs[r * K + i] = value;
      squares += value * value;
    }
    if (NORM) {
      squares = total(squares);
      if (r > 0) __syncthreads();
      if (lane == 0) sums[warp] = squares;
      __syncthreads();
      const float scale = rsqrtf(total(lane < WARPS ? sums[lane] : 0.0f) / K + __int_as_float(EPS));
      for (int i = threadIdx.x; i < K; i += THREADS) {
        const float scaled = static_cast<float>(static_cast<T>(xs[r * K + i] * scale));
        xs[r * K + i] = static_cast<float>(static_cast<T>(scaled * static_cast<float>(norm[i * norm_strides[0]])));
      }
    }
  }
  __syncthreads();

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

  for (int t = threadIdx.x; t < ROWS * TILE; t += THREADS) {
    const int r = t / TILE, c = t % TILE;
    float value[PAIR] = {};
    for (int slot = 0; slot < SPLIT; slot++) {
#pragma unroll
      for (int p = 0; p < PAIR; p++) value[p] += parts[((slot * ROWS + r) * PAIR + p) * TILE + c];
    }
    // Rounded where the operations by themselves would round.
    auto rounded = [](float value) { return static_cast<float>(static_cast<T>(value)); };
    float y = rounded(value[0]);
    if (GATED) {
      const float sigmoid = rounded(1.0f / (1.0f + expf(-y)));
      y = rounded(rounded(sigmoid * y) * rounded(value[PAIR - 1]));
    }
    if (RESIDUAL) y = y + static_cast<float>(residual[r * residual_strides[ADDED] + (column + c) * residual_strides[ADDED + 1]]);
    outs[which][r * n + column + c] = static_cast<T>(y);
  }
