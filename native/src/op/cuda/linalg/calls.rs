//! The calls of cuSOLVER and cuBLAS that a factorization consists of: which function, in which layout, with which
//! memory. Nothing here depends on a device, so that tests run all calls with a library for the CPU's memory.
//!
//! The libraries take matrices in columns, and arrays lie in rows: what they see is the transposed matrix. Routines are
//! therefore told of the matrix that the library sees, and `mod.rs` transposes where the result needs it.

use crate::base::{Dtype, Error, Reason, Result};
use crate::mlx::cuda::cusolver::{check, Address, Handles, Libraries};
use crate::mlx::cuda::solver::Solving;
use smallvec::{smallvec, SmallVec};
use std::ffi::{c_int, c_void};
use std::sync::Arc;

/// One library's routine for every matrix of a batch. All matrices lie one after the other.
#[derive(Clone, Debug)]
pub enum Routine {
    /// a, symmetric → its factor in one triangle, infos. `upper` is of the array in rows.
    Potrf { n: i32, upper: bool },
    /// a in columns → both factors, pivots from 1 on, infos.
    Getrf { m: i32, n: i32 },
    /// a, the identity → factors, the inverse, infos.
    Inverse { n: i32 },
    /// a in columns → reflectors and r, q.
    Geqrf { m: i32, n: i32 },
    /// a of m rows in columns → nothing, singular values, infos; with `vectors` u and v in columns before the infos.
    Svd { m: i32, n: i32, vectors: bool },
    /// a → eigenvectors in columns, eigenvalues, infos.
    Eigh { n: i32, upper: bool, vectors: bool },
    /// b {n, columns}, a → x with a·x = b.
    Trsm(Triangular),
    /// Pivots → the order of rows that they stand for, by the host.
    #[cfg(test)]
    Order { k: i32, rows: i32, inverse: bool },
}

#[derive(Clone, Debug)]
pub struct Triangular {
    pub n: i32,
    pub columns: i32,
    pub upper: bool,
    /// The diagonal is 1, whatever stands there.
    pub unit: bool,
    /// Whether a lies in columns.
    pub in_columns: bool,
    /// For each matrix of b the number of its matrix of a.
    pub of: Arc<[u32]>,
}

/// Most rows for which batched functions are faster than one call after the other.
const BATCHED: i32 = 256;
const BATCHED_TRIANGULAR: i32 = 512;
/// Jacobi's batched methods take no more.
const JACOBI: i32 = 32;
/// Matrices for one call: some functions have a matrix for each block of a grid's second axis.
const AT_ONCE: usize = 32_768;

const VECTORS: c_int = 1;
const UPPER: c_int = 1;
const RIGHT: c_int = 1;
const TRANSPOSED: c_int = 1;
const UNIT: c_int = 1;

/// The triangle that the library sees of one in rows.
fn seen(upper: bool) -> c_int {
    c_int::from(!upper)
}

/// Bytes of s32.
const INT: usize = 4;

/// A node's work.
pub struct Call {
    pub name: &'static str,
    pub routine: Routine,
    pub is_complex: bool,
    pub batch: usize,
    pub libraries: &'static Libraries,
}

/// The parts of scratch memory, in bytes from its beginning.
#[derive(Default)]
struct Scratch {
    /// Addresses of the matrices of the first and of the second array.
    pointers: [usize; 2],
    pivots: usize,
    infos: usize,
    tau: usize,
    vectors: [usize; 2],
    work: usize,
    /// Numbers that the library asked for.
    size: c_int,
    bytes: usize,
}

fn area(m: i32, n: i32) -> usize {
    m as usize * n as usize
}

impl Routine {
    /// Inputs, and how many of them are overwritten.
    pub fn inputs(&self) -> (usize, usize) {
        match self {
            Routine::Inverse { .. } => (2, 2),
            Routine::Trsm(_) => (2, 1),
            _ => (1, 1),
        }
    }

