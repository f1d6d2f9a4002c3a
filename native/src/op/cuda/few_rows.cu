  // What the kernels for products of few rows share, before each of their texts. A block computes TILE columns of one product, or of both that
  // are gated, from `column` on.
  constexpr int PAIR = GATED ? 2 : 1, WARPS = THREADS / 32;
  __shared__ float xs[ROWS * K];
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
  const int sizes[] = {N0, N1, N2};
  const int n = sizes[which], column = tile * TILE;

  auto total = [&](float value) {
    for (int by = 16; by > 0; by /= 2) value += __shfl_xor_sync(0xffffffff, value, by);
    return value;
  };

  // Puts x into `xs`, normed.
  auto widen = [&] {
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
      float squares = 0.0f;
      for (int i = threadIdx.x; i < K; i += THREADS) {
        const float value = static_cast<float>(x[r * x_strides[AXIS] + i * x_strides[LAST]]);
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
  };

  // Writes the block's columns, each of which is what `slots` numbers of `parts` add up to.
  auto finish = [&](const float* parts, int slots) {
    for (int t = threadIdx.x; t < ROWS * TILE; t += THREADS) {
      const int r = t / TILE, c = t % TILE;
      float value[PAIR] = {};
      for (int slot = 0; slot < slots; slot++) {
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
      if (RESIDUAL) y = y + static_cast<float>(residual[r * residual_strides[ADDED] + (column + c) * residual_strides[ADDED_LAST]]);
      outs[which][r * n + column + c] = static_cast<T>(y);
    }
  };
