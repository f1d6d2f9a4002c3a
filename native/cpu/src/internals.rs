//! What the tests in `tests/kernels` call besides the public names. The tests are a crate of their own, so that the
//! kernels are compiled once. A crate that calls a generic function compiles it again, but not with [`instances!`].

/// Defines generic functions that call the library's instances of a kernel.
macro_rules! instances {
    ($module:ident: $($name:ident($($arg:ident: $type:ty),*)),*) => { $(
        /// # Safety
        /// As for the kernel.
        #[allow(clippy::too_many_arguments)]
        pub unsafe fn $name<T: Element>($($arg: $type),*) {
            // Not generic, so it is compiled with the library.
            #[inline(never)]
            fn all() -> [*const (); 3] {
                [
                    crate::$module::$name::<f32> as *const (),
                    crate::$module::$name::<f16> as *const (),
                    crate::$module::$name::<bf16> as *const (),
                ]
            }
            let types = [TypeId::of::<f32>(), TypeId::of::<f16>(), TypeId::of::<bf16>()];
            let number = types.iter().position(|of| *of == TypeId::of::<T>());
            // SAFETY: the function for this `T`, of this type.
            let call: unsafe fn($($type),*) = std::mem::transmute(all()[number.expect("an element")]);
            call($($arg),*)
        }
    )* };
}

pub mod arg_extreme {
    pub use crate::arg_extreme::{run, How};
}

pub mod attention {
    use crate::element::Element;
    use crate::simd::Level;
    use crate::{Mask, View};
    use half::{bf16, f16};
    use std::any::TypeId;

    instances! {
        attention:
        run(level: Level, inputs: &[View], mask: Mask, scale: f32, out: &View)
    }
}

pub mod binary {
    use crate::element::Element;
    use crate::simd::Level;
    use crate::Pair;
    use half::{bf16, f16};
    use std::any::TypeId;

    instances! {
        binary:
        apply(
            level: Level, pair: Pair, a: *const T, a_is_one: bool, b: *const T, b_is_one: bool, to: *mut T, count: usize
        )
    }
}

pub mod chain {
    pub use crate::chain::{run, run_all, Prepared, Task};
}

pub mod conv {
    use crate::element::Element;
    use crate::simd::Level;
    use crate::{Conv, View};
    use half::{bf16, f16};
    use std::any::TypeId;

    instances! {
        conv:
        run(level: Level, conv: &Conv, a: &View, weight: &View, out: &View)
    }
}

pub mod element {
    pub use crate::element::Element;
}

pub mod elementwise {
    pub use crate::elementwise::{apply, Argument};
}

pub mod extreme {
    pub use crate::extreme::{extreme, total, truth};
}

pub mod fft {
    pub use crate::fft::run;
}

pub mod gather {
    pub use crate::gather::{along, slices, How};
}

pub mod gemm {
    use crate::element::Element;
    pub use crate::gemm::Matrix;
    use crate::simd::Level;
    use half::{bf16, f16};
    use std::any::TypeId;

    instances! {
        gemm:
        product(level: Level, a: Matrix<T>, b: Matrix<T>, out: *mut T, sizes: (usize, usize, usize))
    }
}

pub mod gemm8 {
    use crate::element::Element;
    pub use crate::gemm8::{Form, BESIDE, QUAD, SMALLEST};
    use crate::{Type, View};
    use half::{bf16, f16};
    use std::any::TypeId;

    instances! {
        gemm8:
        run_in(form: Form, inputs: &[View], scales: Type, bias: Option<Type>, out: &View)
    }
}

pub mod indices {
    pub use crate::indices::{line_in, read, Range, NONE};
}

pub mod integers {
    pub use crate::integers::run;
}

pub mod keys {
    pub use crate::keys::{Key, Number};
}

pub mod linalg {
    pub use crate::linalg::{run, Real};
}

pub mod masked {
    pub use crate::masked::run;
}

pub mod moves {
    pub use crate::moves::{concatenate, copy, pad, reshape, tile};
}

pub mod pool {
    pub use crate::pool::parallel;
}

pub mod product {
    use crate::element::Element;
    use crate::simd::Level;
    use crate::View;
    use half::{bf16, f16};
    use std::any::TypeId;

    instances! {
        product:
        run(level: Level, a: &View, b: &View, out: &View)
    }
}

pub mod reduce {
    use crate::element::Element;
    use crate::simd::Level;
    use crate::{Reduction, View};
    use half::{bf16, f16};
    use std::any::TypeId;

    instances! {
        reduce:
        run(level: Level, reduction: Reduction, axes: &[u8], is_pair: bool, x: &View, out: &View)
    }
}

pub mod rows {
    use crate::element::Element;
    use crate::simd::Level;
    use half::{bf16, f16};
    use std::any::TypeId;

    instances! {
        rows:
        softmax(level: Level, x: *const T, out: *mut T, count: usize, scratch: *mut f32),
        rms_norm(
            level: Level, x: *const T, weight: *const T, out: *mut T, count: usize, eps: f32, scratch: *mut f32
        ),
        layer_norm(
            level: Level, x: *const T, weight: *const T, bias: *const T, out: *mut T, count: usize, eps: f32,
            scratch: *mut f32
        )
    }
}

pub mod scan {
    use crate::element::Element;
    pub use crate::scan::How;
    use crate::simd::Level;
    use crate::View;
    use half::{bf16, f16};
    use std::any::TypeId;

    instances! {
        scan:
        run(level: Level, how: &How, x: &View, out: &View)
    }
}

pub mod scatter {
    use crate::element::Element;
    pub use crate::scatter::put_slices;
    use crate::{Type, View};
    use half::{bf16, f16};
    use std::any::TypeId;

    instances! {
        scatter:
        add_slices(axes: &[u8], of: Type, inputs: &[View], out: &View)
    }
}

pub mod select_top {
    pub use crate::select_top::{run, How};
}

pub mod simd {
    pub use crate::simd::Level;
}

pub mod sort {
    pub use crate::sort::{argsort, sort};
}

pub mod unary {
    use crate::element::Element;
    use crate::simd::Level;
    use crate::Function;
    use half::{bf16, f16};
    use std::any::TypeId;

    instances! {
        unary:
        apply(level: Level, function: Function, from: *const T, to: *mut T, count: usize)
    }
}

pub mod windows {
    pub use crate::windows::{run, scatter};
}