    /// Shapes of the outputs without the batch, and their types. `own` is that of the matrices.
    pub fn outputs(&self, own: Dtype) -> SmallVec<[(SmallVec<[i32; 2]>, Dtype); 5]> {
        let info = (smallvec![], Dtype::S32);
        match *self {
            Routine::Potrf { n, .. } => smallvec![(smallvec![n, n], own), info],
            Routine::Getrf { m, n } => smallvec![
                (smallvec![n, m], own),
                (smallvec![m.min(n)], Dtype::S32),
                info
            ],
            Routine::Inverse { n } => {
                smallvec![(smallvec![n, n], own), (smallvec![n, n], own), info]
            }
            Routine::Geqrf { m, n } => {
                smallvec![(smallvec![n, m], own), (smallvec![m.min(n), m], own)]
            }
            Routine::Svd { m, n, vectors } => {
                let values = (smallvec![m.min(n)], Dtype::F32);
                let mut all = smallvec![(smallvec![n, m], own), values];
                if vectors {
                    all.push((smallvec![m, m], own));
                    all.push((smallvec![n, n], own));
                }
                all.push(info);
                all
            }
            Routine::Eigh { n, .. } => {
                smallvec![(smallvec![n, n], own), (smallvec![n], Dtype::F32), info]
            }
            Routine::Trsm(ref of) => smallvec![(smallvec![of.n, of.columns], own)],
            #[cfg(test)]
            Routine::Order { k, rows, .. } => {
                smallvec![(smallvec![k], own), (smallvec![rows], own)]
            }
        }
    }
}

impl Call {
    /// Bytes of a number of the matrices.
    fn number(&self) -> usize {
        match self.is_complex {
            true => 8,
            false => 4,
        }
    }

    fn is_batched(&self) -> bool {
        let is_small = match &self.routine {
            Routine::Potrf { n, .. } | Routine::Inverse { n } => *n <= BATCHED,
            Routine::Getrf { m, n } => m == n && *n <= BATCHED,
            Routine::Svd { m, n, .. } => *m <= JACOBI && *n <= JACOBI,
            Routine::Eigh { n, .. } => *n <= JACOBI,
            Routine::Trsm(of) => of.n <= BATCHED_TRIANGULAR,
            _ => false,
        };
        self.batch > 1 && is_small
    }

    /// Ranges of matrices that a batched function takes at once: the first one, and how many.
    fn parts(&self) -> impl Iterator<Item = (usize, c_int)> {
        let batch = self.batch;
        let part = move |first: usize| (first, (batch - first).min(AT_ONCE) as c_int);
        (0..batch).step_by(AT_ONCE).map(part)
    }

    /// Numbers that the library needs for one call.
    unsafe fn size(&self, h: &Handles) -> Result<c_int> {
        let f = &self.libraries.functions;
        let mut size = 0;
        let is_batched = self.is_batched();
        let most = self.batch.min(AT_ONCE) as c_int;
        match self.routine {
            Routine::Potrf { n, upper } if !is_batched => check(
                "cusolverDnSpotrf_bufferSize",
                (f.potrf_size)(h.solver, seen(upper), n, 0, n, &mut size),
            )?,
            Routine::Getrf { m, n } if !is_batched => check(
                "cusolverDnSgetrf_bufferSize",
                (f.getrf_size)(h.solver, m, n, 0, m, &mut size),
            )?,
            Routine::Inverse { n } if !is_batched => check(
                "cusolverDnSgetrf_bufferSize",
                (f.getrf_size)(h.solver, n, n, 0, n, &mut size),
            )?,
            Routine::Geqrf { m, n } => {
                let (k, mut other) = (m.min(n), 0);
                check(
                    "cusolverDnSgeqrf_bufferSize",
                    (f.geqrf_size)(h.solver, m, n, 0, m, &mut size),
                )?;
                check(
                    "cusolverDnSorgqr_bufferSize",
                    (f.orgqr_size)(h.solver, m, k, k, 0, m, 0, &mut other),
                )?;
                size = size.max(other);
            }
            Routine::Svd { m, n, vectors } if is_batched => check(
                "cusolverDn<t>gesvdjBatched_bufferSize",
                (self.of(&f.gesvdj_batched_size))(
                    h.solver,
                    c_int::from(vectors),
                    m,
                    n,
                    0,
                    m,
                    0,
                    0,
                    m,
                    0,
                    n,
                    &mut size,
                    h.gesvdj,
                    most,
                ),
            )?,
            Routine::Svd { m, n, vectors } => check(
                "cusolverDn<t>gesvdj_bufferSize",
                (self.of(&f.gesvdj_size))(
                    h.solver,
                    c_int::from(vectors),
                    0,
                    m,
                    n,
                    0,
                    m,
                    0,
                    0,
                    m,
                    0,
                    n,
                    &mut size,
                    h.gesvdj,
                ),
            )?,
            Routine::Eigh { n, upper, vectors } if is_batched => check(
                "cusolverDn<t>evjBatched_bufferSize",
                (self.of(&f.syevj_batched_size))(
                    h.solver,
                    c_int::from(vectors),
                    seen(upper),
                    n,
                    0,
                    n,
                    0,
                    &mut size,
                    h.syevj,
                    most,
                ),
            )?,
            Routine::Eigh { n, upper, vectors } => check(
                "cusolverDn<t>evd_bufferSize",
                (self.of(&f.syevd_size))(
                    h.solver,
                    c_int::from(vectors),
                    seen(upper),
                    n,
                    0,
                    n,
                    0,
                    &mut size,
                ),
            )?,
            _ => {}
        }
        Ok(size)
    }

