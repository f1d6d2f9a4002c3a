
  // A block for each matrix. Pivot j is the row, from 1 on, that row j changes places with.
  __shared__ T kept[SHARED ? ROWS : 1];
  T* row = SHARED ? kept : out + static_cast<size_t>(blockIdx.x) * ROWS;
  const T* pivot = pivots + static_cast<size_t>(blockIdx.x) * PIVOTS;
  for (int i = threadIdx.x; i < ROWS; i += blockDim.x) row[i] = i;
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int j = 0; j < PIVOTS; j++) {
      const int place = INVERSE ? PIVOTS - 1 - j : j;
      const int other = pivot[place] - 1;
      if (other >= 0 && other < ROWS) {
        const T moved = row[place];
        row[place] = row[other];
        row[other] = moved;
      }
    }
  }
  __syncthreads();
  if (SHARED) {
    for (int i = threadIdx.x; i < ROWS; i += blockDim.x) out[static_cast<size_t>(blockIdx.x) * ROWS + i] = row[i];
  }
