//! cuSOLVER and cuBLAS, loaded while the program runs: their functions, and a handle of each for every stream.

use super::compiler::failed;
use crate::base::{Error, Reason, Result};
use cudarc::driver::sys::{self as driver, cudaError_enum::CUDA_SUCCESS};
use once_cell::sync::Lazy;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::ffi::{c_char, c_int, c_void, CStr, CString};
use std::path::PathBuf;

/// Memory of the GPU.
pub type Address = u64;
/// A handle of a library's.
pub type Handle = *mut c_void;

/// A function for numbers of one type, and its like for complex numbers.
#[derive(Clone, Copy)]
pub struct Pair<F> {
    pub real: F,
    pub complex: F,
}

macro_rules! functions {
    (
        // By these names the lines say where a function is.
        of $cusolver:ident $cublas:ident;
        $(single $name:ident = $library:ident $symbol:literal ($($arg:ty),*);)*
        $(pair $both:ident = $of:ident $real:literal $complex:literal ($($argument:ty),*);)*
    ) => {
        /// The functions that are called. Their types are those of cusolverDn.h and cublas_api.h, with addresses for
        /// pointers to memory of the GPU, for single-precision numbers.
        pub struct Functions {
            $(pub $name: unsafe extern "C" fn($($arg),*) -> c_int,)*
            $(pub $both: Pair<unsafe extern "C" fn($($argument),*) -> c_int>,)*
        }

        impl Functions {
            fn of($cusolver: &Library, $cublas: &Library) -> Result<Functions> {
                // SAFETY: these are the functions of these names.
                unsafe {
                    Ok(Functions {
                        $($name: std::mem::transmute::<*mut c_void, unsafe extern "C" fn($($arg),*) -> c_int>(
                            $library.symbol($symbol)?,
                        ),)*
                        $($both: Pair {
                            real: std::mem::transmute::<*mut c_void, unsafe extern "C" fn($($argument),*) -> c_int>(
                                $of.symbol($real)?,
                            ),
                            complex: std::mem::transmute::<*mut c_void, unsafe extern "C" fn($($argument),*) -> c_int>(
                                $of.symbol($complex)?,
                            ),
                        },)*
                    })
                }
            }
        }
    };
}

