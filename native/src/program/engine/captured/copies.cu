// Copies several stretches of bytes: blockIdx.y says which one, the blocks along x share it.
struct Copy {
  unsigned long long from, to, bytes;
};
struct Copies {
  Copy all[COUNT];
};
extern "C" __global__ void __launch_bounds__(THREADS) emlx_copies(const __grid_constant__ Copies copies) {
  const Copy copy = copies.all[blockIdx.y];
  const unsigned long long first = blockIdx.x * THREADS + threadIdx.x;
  const unsigned long long step = gridDim.x * THREADS;
  unsigned long long done = 0;
  if ((copy.from | copy.to) % 16 == 0) {
    const unsigned long long packs = copy.bytes / 16;
    for (unsigned long long i = first; i < packs; i += step)
      reinterpret_cast<uint4*>(copy.to)[i] = reinterpret_cast<const uint4*>(copy.from)[i];
    done = packs * 16;
  }
  for (unsigned long long i = done + first; i < copy.bytes; i += step)
    reinterpret_cast<unsigned char*>(copy.to)[i] = reinterpret_cast<const unsigned char*>(copy.from)[i];
}
