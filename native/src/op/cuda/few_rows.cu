  // What the kernels for products of few rows without tensor cores share: x as f32.
  __shared__ float xs[ROWS * K];
  __shared__ float sums[WARPS];

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
          xs[r * K + i] = rounded(rounded(xs[r * K + i] * scale) * static_cast<float>(norm[i * norm_strides[0]]));
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
      write(r, c, value);
    }
  };