functions! {
    of cusolver cublas;
    single create_solver = cusolver c"cusolverDnCreate" (*mut Handle);
    single set_solver_stream = cusolver c"cusolverDnSetStream" (Handle, *mut c_void);
    single create_syevj = cusolver c"cusolverDnCreateSyevjInfo" (*mut Handle);
    single create_gesvdj = cusolver c"cusolverDnCreateGesvdjInfo" (*mut Handle);
    single create_blas = cublas c"cublasCreate_v2" (*mut Handle);
    single set_blas_stream = cublas c"cublasSetStream_v2" (Handle, *mut c_void);
    // uplo, n, a, lda, size
    single potrf_size = cusolver c"cusolverDnSpotrf_bufferSize" (Handle, c_int, c_int, Address, c_int, *mut c_int);
    // uplo, n, a, lda, work, size, info
    single potrf = cusolver c"cusolverDnSpotrf" (Handle, c_int, c_int, Address, c_int, Address, c_int, Address);
    // uplo, n, pointers to a, lda, infos, batch
    single potrf_batched = cusolver c"cusolverDnSpotrfBatched" (Handle, c_int, c_int, Address, c_int, Address, c_int);
    // m, n, a, lda, size
    single getrf_size = cusolver c"cusolverDnSgetrf_bufferSize" (Handle, c_int, c_int, Address, c_int, *mut c_int);
    // m, n, a, lda, work, pivots, info
    single getrf = cusolver c"cusolverDnSgetrf" (Handle, c_int, c_int, Address, c_int, Address, Address, Address);
    // trans, n, columns, a, lda, pivots, b, ldb, info
    single getrs = cusolver c"cusolverDnSgetrs" (
        Handle, c_int, c_int, c_int, Address, c_int, Address, Address, c_int, Address);
    // n, pointers to a, lda, pivots, infos, batch
    single getrf_batched = cublas c"cublasSgetrfBatched" (Handle, c_int, Address, c_int, Address, Address, c_int);
    // n, pointers to a, lda, pivots, pointers to c, ldc, infos, batch
    single getri_batched = cublas c"cublasSgetriBatched" (
        Handle, c_int, Address, c_int, Address, Address, c_int, Address, c_int);
    // m, n, a, lda, size
    single geqrf_size = cusolver c"cusolverDnSgeqrf_bufferSize" (Handle, c_int, c_int, Address, c_int, *mut c_int);
    // m, n, a, lda, tau, work, size, info
    single geqrf = cusolver c"cusolverDnSgeqrf" (
        Handle, c_int, c_int, Address, c_int, Address, Address, c_int, Address);
    // m, n, k, a, lda, tau, size
    single orgqr_size = cusolver c"cusolverDnSorgqr_bufferSize" (
        Handle, c_int, c_int, c_int, Address, c_int, Address, *mut c_int);
    // m, n, k, a, lda, tau, work, size, info
    single orgqr = cusolver c"cusolverDnSorgqr" (
        Handle, c_int, c_int, c_int, Address, c_int, Address, Address, c_int, Address);
    // job, uplo, n, a, lda, w, size
    pair syevd_size = cusolver c"cusolverDnSsyevd_bufferSize" c"cusolverDnCheevd_bufferSize" (
        Handle, c_int, c_int, c_int, Address, c_int, Address, *mut c_int);
    // job, uplo, n, a, lda, w, work, size, info
    pair syevd = cusolver c"cusolverDnSsyevd" c"cusolverDnCheevd" (
        Handle, c_int, c_int, c_int, Address, c_int, Address, Address, c_int, Address);
    // job, uplo, n, a, lda, w, size, parameters, batch
    pair syevj_batched_size = cusolver c"cusolverDnSsyevjBatched_bufferSize" c"cusolverDnCheevjBatched_bufferSize" (
        Handle, c_int, c_int, c_int, Address, c_int, Address, *mut c_int, Handle, c_int);
    // job, uplo, n, a, lda, w, work, size, infos, parameters, batch
    pair syevj_batched = cusolver c"cusolverDnSsyevjBatched" c"cusolverDnCheevjBatched" (
        Handle, c_int, c_int, c_int, Address, c_int, Address, Address, c_int, Address, Handle, c_int);
    // job, economy, m, n, a, lda, s, u, ldu, v, ldv, size, parameters
    pair gesvdj_size = cusolver c"cusolverDnSgesvdj_bufferSize" c"cusolverDnCgesvdj_bufferSize" (
        Handle, c_int, c_int, c_int, c_int, Address, c_int, Address, Address, c_int, Address, c_int, *mut c_int,
        Handle);
    // job, economy, m, n, a, lda, s, u, ldu, v, ldv, work, size, info, parameters
    pair gesvdj = cusolver c"cusolverDnSgesvdj" c"cusolverDnCgesvdj" (
        Handle, c_int, c_int, c_int, c_int, Address, c_int, Address, Address, c_int, Address, c_int, Address, c_int,
        Address, Handle);
    // job, m, n, a, lda, s, u, ldu, v, ldv, size, parameters, batch
    pair gesvdj_batched_size = cusolver
        c"cusolverDnSgesvdjBatched_bufferSize" c"cusolverDnCgesvdjBatched_bufferSize" (
        Handle, c_int, c_int, c_int, Address, c_int, Address, Address, c_int, Address, c_int, *mut c_int, Handle,
        c_int);
    // job, m, n, a, lda, s, u, ldu, v, ldv, work, size, infos, parameters, batch
    pair gesvdj_batched = cusolver c"cusolverDnSgesvdjBatched" c"cusolverDnCgesvdjBatched" (
        Handle, c_int, c_int, c_int, Address, c_int, Address, Address, c_int, Address, c_int, Address, c_int, Address,
        Handle, c_int);
    // side, uplo, trans, diag, m, n, alpha, a, lda, b, ldb
    pair trsm = cublas c"cublasStrsm_v2" c"cublasCtrsm_v2" (
        Handle, c_int, c_int, c_int, c_int, c_int, c_int, *const c_void, Address, c_int, Address, c_int);
    // side, uplo, trans, diag, m, n, alpha, pointers to a, lda, pointers to b, ldb, batch
    pair trsm_batched = cublas c"cublasStrsmBatched" c"cublasCtrsmBatched" (
        Handle, c_int, c_int, c_int, c_int, c_int, c_int, *const c_void, Address, c_int, Address, c_int, c_int);
}

