  // What the kernels for products of few rows share. A block computes TILE columns of one product, or of both that are gated, from
  // `column` on.
  constexpr int PAIR = GATED ? 2 : 1, WARPS = THREADS / 32;
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

  // Rounded where the operations by themselves would round.
  auto rounded = [](float value) { return static_cast<float>(static_cast<T>(value)); };

  // Writes what row r has in the block's column c, of each product.
  auto write = [&](int r, int c, const float* value) {
    float y = rounded(value[0]);
    if (GATED) {
      const float sigmoid = rounded(1.0f / (1.0f + expf(-y)));
      y = rounded(rounded(sigmoid * y) * rounded(value[PAIR - 1]));
    }
    if (RESIDUAL) y = y + static_cast<float>(residual[r * residual_strides[ADDED] + (column + c) * residual_strides[ADDED_LAST]]);
    outs[which][r * n + column + c] = static_cast<T>(y);
  };
