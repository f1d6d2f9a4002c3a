//! MLX's operations, one line each. Functions are named as in MLX's own documentation and take the stream that the node
//! will run on.

use super::error::{one, raw_or_null, text};
use super::vector::{many, Vector};
use super::Stream;
use crate::base::{Dtype, Result};
use mlx_rs::Array;
use mlx_sys as sys;
use serde::{Deserialize, Serialize};
use std::ffi::c_int;

/// How each kind of argument looks in Rust.
macro_rules! rust_type {
    (array) => { &Array };
    (maybe) => { Option<&Array> };
    (arrays) => { &Vector };
    (ints) => { &[i32] };
    (longs) => { &[i64] };
    (int) => { i32 };
    (size) => { usize };
    (seed) => { u64 };
    (float) => { f32 };
    (double) => { f64 };
    (flag) => { bool };
    (text) => { &str };
    (dtype) => { Dtype };
    (maybe_int) => { Option<i32> };
    (maybe_float) => { Option<f32> };
    (maybe_dtype) => { Option<Dtype> };
    (norm) => { FftNorm };
}

/// Flattens the arguments into C's: a slice is a pointer and a length, an absent array an empty handle.
macro_rules! c_call {
    ($run:ident $c:ident [$($done:tt)*] $s:ident;) => {
        // SAFETY: every pointer comes from a live reference and every length from its slice; MLX's exceptions are
        // caught by mlx-c and come back as a status.
        $run(|res| unsafe { sys::$c(res, $($done)* $s.0) })
    };
    ($run:ident $c:ident [$($done:tt)*] $s:ident; $a:ident : array, $($rest:tt)*) => {
        c_call!($run $c [$($done)* $a.as_ptr(),] $s; $($rest)*)
    };
    ($run:ident $c:ident [$($done:tt)*] $s:ident; $a:ident : maybe, $($rest:tt)*) => {
        c_call!($run $c [$($done)* raw_or_null($a),] $s; $($rest)*)
    };
    ($run:ident $c:ident [$($done:tt)*] $s:ident; $a:ident : arrays, $($rest:tt)*) => {
        c_call!($run $c [$($done)* $a.0,] $s; $($rest)*)
    };
    ($run:ident $c:ident [$($done:tt)*] $s:ident; $a:ident : ints, $($rest:tt)*) => {
        c_call!($run $c [$($done)* $a.as_ptr(), $a.len(),] $s; $($rest)*)
    };
    ($run:ident $c:ident [$($done:tt)*] $s:ident; $a:ident : longs, $($rest:tt)*) => {
        c_call!($run $c [$($done)* $a.as_ptr(), $a.len(),] $s; $($rest)*)
    };
    ($run:ident $c:ident [$($done:tt)*] $s:ident; $a:ident : text, $($rest:tt)*) => {{
        let $a = text($a)?;
        c_call!($run $c [$($done)* $a.as_ptr(),] $s; $($rest)*)
    }};
    ($run:ident $c:ident [$($done:tt)*] $s:ident; $a:ident : dtype, $($rest:tt)*) => {
        c_call!($run $c [$($done)* $a.to_mlx(),] $s; $($rest)*)
    };
    ($run:ident $c:ident [$($done:tt)*] $s:ident; $a:ident : maybe_int, $($rest:tt)*) => {
        c_call!($run $c [$($done)* sys::mlx_optional_int { value: $a.unwrap_or(0), has_value: $a.is_some() },] $s; $($rest)*)
    };
    ($run:ident $c:ident [$($done:tt)*] $s:ident; $a:ident : maybe_float, $($rest:tt)*) => {
        c_call!($run $c [$($done)* sys::mlx_optional_float { value: $a.unwrap_or(0.0), has_value: $a.is_some() },] $s; $($rest)*)
    };
    ($run:ident $c:ident [$($done:tt)*] $s:ident; $a:ident : maybe_dtype, $($rest:tt)*) => {
        c_call!($run $c [$($done)* sys::mlx_optional_dtype { value: $a.unwrap_or(Dtype::Bool).to_mlx(), has_value: $a.is_some() },] $s; $($rest)*)
    };
    ($run:ident $c:ident [$($done:tt)*] $s:ident; $a:ident : norm, $($rest:tt)*) => {
        c_call!($run $c [$($done)* $a as sys::mlx_fft_norm,] $s; $($rest)*)
    };
    ($run:ident $c:ident [$($done:tt)*] $s:ident; $a:ident : $plain:ident, $($rest:tt)*) => {
        c_call!($run $c [$($done)* $a,] $s; $($rest)*)
    };
}

