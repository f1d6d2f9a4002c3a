//! Each kernel in every form of vectors that the machine has, against plain references: sizes that fill vectors, tiles
//! and panels and that do not, arrays in any layout. The kernels are the library's own, which the NIF has.

mod chain;
mod convolutions;
mod elementwise;
mod fft;
mod floats;
mod gather;
mod gemm8;
mod indices;
mod keys;
mod linalg;
mod masked;
mod math;
mod moves;
mod order;
mod pool;
mod products;
mod reduce;
mod scan;
mod scatter;
mod support;
mod windows;
