//! Every way in which a call can fail, and its form on the Elixir side (`EMLX.Error`).

use super::{Device, Dtype};
use rustler::{Encoder, Env, Term};
use thiserror::Error as ThisError;

pub type Result<T> = std::result::Result<T, Error>;

/// Shape and type of one array, as an error reports it.
pub type Signature = (Vec<i32>, Dtype);

/// What went wrong, without the op and the arrays it was given (those are added by [`Error::of`]).
#[derive(Clone, Debug, ThisError)]
pub enum Reason {
    #[error("{0}")]
    Mlx(String),
    #[error("{0}")]
    InvalidArgument(String),
    #[error("unknown operation {0}")]
    UnknownOp(String),
    #[error("argument {position} is {found}, expected {expected}")]
    BadTerm {
        position: usize,
        expected: &'static str,
        found: String,
    },
    #[error("takes {expected} arrays, got {found}")]
    Arity { expected: String, found: usize },
    #[error(
        "a binary of {found} bytes does not hold shape {shape:?} of type {dtype}, \
         which takes {expected} bytes"
    )]
    BinarySize {
        shape: Vec<i64>,
        dtype: &'static str,
        expected: String,
        found: usize,
    },
    #[error("there is no device :{device} here: {cause}")]
    NoDevice { device: &'static str, cause: String },
    #[error(
        "the result would take {bytes} bytes, more than the memory limit of {limit} bytes \
         (see EMLX.Memory.set_limit/1)"
    )]
    OutOfMemory { bytes: u128, limit: usize },
    #[error("{text}: there is no memory left{figures}")]
    NoMemory { text: String, figures: String },
    #[error(
        "{0}: the GPU's state is lost with all arrays on it, and no call of this process will use it again; restart the VM"
    )]
    DeviceLost(String),
    #[error(
        "the array stands for a value of a function that is being compiled, so it has no elements to read; \
         what depends on values belongs into Nx.runtime_call/4 or a hook"
    )]
    Traced,
    #[error("the array was deallocated, so it has no elements any more")]
    Deallocated,
    #[error("the queue is closed")]
    QueueClosed,
    #[error("{path}: {reason}")]
    File { path: String, reason: String },
    #[error("the native code panicked: {0}")]
    Panic(String),
}

/// What CUDA and its libraries call having no memory, and MLX's allocator.
const NO_MEMORY: [&str; 4] = [
    "failed: out of memory",
    "Unable to allocate",
    "STATUS_ALLOC_FAILED",
    "std::bad_alloc",
];

/// CUDA's errors after which nothing works in the process, in CUDA's words.
const DEVICE_LOST: [&str; 9] = [
    "an illegal memory access was encountered",
    "an illegal instruction was encountered",
    "unspecified launch failure",
    "misaligned address",
    "invalid program counter",
    "hardware stack error",
    "device-side assert triggered",
    "the launch timed out and was terminated",
    "uncorrectable ECC error encountered",
];

impl Reason {
    /// A failure in MLX's words. `figures` gives the bytes in use, the bytes kept for reuse and the limit.
    pub fn of_mlx(text: String, figures: fn() -> Option<(usize, usize, usize)>) -> Reason {
        let is_of = |causes: &[&str]| causes.iter().any(|cause| text.contains(cause));
        if Self::is_of_cuda(&text) && is_of(&DEVICE_LOST) {
            return Reason::DeviceLost(text);
        }
        if !is_of(&NO_MEMORY) {
            return Reason::Mlx(text);
        }
        let figures = figures().map_or_else(String::new, |(active, kept, limit)| {
            format!(
                "; arrays take {active} bytes, {kept} are kept for reuse, the limit is {limit} (EMLX.Memory). \
                 Drop arrays, or do less at a time"
            )
        });
        Reason::NoMemory { text, figures }
    }

    /// Whether MLX's words are of a call of CUDA's that failed:
    /// `cudaMallocAsync(&data, size, stream) failed: out of memory`.
    pub fn is_of_cuda(text: &str) -> bool {
        text.split_once("failed: ")
            .is_some_and(|(call, _)| call.starts_with("cu") || call.starts_with("CU"))
    }