macro_rules! wrap {
    ($run:ident -> $out:ty; $($name:ident = $c:ident($($a:ident: $kind:ident),*);)*) => {$(
        #[allow(clippy::too_many_arguments)]
        pub fn $name($($a: rust_type!($kind),)* s: &Stream) -> Result<$out> {
            c_call!($run $c [] s; $($a: $kind,)*)
        }
    )*};
}

#[derive(Clone, Copy, Debug, PartialEq, rustler::NifUnitEnum, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FftNorm {
    Backward = sys::mlx_fft_norm__MLX_FFT_NORM_BACKWARD as isize,
    Ortho = sys::mlx_fft_norm__MLX_FFT_NORM_ORTHO as isize,
    Forward = sys::mlx_fft_norm__MLX_FFT_NORM_FORWARD as isize,
}

wrap! { one -> Array;
    // Elementwise, one array.
    abs = mlx_abs(a: array);
    negative = mlx_negative(a: array);
    sign = mlx_sign(a: array);
    ceil = mlx_ceil(a: array);
    floor = mlx_floor(a: array);
    trunc = mlx_trunc(a: array);
    round = mlx_round(a: array, decimals: int);
    exp = mlx_exp(a: array);
    expm1 = mlx_expm1(a: array);
    log = mlx_log(a: array);
    log1p = mlx_log1p(a: array);
    log2 = mlx_log2(a: array);
    log10 = mlx_log10(a: array);
    sin = mlx_sin(a: array);
    cos = mlx_cos(a: array);
    tan = mlx_tan(a: array);
    arcsin = mlx_arcsin(a: array);
    arccos = mlx_arccos(a: array);
    arctan = mlx_arctan(a: array);
    sinh = mlx_sinh(a: array);
    cosh = mlx_cosh(a: array);
    tanh = mlx_tanh(a: array);
    arcsinh = mlx_arcsinh(a: array);
    arccosh = mlx_arccosh(a: array);
    arctanh = mlx_arctanh(a: array);
    erf = mlx_erf(a: array);
    erfinv = mlx_erfinv(a: array);
    sqrt = mlx_sqrt(a: array);
    rsqrt = mlx_rsqrt(a: array);
    square = mlx_square(a: array);
    reciprocal = mlx_reciprocal(a: array);
    sigmoid = mlx_sigmoid(a: array);
    degrees = mlx_degrees(a: array);
    radians = mlx_radians(a: array);
    logical_not = mlx_logical_not(a: array);
    bitwise_invert = mlx_bitwise_invert(a: array);
    isnan = mlx_isnan(a: array);
    isinf = mlx_isinf(a: array);
    isposinf = mlx_isposinf(a: array);
    isneginf = mlx_isneginf(a: array);
    isfinite = mlx_isfinite(a: array);
    real = mlx_real(a: array);
    imag = mlx_imag(a: array);
    conjugate = mlx_conjugate(a: array);
    copy = mlx_copy(a: array);
    nan_to_num = mlx_nan_to_num(a: array, nan: float, posinf: maybe_float, neginf: maybe_float);
    hadamard_transform = mlx_hadamard_transform(a: array, scale: maybe_float);

    // Elementwise, two arrays.
    add = mlx_add(a: array, b: array);
    subtract = mlx_subtract(a: array, b: array);
    multiply = mlx_multiply(a: array, b: array);
    divide = mlx_divide(a: array, b: array);
    floor_divide = mlx_floor_divide(a: array, b: array);
    remainder = mlx_remainder(a: array, b: array);
    power = mlx_power(a: array, b: array);
    maximum = mlx_maximum(a: array, b: array);
    minimum = mlx_minimum(a: array, b: array);
    arctan2 = mlx_arctan2(a: array, b: array);
    logaddexp = mlx_logaddexp(a: array, b: array);
    equal = mlx_equal(a: array, b: array);
    not_equal = mlx_not_equal(a: array, b: array);
    less = mlx_less(a: array, b: array);
    less_equal = mlx_less_equal(a: array, b: array);
    greater = mlx_greater(a: array, b: array);
    greater_equal = mlx_greater_equal(a: array, b: array);
    logical_and = mlx_logical_and(a: array, b: array);
    logical_or = mlx_logical_or(a: array, b: array);
    bitwise_and = mlx_bitwise_and(a: array, b: array);
    bitwise_or = mlx_bitwise_or(a: array, b: array);
    bitwise_xor = mlx_bitwise_xor(a: array, b: array);
    left_shift = mlx_left_shift(a: array, b: array);
    right_shift = mlx_right_shift(a: array, b: array);
    isclose = mlx_isclose(a: array, b: array, rtol: double, atol: double, equal_nan: flag);
    allclose = mlx_allclose(a: array, b: array, rtol: double, atol: double, equal_nan: flag);
    array_equal = mlx_array_equal(a: array, b: array, equal_nan: flag);

    // Types.
    astype = mlx_astype(a: array, dtype: dtype);
    view = mlx_view(a: array, dtype: dtype);
    to_fp8 = mlx_to_fp8(a: array);
    from_fp8 = mlx_from_fp8(a: array, dtype: dtype);

    // Reductions.
    sum = mlx_sum_axes(a: array, axes: ints, keepdims: flag);
    prod = mlx_prod_axes(a: array, axes: ints, keepdims: flag);
    max = mlx_max_axes(a: array, axes: ints, keepdims: flag);
    min = mlx_min_axes(a: array, axes: ints, keepdims: flag);
    all = mlx_all_axes(a: array, axes: ints, keepdims: flag);
    any = mlx_any_axes(a: array, axes: ints, keepdims: flag);
    mean = mlx_mean_axes(a: array, axes: ints, keepdims: flag);
    median = mlx_median_axes(a: array, axes: ints, keepdims: flag);
    var = mlx_var_axes(a: array, axes: ints, keepdims: flag, ddof: int);
    std = mlx_std_axes(a: array, axes: ints, keepdims: flag, ddof: int);
    logsumexp = mlx_logsumexp_axes(a: array, axes: ints, keepdims: flag);
    softmax = mlx_softmax_axes(a: array, axes: ints, precise: flag);
    argmax = mlx_argmax_axis(a: array, axis: int, keepdims: flag);
    argmin = mlx_argmin_axis(a: array, axis: int, keepdims: flag);
    cumsum = mlx_cumsum_axis(a: array, axis: int, reverse: flag, inclusive: flag, dtype: maybe_dtype);
    cumprod = mlx_cumprod_axis(a: array, axis: int, reverse: flag, inclusive: flag, dtype: maybe_dtype);
    cummax = mlx_cummax_axis(a: array, axis: int, reverse: flag, inclusive: flag);
    cummin = mlx_cummin_axis(a: array, axis: int, reverse: flag, inclusive: flag);
    logcumsumexp = mlx_logcumsumexp_axis(a: array, axis: int, reverse: flag, inclusive: flag);

    // Order.
    sort = mlx_sort_axis(a: array, axis: int);
    argsort = mlx_argsort_axis(a: array, axis: int);
    partition = mlx_partition_axis(a: array, kth: int, axis: int);
    argpartition = mlx_argpartition_axis(a: array, kth: int, axis: int);
    topk = mlx_topk_axis(a: array, k: int, axis: int);
    searchsorted = mlx_searchsorted(sorted: array, values: array, side: text);

    // Shapes.
    reshape = mlx_reshape(a: array, shape: ints);
    flatten = mlx_flatten(a: array, start_axis: int, end_axis: int);
    unflatten = mlx_unflatten(a: array, axis: int, shape: ints);
    squeeze = mlx_squeeze_axes(a: array, axes: ints);
    expand_dims = mlx_expand_dims_axes(a: array, axes: ints);
    transpose = mlx_transpose_axes(a: array, axes: ints);
    broadcast_to = mlx_broadcast_to(a: array, shape: ints);
    concatenate = mlx_concatenate_axis(arrays: arrays, axis: int);
    stack = mlx_stack_axis(arrays: arrays, axis: int);
    repeat = mlx_repeat_axis(a: array, repeats: int, axis: int);
    tile = mlx_tile(a: array, repetitions: ints);
    flip = mlx_flip_axes(a: array, axes: ints);
    roll = mlx_roll_axes(a: array, shift: ints, axes: ints);
    pad = mlx_pad(a: array, axes: ints, low: ints, high: ints, value: array, mode: text);
    as_strided = mlx_as_strided(a: array, shape: ints, strides: longs, offset: size);
    contiguous_of_axes = mlx_contiguous(a: array, allow_col_major: flag);
    diag = mlx_diag(a: array, k: int);
    diagonal = mlx_diagonal(a: array, offset: int, axis1: int, axis2: int);
    tril = mlx_tril(a: array, k: int);
    triu = mlx_triu(a: array, k: int);

    // Parts.
    slice = mlx_slice(a: array, start: ints, stop: ints, strides: ints);
    slice_update = mlx_slice_update(a: array, update: array, start: ints, stop: ints, strides: ints);
    slice_update_add = mlx_slice_update_add(a: array, update: array, start: ints, stop: ints, strides: ints);
    slice_update_max = mlx_slice_update_max(a: array, update: array, start: ints, stop: ints, strides: ints);
    slice_update_min = mlx_slice_update_min(a: array, update: array, start: ints, stop: ints, strides: ints);
    slice_update_prod = mlx_slice_update_prod(a: array, update: array, start: ints, stop: ints, strides: ints);
    slice_dynamic = mlx_slice_dynamic(a: array, start: array, axes: ints, sizes: ints);
    slice_update_dynamic = mlx_slice_update_dynamic(a: array, update: array, start: array, axes: ints);
    take = mlx_take_axis(a: array, indices: array, axis: int);
    take_along_axis = mlx_take_along_axis(a: array, indices: array, axis: int);
    put_along_axis = mlx_put_along_axis(a: array, indices: array, values: array, axis: int);
    scatter_add_axis = mlx_scatter_add_axis(a: array, indices: array, values: array, axis: int);
    gather = mlx_gather(a: array, indices: arrays, axes: ints, slice_sizes: ints);
    scatter = mlx_scatter(a: array, indices: arrays, updates: array, axes: ints);
    scatter_add = mlx_scatter_add(a: array, indices: arrays, updates: array, axes: ints);
    scatter_max = mlx_scatter_max(a: array, indices: arrays, updates: array, axes: ints);
    scatter_min = mlx_scatter_min(a: array, indices: arrays, updates: array, axes: ints);
    scatter_prod = mlx_scatter_prod(a: array, indices: arrays, updates: array, axes: ints);
    where_ = mlx_where(condition: array, a: array, b: array);
    clip = mlx_clip(a: array, low: maybe, high: maybe);

    // Products.
    matmul = mlx_matmul(a: array, b: array);
    addmm = mlx_addmm(c: array, a: array, b: array, alpha: float, beta: float);
    einsum = mlx_einsum(subscripts: text, operands: arrays);
    inner = mlx_inner(a: array, b: array);
    outer = mlx_outer(a: array, b: array);
    kron = mlx_kron(a: array, b: array);
    vecdot = mlx_vecdot(a: array, b: array, axis: int);
    gather_mm = mlx_gather_mm(a: array, b: array, lhs_indices: maybe, rhs_indices: maybe, sorted: flag);
    conv_general = mlx_conv_general(a: array, weight: array, stride: ints, padding_low: ints, padding_high: ints, kernel_dilation: ints, input_dilation: ints, groups: int, flip: flag);

    // Spectra.
    fft = mlx_fft_fftn(a: array, sizes: ints, axes: ints, norm: norm);
    ifft = mlx_fft_ifftn(a: array, sizes: ints, axes: ints, norm: norm);
    rfft = mlx_fft_rfftn(a: array, sizes: ints, axes: ints, norm: norm);
    irfft = mlx_fft_irfftn(a: array, sizes: ints, axes: ints, norm: norm);
    fftshift = mlx_fft_fftshift(a: array, axes: ints);
    ifftshift = mlx_fft_ifftshift(a: array, axes: ints);

    // Linear algebra.
    cholesky = mlx_linalg_cholesky(a: array, upper: flag);
    cholesky_inv = mlx_linalg_cholesky_inv(a: array, upper: flag);
    inv = mlx_linalg_inv(a: array);
    tri_inv = mlx_linalg_tri_inv(a: array, upper: flag);
    pinv = mlx_linalg_pinv(a: array);
    det = mlx_linalg_det(a: array);
    solve = mlx_linalg_solve(a: array, b: array);
    solve_triangular = mlx_linalg_solve_triangular(a: array, b: array, upper: flag);
    eigvalsh = mlx_linalg_eigvalsh(a: array, uplo: text);
    eigvals = mlx_linalg_eigvals(a: array);
    cross = mlx_linalg_cross(a: array, b: array, axis: int);

    // Random numbers. The key is always given, so that no hidden state is shared between processes.
    random_bits = mlx_random_bits(shape: ints, width: int, key: maybe);
    random_uniform = mlx_random_uniform(low: array, high: array, shape: ints, dtype: dtype, key: maybe);
    random_normal = mlx_random_normal(shape: ints, dtype: dtype, loc: float, scale: float, key: maybe);
    random_randint = mlx_random_randint(low: array, high: array, shape: ints, dtype: dtype, key: maybe);
    random_bernoulli = mlx_random_bernoulli(p: array, shape: ints, key: maybe);
    random_truncated_normal = mlx_random_truncated_normal(low: array, high: array, shape: ints, dtype: dtype, key: maybe);
    random_gumbel = mlx_random_gumbel(shape: ints, dtype: dtype, key: maybe);
    random_laplace = mlx_random_laplace(shape: ints, dtype: dtype, loc: float, scale: float, key: maybe);
    random_categorical = mlx_random_categorical_shape(logits: array, axis: int, shape: ints, key: maybe);
    random_permutation = mlx_random_permutation(a: array, axis: int, key: maybe);
    random_split = mlx_random_split_num(key: array, num: int);

    // Creation.
    full = mlx_full(shape: ints, value: array, dtype: dtype);
    zeros = mlx_zeros(shape: ints, dtype: dtype);
    ones = mlx_ones(shape: ints, dtype: dtype);
    arange = mlx_arange(start: double, stop: double, step: double, dtype: dtype);
    linspace = mlx_linspace(start: double, stop: double, num: int, dtype: dtype);
    eye = mlx_eye(n: int, m: int, k: int, dtype: dtype);
    tri = mlx_tri(n: int, m: int, k: int, dtype: dtype);

    // Fused.
    rms_norm = mlx_fast_rms_norm(x: array, weight: maybe, eps: float);
    layer_norm = mlx_fast_layer_norm(x: array, weight: maybe, bias: maybe, eps: float);
    rope = mlx_fast_rope_dynamic(x: array, dims: int, traditional: flag, base: maybe_float, scale: float, offset: array, freqs: maybe);
    scaled_dot_product_attention = mlx_fast_scaled_dot_product_attention(q: array, k: array, v: array, scale: float, mask_mode: text, mask: maybe, sinks: maybe, force_fused: flag);
    cross_entropy = mlx_fast_cross_entropy(logits: array, targets: array);

    // Quantized.
    dequantize = mlx_dequantize(w: array, scales: array, biases: maybe, group_size: maybe_int, bits: maybe_int, mode: text, global_scale: maybe, dtype: maybe_dtype);
    quantized_matmul = mlx_quantized_matmul(x: array, w: array, scales: array, biases: maybe, transpose: flag, group_size: maybe_int, bits: maybe_int, mode: text);
    qqmm = mlx_qqmm(x: array, w: array, scales: maybe, group_size: maybe_int, bits: maybe_int, mode: text, global_scale_x: maybe, global_scale_w: maybe);
    gather_qmm = mlx_gather_qmm(x: array, w: array, scales: array, biases: maybe, lhs_indices: maybe, rhs_indices: maybe, transpose: flag, group_size: maybe_int, bits: maybe_int, mode: text, sorted: flag);
}