    fn of<F: Copy>(&self, pair: &crate::mlx::cuda::cusolver::Pair<F>) -> F {
        match self.is_complex {
            true => pair.complex,
            false => pair.real,
        }
    }

    /// How scratch memory is laid out.
    unsafe fn layout(&self, h: &Handles) -> Result<Scratch> {
        let mut top = 0usize;
        let mut take = |bytes: usize| {
            let at = top;
            top += bytes.div_ceil(256) * 256;
            at
        };
        let mut scratch = Scratch {
            size: self.size(h)?,
            ..Scratch::default()
        };
        if self.is_batched() {
            scratch.pointers = [take(8 * self.batch), take(8 * self.batch)];
        }
        match self.routine {
            Routine::Inverse { n } => {
                scratch.pivots = take(INT * n as usize * self.batch);
                scratch.infos = take(INT * self.batch);
            }
            Routine::Geqrf { m, n } => {
                scratch.tau = take(self.number() * m.min(n) as usize);
                scratch.infos = take(INT);
            }
            // Without vectors, the library may still write to where they would be.
            Routine::Svd {
                m,
                n,
                vectors: false,
            } => {
                let matrices = if self.is_batched() { self.batch } else { 1 };
                let bytes = |n| self.number() * area(n, n) * matrices;
                scratch.vectors = [take(bytes(m)), take(bytes(n))];
            }
            _ => {}
        }
        scratch.work = take(self.number() * usize::try_from(scratch.size).unwrap_or(0));
        scratch.bytes = top;
        Ok(scratch)
    }

    /// The addresses of `count` matrices of so many bytes, as an array on the GPU.
    unsafe fn pointers(
        &self,
        stream: *mut c_void,
        to: Address,
        first: Address,
        bytes: usize,
        of: Option<&[u32]>,
    ) -> Result<()> {
        let place = |i: usize| of.map_or(i, |of| of[i] as usize);
        let pointers: Vec<u64> = (0..self.batch)
            .map(|i| first + (place(i) * bytes) as u64)
            .collect();
        self.libraries.upload(stream, to, &pointers)
    }
}

/// The address of a matrix or a number of an array.
fn at(first: Address, place: usize, bytes: usize) -> Address {
    first + (place * bytes) as u64
}

impl Solving for Call {
    fn counts(&self) -> (usize, usize) {
        let outputs = self.routine.outputs(Dtype::F32).len();
        (self.routine.inputs().0, outputs)
    }