    /// The atom by which a program tells one failure from another.
    fn kind(&self) -> rustler::Atom {
        match self {
            Reason::Mlx(_) => atoms::mlx(),
            Reason::InvalidArgument(_) => atoms::invalid_argument(),
            Reason::UnknownOp(_) => atoms::unknown_op(),
            Reason::BadTerm { .. } | Reason::Arity { .. } => atoms::bad_argument(),
            Reason::BinarySize { .. } => atoms::binary_size(),
            Reason::NoDevice { .. } => atoms::no_device(),
            Reason::OutOfMemory { .. } | Reason::NoMemory { .. } => atoms::out_of_memory(),
            Reason::DeviceLost(_) => atoms::device_lost(),
            Reason::Traced => atoms::traced(),
            Reason::Deallocated => atoms::deallocated(),
            Reason::QueueClosed => atoms::queue_closed(),
            Reason::File { .. } => atoms::file(),
            Reason::Panic(_) => atoms::panic(),
        }
    }
}

/// A failure with the call it happened in.
#[derive(Clone, Debug, ThisError)]
#[error("{op}: {reason}")]
pub struct Error {
    pub op: String,
    pub reason: Box<Reason>,
    pub inputs: Vec<Option<Signature>>,
    pub device: Option<Device>,
}

impl From<Reason> for Error {
    fn from(reason: Reason) -> Self {
        Error {
            op: String::new(),
            reason: Box::new(reason),
            inputs: Vec::new(),
            device: None,
        }
    }
}

impl Error {
    pub fn invalid(message: impl Into<String>) -> Error {
        Reason::InvalidArgument(message.into()).into()
    }

    /// Names the operation, unless an inner call already did.
    pub fn of(mut self, op: &str) -> Error {
        if self.op.is_empty() {
            self.op = op.to_string();
        }
        self
    }

    /// Names the place that the call stands in, before what is already named.
    pub fn within(mut self, place: &str) -> Error {
        self.op = match self.op.as_str() {
            op if place.is_empty() => op.to_string(),
            "" => place.to_string(),
            op => format!("{place}, {op}"),
        };
        self
    }

    pub fn with_inputs(mut self, inputs: Vec<Option<Signature>>, device: Option<Device>) -> Error {
        if self.inputs.is_empty() {
            self.inputs = inputs;
            self.device = device;
        }
        self
    }
}

impl Encoder for Error {
    fn encode<'a>(&self, env: Env<'a>) -> Term<'a> {
        let inputs: Vec<Term> = self
            .inputs
            .iter()
            .map(|input| match input {
                Some((shape, dtype)) => (shape, *dtype).encode(env),
                None => rustler::types::atom::nil().encode(env),
            })
            .collect();
        let pairs = [
            (atoms::kind(), self.reason.kind().encode(env)),
            (atoms::op(), self.op.encode(env)),
            (atoms::reason(), self.reason.to_string().encode(env)),
            (atoms::inputs(), inputs.encode(env)),
            (atoms::device(), self.device.encode(env)),
        ];
        Term::map_from_pairs(env, &pairs).unwrap_or_else(|_| self.to_string().encode(env))
    }
}

mod atoms {
    rustler::atoms! {
        kind, op, reason, inputs, device,
        mlx, invalid_argument, unknown_op, bad_argument, binary_size, no_device,
        out_of_memory, device_lost, traced, deallocated, queue_closed, file, panic,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason(text: &str) -> Reason {
        Reason::of_mlx(text.into(), || Some((1, 2, 3)))
    }

    #[test]
    fn having_no_memory_is_told_from_other_failures() {
        for text in [
            "cudaMallocAsync(&data, size, stream) failed: out of memory",
            "[malloc] Unable to allocate 5 bytes.",
        ] {
            let Reason::NoMemory { figures, .. } = reason(text) else {
                panic!("{text} is not taken for a lack of memory");
            };
            assert!(figures.contains("the limit is 3"));
        }
        assert!(matches!(reason("[matmul] no"), Reason::Mlx(_)));
    }

    #[test]
    fn a_lost_device_is_told_from_a_launch_that_was_refused() {
        let call = "cudaGraphAddKernelNode(&node, graph_, NULL, 0, &params) failed: ";
        let lost = format!("{call}an illegal memory access was encountered");
        assert!(matches!(reason(&lost), Reason::DeviceLost(_)));
        let refused = format!("{call}invalid argument");
        assert!(matches!(reason(&refused), Reason::Mlx(_)));
        assert!(Reason::is_of_cuda(&refused));
        assert!(!Reason::is_of_cuda("[conv] the weight failed: to fit"));
    }
}
