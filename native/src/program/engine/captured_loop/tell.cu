// The end of a loop's step: tells the host, in its memory, how many steps have ended, and whether there is no further
// one. `told` is {steps that have ended, 1 if there is no further one}.
extern "C" __global__ void emlx_tell(const bool* condition, volatile unsigned int* told) {
  if (!*condition) told[1] = 1;
  __threadfence_system();
  told[0] = told[0] + 1;
}