    fn scratch(&self, stream: *mut c_void) -> Result<usize> {
        // SAFETY: asks for sizes alone; the stream is live.
        let layout = unsafe { self.libraries.handles(stream).and_then(|h| self.layout(&h)) };
        layout
            .map(|scratch| scratch.bytes)
            .map_err(|error| self.named(error))
    }

    unsafe fn run(
        &self,
        stream: *mut c_void,
        inputs: &[u64],
        outputs: &[u64],
        scratch: u64,
    ) -> Result<()> {
        let run = || {
            let h = self.libraries.handles(stream)?;
            let layout = self.layout(&h)?;
            let to = Run {
                call: self,
                h: &h,
                stream,
                inputs,
                outputs,
                scratch,
                layout: &layout,
            };
            to.run()
        };
        run().map_err(|error| self.named(error))
    }
}

impl Call {
    /// The failure of a call, with the operation's name.
    fn named(&self, error: Error) -> Error {
        if let Reason::Mlx(text) = &*error.reason {
            return Reason::Mlx(format!("{text} (of {})", self.name)).into();
        }
        error
    }
}

/// One run of a node.
struct Run<'a> {
    call: &'a Call,
    h: &'a Handles,
    stream: *mut c_void,
    inputs: &'a [u64],
    outputs: &'a [u64],
    scratch: Address,
    layout: &'a Scratch,
}

