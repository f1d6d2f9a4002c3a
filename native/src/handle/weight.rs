//! Lets the BEAM feel how much memory an array holds.
//!
//! The BEAM collects a process when the binaries it refers to grow large, and a resource counts for nothing there. So
//! each array's term carries a binary of the array's size, whose bytes are untouched zero pages: address space, not
//! memory. It is collected as any binary is.
//!
//! Since OTP 27 the BEAM counts such a binary as the resource, whatever its size. So a new array also has terms of
//! binaries that stand for its memory, which are counted until the next collection (ADR 56).
//!
//! The crate memmap2 maps anonymous memory writable at first. A system with strict overcommit refuses that for this much
//! address space, and does not count a mapping that is read-only from the start.

use crate::base::{Device, Settings};
use crate::handle::array::{self, Handle};
use once_cell::sync::OnceCell;
use rustler::{Encoder, Env, ResourceArc, Term};

/// Arrays smaller than this weigh what their term weighs.
pub const MIN_BYTES: usize = 1 << 12;
/// Address space tried for, largest first: a machine may limit it.
const REGIONS: [usize; 3] = [1 << 40, 1 << 36, 1 << 32];

fn zeros() -> &'static [u8] {
    static REGION: OnceCell<&'static [u8]> = OnceCell::new();
    REGION.get_or_init(|| match Settings::get().address_space {
        true => REGIONS.iter().find_map(|size| map(*size)).unwrap_or(&[]),
        false => &[],
    })
}

fn map(size: usize) -> Option<&'static [u8]> {
    // SAFETY: a new read-only mapping at an address of the kernel's choice, never unmapped.
    unsafe {
        let start = libc::mmap(
            std::ptr::null_mut(),
            size,
            libc::PROT_READ,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
            -1,
            0,
        );
        if start == libc::MAP_FAILED {
            return None;
        }
        // As of any binary's memory, the bytes in front of it are readable (`array::BinaryTerm`).
        let zeros: &[u8] = std::slice::from_raw_parts(start.cast(), size);
        Some(&zeros[array::BYTES_IN_FRONT..])
    }
}

/// Whether an array of this size has a binary beside its reference.
pub fn is_felt(handle: &Handle) -> bool {
    handle.nbytes() >= MIN_BYTES && !zeros().is_empty()
}

/// The binary to put beside an array's reference, or nil for a small one.
pub fn term<'a>(env: Env<'a>, handle: &ResourceArc<Handle>) -> Term<'a> {
    if !is_felt(handle) {
        return rustler::types::atom::nil().encode(env);
    }
    let zeros = zeros();
    let bytes = handle.nbytes();
    // A GPU has more memory, and its arrays are made faster than a process is collected.
    let felt = match handle.device {
        Device::Cpu => bytes,
        Device::Gpu => bytes / 64,
    };
    burden::put(env, felt);
    let slice = &zeros[..bytes.min(zeros.len())];
    handle.make_binary(env, |_| slice).to_term(env)
}

/// What a new array of a size is felt as until the next collection.
mod burden {
    use once_cell::sync::OnceCell;
    use parking_lot::Mutex;
    use rustler::env::SavedTerm;
    use rustler::{Env, OwnedBinary, OwnedEnv};

    /// Bytes of binaries that stand for arrays' memory: an array is so many of the largest that it has room for.
    const SIZES: [usize; 4] = [16 << 20, 1 << 20, 1 << 16, 1 << 13];
    /// More count no more: the process is collected at once.
    const MOST: usize = 64;

    struct Binaries {
        env: OwnedEnv,
        terms: [SavedTerm; SIZES.len()],
    }

    fn binaries() -> &'static Mutex<Binaries> {
        static BINARIES: OnceCell<Mutex<Binaries>> = OnceCell::new();
        BINARIES.get_or_init(|| {
            let env = OwnedEnv::new();
            // Nobody writes to their pages, which are no memory therefore.
            let term = |size: usize| {
                let binary = OwnedBinary::new(size);
                env.run(|own| env.save(binary.release(own).to_term(own)))
            };
            let terms = SIZES.map(term);
            Mutex::new(Binaries { env, terms })
        })
    }

    /// Makes terms of such binaries, which are garbage at once.
    pub fn put(to: Env, bytes: usize) {
        let Some(class) = SIZES.iter().position(|size| *size <= bytes) else {
            return;
        };
        let binaries = binaries().lock();
        binaries.env.run(|env| {
            let term = binaries.terms[class].load(env);
            for _ in 0..(bytes / SIZES[class]).min(MOST) {
                term.in_env(to);
            }
        });
    }
}

/// Whether a binary is one of those.
pub fn is_one(binary: &[u8]) -> bool {
    std::ptr::eq(binary.as_ptr(), zeros().as_ptr())
}