/// A library that stays loaded for the life of the process.
struct Library {
    handle: *mut c_void,
    name: &'static str,
}

impl Library {
    /// The first of these files that can be loaded.
    fn load(name: &'static str, files: &[PathBuf]) -> Result<Library> {
        let mut words = String::new();
        for file in files {
            let Ok(file) = CString::new(file.as_os_str().as_encoded_bytes()) else {
                continue;
            };
            // SAFETY: loads a library of NVIDIA's.
            let handle = unsafe { libc::dlopen(file.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
            if !handle.is_null() {
                return Ok(Library { handle, name });
            }
            words = last_words();
        }
        Err(Error::invalid(format!("{name} cannot be loaded: {words}")))
    }

    fn symbol(&self, name: &CStr) -> Result<*mut c_void> {
        // SAFETY: the library is loaded.
        let address = unsafe { libc::dlsym(self.handle, name.as_ptr()) };
        match address.is_null() {
            true => Err(Error::invalid(format!("{} has no {name:?}", self.name))),
            false => Ok(address),
        }
    }
}

fn last_words() -> String {
    // SAFETY: the text lives until this thread's next call of the loader.
    unsafe {
        let words: *const c_char = libc::dlerror();
        match words.is_null() {
            true => "no reason is given".into(),
            false => CStr::from_ptr(words).to_string_lossy().into_owned(),
        }
    }
}

/// Where a library may be: beside libmlx, as wheels lay them out, else where the loader looks.
fn places(folders: &[&str], file: &str) -> Vec<PathBuf> {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let libmlx = maps.lines().find_map(|line| {
        let start = line.find('/')?;
        let path = &line[start..];
        path.ends_with("/libmlx.so").then(|| PathBuf::from(path))
    });
    // <wheels>/mlx/lib/libmlx.so
    let wheels = libmlx.and_then(|path| path.ancestors().nth(3).map(PathBuf::from));
    let beside = wheels.into_iter().flat_map(|wheels| {
        let folders = folders.iter();
        folders.map(move |folder| wheels.join(folder).join(file))
    });
    let mut places: Vec<PathBuf> = beside.filter(|path| path.is_file()).collect();
    places.push(file.into());
    places
}

/// What calls need: functions, and the memory that they work on.
pub struct Libraries {
    pub functions: Functions,
    pub is_host: bool,
    handles: Mutex<HashMap<usize, Handles>>,
}

// SAFETY: functions and handles are used by one thread at a time, which holds the graph's lock.
unsafe impl Send for Libraries {}
unsafe impl Sync for Libraries {}

/// Handles for one stream.
#[derive(Clone, Copy)]
pub struct Handles {
    pub solver: Handle,
    pub blas: Handle,
    /// Parameters of Jacobi's methods.
    pub syevj: Handle,
    pub gesvdj: Handle,
}

impl Libraries {
    /// Those that belong to the loaded libmlx; else why there are none.
    pub fn of_cuda() -> std::result::Result<&'static Libraries, &'static str> {
        static LOADED: Lazy<std::result::Result<Libraries, String>> = Lazy::new(|| {
            let cuda = crate::mlx::cuda_driver().ok_or("there is no CUDA here")?;
            let (solver, blas) = match cuda.of_mlx {
                12 => ("libcusolver.so.11", "libcublas.so.12"),
                _ => ("libcusolver.so.12", "libcublas.so.13"),
            };
            let load = || {
                let of_blas = places(&["nvidia/cu13/lib", "nvidia/cublas/lib"], blas);
                let of_solver = places(&["nvidia/cu13/lib", "nvidia/cusolver/lib"], solver);
                let cublas = Library::load(blas, &of_blas)?;
                Libraries::with(&Library::load(solver, &of_solver)?, &cublas, false)
            };
            load().map_err(|error: Error| error.to_string())
        });
        LOADED.as_ref().map_err(String::as_str)
    }

    fn with(cusolver: &Library, cublas: &Library, is_host: bool) -> Result<Libraries> {
        Ok(Libraries {
            functions: Functions::of(cusolver, cublas)?,
            is_host,
            handles: Mutex::default(),
        })
    }

    /// One file that has the functions of both, for memory of the CPU.
    #[cfg(test)]
    pub fn of_host(file: &std::path::Path) -> Result<Libraries> {
        let library = Library::load("the library", &[file.into()])?;
        Libraries::with(&library, &library, true)
    }

    /// The handles of a stream.
    ///
    /// # Safety
    /// The stream is live, and its device current.
    pub unsafe fn handles(&self, stream: *mut c_void) -> Result<Handles> {
        let mut known = self.handles.lock();
        if let Some(handles) = known.get(&(stream as usize)) {
            return Ok(*handles);
        }
        let of = &self.functions;
        let make = |call: unsafe extern "C" fn(*mut Handle) -> c_int, name| {
            let mut handle = std::ptr::null_mut();
            check(name, call(&mut handle)).map(|()| handle)
        };
        let handles = Handles {
            solver: make(of.create_solver, "cusolverDnCreate")?,
            blas: make(of.create_blas, "cublasCreate")?,
            syevj: make(of.create_syevj, "cusolverDnCreateSyevjInfo")?,
            gesvdj: make(of.create_gesvdj, "cusolverDnCreateGesvdjInfo")?,
        };
        check(
            "cusolverDnSetStream",
            (of.set_solver_stream)(handles.solver, stream),
        )?;
        check(
            "cublasSetStream",
            (of.set_blas_stream)(handles.blas, stream),
        )?;
        known.insert(stream as usize, handles);
        Ok(handles)
    }

    /// Copies numbers of the host, which may change afterwards.
    ///
    /// # Safety
    /// There is room for them, and the stream is live.
    pub unsafe fn upload(&self, stream: *mut c_void, to: Address, numbers: &[u64]) -> Result<()> {
        let bytes = std::mem::size_of_val(numbers);
        if self.is_host {
            std::ptr::copy_nonoverlapping(numbers.as_ptr(), to as *mut u64, numbers.len());
            return Ok(());
        }
        done(
            "cuMemcpyHtoDAsync",
            driver::cuMemcpyHtoDAsync_v2(to, numbers.as_ptr().cast(), bytes, stream.cast()),
        )
    }

    /// Copies bytes of the GPU.
    ///
    /// # Safety
    /// Both are live, and as large.
    pub unsafe fn copy(
        &self,
        stream: *mut c_void,
        from: Address,
        to: Address,
        bytes: usize,
    ) -> Result<()> {
        if self.is_host {
            std::ptr::copy_nonoverlapping(from as *const u8, to as *mut u8, bytes);
            return Ok(());
        }
        done(
            "cuMemcpyDtoDAsync",
            driver::cuMemcpyDtoDAsync_v2(to, from, bytes, stream.cast()),
        )
    }
}

fn done(call: &str, status: driver::CUresult) -> Result<()> {
    match status {
        CUDA_SUCCESS => Ok(()),
        status => Err(failed(call, cudarc::driver::DriverError(status))),
    }
}

/// An error where the status of a library's call is not that of success. Running out of memory is said in words that
/// the error's kind is known by.
pub fn check(call: &str, status: c_int) -> Result<()> {
    let text = match (status, call.starts_with("cublas")) {
        (0, _) => return Ok(()),
        (2, false) => format!("{call} failed: CUSOLVER_STATUS_ALLOC_FAILED"),
        (3, true) => format!("{call} failed: CUBLAS_STATUS_ALLOC_FAILED"),
        _ => format!("{call} failed: it returned status {status}"),
    };
    Err(Reason::of_mlx(text, crate::mlx::memory_figures).into())
}