wrap! { many -> Vec<Array>;
    lu = mlx_linalg_lu(a: array);
    svd = mlx_linalg_svd(a: array, compute_uv: flag);
    quantize = mlx_quantize(w: array, group_size: maybe_int, bits: maybe_int, mode: text, global_scale: maybe);
}

macro_rules! pairs {
    ($($name:ident = $c:ident($($a:ident: $kind:ident),*);)*) => {$(
        pub fn $name($($a: rust_type!($kind),)* s: &Stream) -> Result<Vec<Array>> {
            let mut second = sys::mlx_array { ctx: std::ptr::null_mut() };
            let second_ptr: *mut sys::mlx_array = &mut second;
            let pair = |call: &mut dyn FnMut(*mut sys::mlx_array) -> c_int| one(call);
            let first = pair_call!(pair second_ptr $c s; $($a: $kind),*);
            // SAFETY: ours alone, empty if the call failed.
            let second = unsafe { Array::from_ptr(second) };
            Ok(vec![first?, second])
        }
    )*};
}

macro_rules! pair_call {
    ($pair:ident $second:ident $c:ident $s:ident; $a:ident: array) => {
        // SAFETY: as for `c_call!`; the second output is a local that outlives the call.
        $pair(&mut |res| unsafe { sys::$c(res, $second, $a.as_ptr(), $s.0) })
    };
    ($pair:ident $second:ident $c:ident $s:ident; $a:ident: array, $t:ident: text) => {{
        let $t = text($t)?;
        $pair(&mut |res| unsafe { sys::$c(res, $second, $a.as_ptr(), $t.as_ptr(), $s.0) })
    }};
}

pairs! {
    qr = mlx_linalg_qr(a: array);
    eigh = mlx_linalg_eigh(a: array, uplo: text);
    eig = mlx_linalg_eig(a: array);
    lu_factor = mlx_linalg_lu_factor(a: array);
    slogdet = mlx_linalg_slogdet(a: array);
}

pub fn random_key(seed: u64) -> Result<Array> {
    one(|res| unsafe { sys::mlx_random_key(res, seed) })
}