impl Run<'_> {
    fn part(&self, offset: usize) -> Address {
        self.scratch + offset as u64
    }

    unsafe fn run(&self) -> Result<()> {
        match self.call.routine {
            Routine::Potrf { n, upper } => self.potrf(n, upper),
            Routine::Getrf { m, n } => self.getrf(m, n, self.outputs[1], self.outputs[2]),
            Routine::Inverse { n } => self.inverse(n),
            Routine::Geqrf { m, n } => self.geqrf(m, n),
            Routine::Svd { m, n, vectors } => self.svd(m, n, vectors),
            Routine::Eigh { n, upper, vectors } => self.eigh(n, upper, vectors),
            Routine::Trsm(ref of) => self.trsm(of),
            #[cfg(test)]
            Routine::Order { k, rows, inverse } => self.order(k as usize, rows as usize, inverse),
        }
    }

    unsafe fn potrf(&self, n: i32, upper: bool) -> Result<()> {
        let (call, h, f) = (self.call, self.h, &self.call.libraries.functions);
        let (a, infos) = (self.outputs[0], self.outputs[1]);
        let bytes = area(n, n) * call.number();
        let uplo = seen(upper);
        if call.is_batched() {
            let pointers = self.part(self.layout.pointers[0]);
            call.pointers(self.stream, pointers, a, bytes, None)?;
            return call.parts().try_for_each(|(i, count)| {
                let (a, info) = (at(pointers, i, 8), at(infos, i, INT));
                check(
                    "cusolverDnSpotrfBatched",
                    (f.potrf_batched)(h.solver, uplo, n, a, n, info, count),
                )
            });
        }
        let (work, size) = (self.part(self.layout.work), self.layout.size);
        (0..call.batch).try_for_each(|i| {
            let (a, info) = (at(a, i, bytes), at(infos, i, INT));
            check(
                "cusolverDnSpotrf",
                (f.potrf)(h.solver, uplo, n, a, n, work, size, info),
            )
        })
    }

    unsafe fn getrf(&self, m: i32, n: i32, pivots: Address, infos: Address) -> Result<()> {
        let (call, h, f) = (self.call, self.h, &self.call.libraries.functions);
        let a = self.outputs[0];
        let bytes = area(m, n) * call.number();
        let of_pivots = m.min(n) as usize * INT;
        if call.is_batched() {
            let pointers = self.part(self.layout.pointers[0]);
            call.pointers(self.stream, pointers, a, bytes, None)?;
            return call.parts().try_for_each(|(i, count)| {
                let (a, pivots) = (at(pointers, i, 8), at(pivots, i, of_pivots));
                check(
                    "cublasSgetrfBatched",
                    (f.getrf_batched)(h.blas, n, a, n, pivots, at(infos, i, INT), count),
                )
            });
        }
        let work = self.part(self.layout.work);
        (0..call.batch).try_for_each(|i| {
            let (a, pivots) = (at(a, i, bytes), at(pivots, i, of_pivots));
            check(
                "cusolverDnSgetrf",
                (f.getrf)(h.solver, m, n, a, m, work, pivots, at(infos, i, INT)),
            )
        })
    }

    unsafe fn inverse(&self, n: i32) -> Result<()> {
        let (call, h, f) = (self.call, self.h, &self.call.libraries.functions);
        let (pivots, unused) = (self.part(self.layout.pivots), self.part(self.layout.infos));
        self.getrf(n, n, pivots, self.outputs[2])?;
        let bytes = area(n, n) * call.number();
        let of_pivots = n as usize * INT;
        let (a, x) = (self.outputs[0], self.outputs[1]);
        if call.is_batched() {
            let [of_a, of_x] = self.layout.pointers.map(|offset| self.part(offset));
            call.pointers(self.stream, of_x, x, bytes, None)?;
            return call.parts().try_for_each(|(i, count)| {
                let (a, x) = (at(of_a, i, 8), at(of_x, i, 8));
                let (pivots, info) = (at(pivots, i, of_pivots), at(unused, i, INT));
                check(
                    "cublasSgetriBatched",
                    (f.getri_batched)(h.blas, n, a, n, pivots, x, n, info, count),
                )
            });
        }
        (0..call.batch).try_for_each(|i| {
            let (a, x, pivots) = (at(a, i, bytes), at(x, i, bytes), at(pivots, i, of_pivots));
            check(
                "cusolverDnSgetrs",
                (f.getrs)(h.solver, 0, n, n, a, n, pivots, x, n, at(unused, i, INT)),
            )
        })
    }

    unsafe fn geqrf(&self, m: i32, n: i32) -> Result<()> {
        let (call, h, f) = (self.call, self.h, &self.call.libraries.functions);
        let k = m.min(n);
        let (tau, info) = (self.part(self.layout.tau), self.part(self.layout.infos));
        let (work, size) = (self.part(self.layout.work), self.layout.size);
        let (of_a, of_q) = (area(m, n) * call.number(), area(m, k) * call.number());
        (0..call.batch).try_for_each(|i| {
            let (a, q) = (at(self.outputs[0], i, of_a), at(self.outputs[1], i, of_q));
            check(
                "cusolverDnSgeqrf",
                (f.geqrf)(h.solver, m, n, a, m, tau, work, size, info),
            )?;
            call.libraries.copy(self.stream, a, q, of_q)?;
            check(
                "cusolverDnSorgqr",
                (f.orgqr)(h.solver, m, k, k, q, m, tau, work, size, info),
            )
        })
    }

    unsafe fn svd(&self, m: i32, n: i32, vectors: bool) -> Result<()> {
        let (call, h, f) = (self.call, self.h, &self.call.libraries.functions);
        let (job, number) = (c_int::from(vectors) * VECTORS, call.number());
        let (work, size) = (self.part(self.layout.work), self.layout.size);
        let (a, values) = (self.outputs[0], self.outputs[1]);
        let infos = self.outputs[self.outputs.len() - 1];
        let [u, v] = match vectors {
            true => [self.outputs[2], self.outputs[3]],
            false => self.layout.vectors.map(|offset| self.part(offset)),
        };
        let of_values = m.min(n) as usize * INT;
        let matrices = |i: usize| {
            // The same place for all where nobody reads the vectors.
            let place = if vectors || call.is_batched() { i } else { 0 };
            (
                at(a, i, area(m, n) * number),
                at(values, i, of_values),
                at(u, place, area(m, m) * number),
                at(v, place, area(n, n) * number),
                at(infos, i, INT),
            )
        };
        if call.is_batched() {
            return call.parts().try_for_each(|(i, count)| {
                let (a, s, u, v, info) = matrices(i);
                check(
                    "cusolverDn<t>gesvdjBatched",
                    (call.of(&f.gesvdj_batched))(
                        h.solver, job, m, n, a, m, s, u, m, v, n, work, size, info, h.gesvdj, count,
                    ),
                )
            });
        }
        (0..call.batch).try_for_each(|i| {
            let (a, s, u, v, info) = matrices(i);
            check(
                "cusolverDn<t>gesvdj",
                (call.of(&f.gesvdj))(
                    h.solver, job, 0, m, n, a, m, s, u, m, v, n, work, size, info, h.gesvdj,
                ),
            )
        })
    }

    unsafe fn eigh(&self, n: i32, upper: bool, vectors: bool) -> Result<()> {
        let (call, h, f) = (self.call, self.h, &self.call.libraries.functions);
        let (job, uplo) = (c_int::from(vectors) * VECTORS, seen(upper));
        let (work, size) = (self.part(self.layout.work), self.layout.size);
        let bytes = area(n, n) * call.number();
        let matrices = |i: usize| {
            (
                at(self.outputs[0], i, bytes),
                at(self.outputs[1], i, n as usize * INT),
                at(self.outputs[2], i, INT),
            )
        };
        if call.is_batched() {
            return call.parts().try_for_each(|(i, count)| {
                let (a, w, info) = matrices(i);
                check(
                    "cusolverDn<t>evjBatched",
                    (call.of(&f.syevj_batched))(
                        h.solver, job, uplo, n, a, n, w, work, size, info, h.syevj, count,
                    ),
                )
            });
        }
        (0..call.batch).try_for_each(|i| {
            let (a, w, info) = matrices(i);
            check(
                "cusolverDn<t>evd",
                (call.of(&f.syevd))(h.solver, job, uplo, n, a, n, w, work, size, info),
            )
        })
    }

    /// xᵀ·aᵀ = bᵀ: in columns, b in rows is bᵀ, and a in rows is aᵀ.
    unsafe fn trsm(&self, of: &Triangular) -> Result<()> {
        let (call, h, f) = (self.call, self.h, &self.call.libraries.functions);
        let (a, b) = (self.inputs[1], self.outputs[0]);
        let (n, columns) = (of.n, of.columns);
        let (uplo, trans) = match of.in_columns {
            true => (c_int::from(of.upper) * UPPER, TRANSPOSED),
            false => (seen(of.upper), 0),
        };
        let diag = c_int::from(of.unit) * UNIT;
        let one = [1f32, 0.0];
        let alpha = one.as_ptr().cast();
        let (of_a, of_b) = (area(n, n) * call.number(), area(n, columns) * call.number());
        if call.is_batched() {
            let [to_a, to_b] = self.layout.pointers.map(|offset| self.part(offset));
            call.pointers(self.stream, to_a, a, of_a, Some(&of.of))?;
            call.pointers(self.stream, to_b, b, of_b, None)?;
            return call.parts().try_for_each(|(i, count)| {
                let (a, b) = (at(to_a, i, 8), at(to_b, i, 8));
                check(
                    "cublas<t>trsmBatched",
                    (call.of(&f.trsm_batched))(
                        h.blas, RIGHT, uplo, trans, diag, columns, n, alpha, a, n, b, columns,
                        count,
                    ),
                )
            });
        }
        (0..call.batch).try_for_each(|i| {
            let (a, b) = (at(a, of.of[i] as usize, of_a), at(b, i, of_b));
            check(
                "cublas<t>trsm",
                (call.of(&f.trsm))(
                    h.blas, RIGHT, uplo, trans, diag, columns, n, alpha, a, n, b, columns,
                ),
            )
        })
    }

    #[cfg(test)]
    unsafe fn order(&self, k: usize, rows: usize, inverse: bool) -> Result<()> {
        assert!(self.call.libraries.is_host);
        for i in 0..self.call.batch {
            let pivots = at(self.outputs[0], i, k * INT) as *const i32;
            let order = at(self.outputs[1], i, rows * INT) as *mut i32;
            let pivots = std::slice::from_raw_parts(pivots, k);
            let order = std::slice::from_raw_parts_mut(order, rows);
            super::tests::order_of(pivots, order, inverse);
        }
        Ok(())
    }
}
