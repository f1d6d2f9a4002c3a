//! Scaled dot product attention: softmax(scale · q·kᵀ + mask) · v, head by head, a block of queries at a time, so that
//! scores are never written to memory as a whole. Operands are read through their strides: heads that lie inside rows
//! take no copy.

use super::element::Element;
use super::few;
use super::gemm;
#[cfg(target_arch = "x86_64")]
use super::panels::Pairs;
use super::panels::{self, CellsOf, Matrix, Packed, Singles};
use super::pool::{self, Shared};
use super::rows;
use super::simd::dispatch;
#[cfg(target_arch = "x86_64")]
use super::simd::Avx512;
use super::simd::{load_part, store_part, Level, Simd};
use super::View;
#[cfg(target_arch = "x86_64")]
use half::bf16;
use std::cell::RefCell;

/// Queries of a block: a multiple of every tile's height.
const QUERIES: usize = 48;
/// Queries up to which keys and values are read where they lie; with more, rearranging them pays.
const FEW_QUERIES: usize = 4;
/// Rows that such queries make, of all heads that go together.
const FEW_ROWS: usize = 8;
/// Keys whose weighted values are added up in f32 where there are more than twice as many; what these come to is added
/// up in f64.
const KEYS: usize = 512;
/// Multiply-adds from which a second thread pays.
const WORTH_SHARING: usize = 100_000;

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Mask {
    None,
    /// Query i of L sees the first i + 1 + S - L of S keys.
    Causal,
    /// Booleans: true where a key is seen.
    Seen,
    /// Numbers that are added to the scores.
    Added,
}

/// One head's operands and its place in the result.
struct Head<T> {
    q: Matrix<T>,
    k: Matrix<T>,
    v: Matrix<T>,
    mask: Mask,
    seen: Matrix<u8>,
    added: Matrix<T>,
    out: *mut T,
    out_row: isize,
    /// The queries that are to be done, of `queries`.
    first: usize,
    last: usize,
    queries: usize,
    keys: usize,
    size: usize,
    value_size: usize,
    scale: f32,
}

thread_local! {
    static ROOM: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
    static WIDE: RefCell<Vec<f64>> = const { RefCell::new(Vec::new()) };
}

fn padded(count: usize) -> usize {
    count.next_multiple_of(32)
}

/// Queries and keys are multiplied in cells of `C`, values in f32, as their weights are.
#[inline(always)]
unsafe fn head_of<S: Simd, C: CellsOf<S, T>, T: Element>(
    head: &Head<T>,
    parts: &[*mut f32; 5],
    wide: *mut f64,
) {
    let (keys, size, value_size) = (head.keys, head.size, head.value_size);
    let [packed_k, packed_v, packed, scores, sums] = *parts;
    let cells = size.div_ceil(C::TERMS);
    panels::pack_columns::<S, C, T>(head.k.turned(), size, keys, packed_k);
    panels::pack_columns::<S, Singles, T>(head.v, keys, value_size, packed_v);
    let mut first = head.first;
    while first < head.last {
        let count = QUERIES.min(head.last - first);
        // Keys that none of these queries sees are left out.
        let seen = match head.mask {
            Mask::Causal => keys - head.queries + first + count,
            _ => keys,
        };
        panels::pack_rows::<S, C, T>(head.q.from(first, 0), count, size, packed);
        let [queries, all] = [packed, packed_k].map(|data| Packed::whole(data, cells));
        panels::multiply::<S, C>(queries, all, scores, keys, (count, cells, seen), false);
        let mut totals = [0f32; QUERIES];
        for (i, total) in totals.iter_mut().enumerate().take(count) {
            *total = weigh::<S, T>(head, first + i, scores.add(i * keys), seen);
        }
        let weights = Matrix {
            data: scores.cast_const(),
            row: keys as isize,
            column: 1,
        };
        panels::pack_rows::<S, Singles, f32>(weights, count, seen, packed);
        // Panels of v are `keys` terms long, of which the first `seen` are used.
        let values = Packed::whole(packed_v, keys);
        multiply_values::<S>(packed, values, sums, (count, seen, value_size), wide);
        for (i, total) in totals.iter().enumerate().take(count) {
            let to = head.out.offset((first + i) as isize * head.out_row);
            rows::scaled::<S, T>(sums.add(i * value_size), to, value_size, 1.0 / total);
        }
        first += count;
    }
}

/// Makes weights of a query's scores, not yet divided by their sum, which is the result; 0 for keys that it does not
/// see.
#[inline(always)]
unsafe fn weigh<S: Simd, T: Element>(
    head: &Head<T>,
    query: usize,
    row: *mut f32,
    keys: usize,
) -> f32 {
    let own = match head.mask {
        Mask::Causal => head.keys - head.queries + query + 1,
        _ => head.keys,
    };
    scale_and_mask::<S, T>(head, query, row, own);
    let most = rows::largest::<S>(row, own);
    let total = rows::exponents::<S>(row, own, most);
    for j in own..keys {
        row.add(j).write(0.0);
    }
    total as f32
}

/// Heads that share keys and values, all of their few queries as rows of one product, keys and values read where they
/// lie.
#[inline(always)]
unsafe fn few_body<S: Simd, T: Element>(heads: &[Head<T>], parts: &[*mut f32; 3], room: *mut f64) {
    let [wide, scores, sums] = *parts;
    let one = &heads[0];
    let (keys, size, value_size) = (one.keys, one.size, one.value_size);
    let (query_step, step) = (few::row_size(size), few::row_size(keys));
    let count = heads.len() * one.queries;
    for (number, head) in heads.iter().enumerate() {
        let to = wide.add(number * one.queries * query_step);
        few::widen_body::<S, T>(head.q, one.queries, size, to);
    }
    few::multiply::<S, T>(
        wide,
        one.k.turned(),
        scores,
        step,
        (count, size, keys),
        room,
    );
    let mut totals = [0f32; FEW_ROWS];
    for (i, total) in totals.iter_mut().enumerate().take(count) {
        let head = &heads[i / one.queries];
        *total = weigh::<S, T>(head, i % one.queries, scores.add(i * step), step);
    }
    few::multiply::<S, T>(
        scores,
        one.v,
        sums,
        value_size,
        (count, keys, value_size),
        room,
    );
    for (i, total) in totals.iter().enumerate().take(count) {
        let head = &heads[i / one.queries];
        let to = head.out.offset((i % one.queries) as isize * head.out_row);
        rows::scaled::<S, T>(sums.add(i * value_size), to, value_size, 1.0 / total);
    }
}

dispatch! {
    fn run_few<T: Element>(heads: &[Head<T>], parts: &[*mut f32; 3], room: *mut f64) = few_body
}

#[inline(always)]
unsafe fn multiply_values<S: Simd>(
    weights: *const f32,
    values: Packed,
    sums: *mut f32,
    (count, terms, columns): (usize, usize, usize),
    wide: *mut f64,
) {
    let weights = Packed::whole(weights, terms);
    if terms <= 2 * KEYS {
        let sizes = (count, terms, columns);
        return panels::multiply::<S, Singles>(weights, values, sums, columns, sizes, false);
    }
    for first in (0..terms).step_by(KEYS) {
        let sizes = (count, KEYS.min(terms - first), columns);
        let [weights, values] = [weights, values].map(|all| Packed { first, ..all });
        panels::multiply::<S, Singles>(weights, values, sums, columns, sizes, false);
        gemm::add_wide::<S>(sums, wide, count * columns, first > 0);
    }
    gemm::narrow_wide::<S>(wide, sums, count * columns);
}

/// Scores of a query, scaled and masked in place.
#[inline(always)]
unsafe fn scale_and_mask<S: Simd, T: Element>(
    head: &Head<T>,
    query: usize,
    row: *mut f32,
    keys: usize,
) {
    let scale = S::splat(head.scale);
    // As MLX has it: a query that sees no key sees all equally.
    let (zero, unseen) = (S::splat(0.0), S::splat(f32::MIN));
    for j in (0..keys).step_by(S::LANES) {
        let count = S::LANES.min(keys - j);
        let score = match count == S::LANES {
            true => S::load(row.add(j)),
            false => load_part::<S, f32>(row.add(j), count, 0.0),
        };
        let score = S::mul(score, scale);
        let score = match head.mask {
            Mask::None | Mask::Causal => score,
            Mask::Seen => {
                let seen = mask_of::<S, T>(head, query, j, count);
                S::select(S::equal(seen, zero), unseen, score)
            }
            Mask::Added => S::add(score, mask_of::<S, T>(head, query, j, count)),
        };
        match count == S::LANES {
            true => S::store(row.add(j), score),
            false => store_part::<S, f32>(row.add(j), count, score),
        }
    }
}

/// What a mask has for a query and `count` keys from `j` on, as numbers.
#[inline(always)]
unsafe fn mask_of<S: Simd, T: Element>(
    head: &Head<T>,
    query: usize,
    j: usize,
    count: usize,
) -> S::V {
    let is_whole = count == S::LANES;
    if head.mask == Mask::Seen && is_whole && head.seen.column == 1 {
        return S::load_u8(head.seen.at(query, j));
    }
    if head.mask == Mask::Added && is_whole && head.added.column == 1 {
        return T::load::<S>(head.added.at(query, j));
    }
    let mut part = [0f32; 16];
    for (i, number) in part.iter_mut().enumerate().take(count) {
        *number = match head.mask {
            Mask::Seen => head.seen.at(query, j + i).read().into(),
            _ => head.added.at(query, j + i).read().widen(),
        };
    }
    S::load(part.as_ptr())
}

#[inline(always)]
unsafe fn head_body<S: Simd, T: Element>(head: &Head<T>, parts: &[*mut f32; 5], wide: *mut f64) {
    head_of::<S, Singles, T>(head, parts, wide)
}

dispatch! {
    fn run_head_of_singles<T: Element>(head: &Head<T>, parts: &[*mut f32; 5], wide: *mut f64) = head_body
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
unsafe fn run_head_of_pairs(head: &Head<bf16>, parts: &[*mut f32; 5], wide: *mut f64) {
    head_of::<Avx512, Pairs, bf16>(head, parts, wide)
}

unsafe fn run_head<T: Element>(
    level: Level,
    head: &Head<T>,
    parts: &[*mut f32; 5],
    wide: *mut f64,
) {
    #[cfg(target_arch = "x86_64")]
    if level == Level::Avx512Bf16 && gemm::is::<T, bf16>() {
        // SAFETY: it is of this type.
        let head = unsafe { &*std::ptr::from_ref(head).cast::<Head<bf16>>() };
        return run_head_of_pairs(head, parts, wide);
    }
    run_head_of_singles::<T>(level, head, parts, wide)
}

/// Calls `work` with room of the thread's own. (Vector code must not stand in closures: they are compiled without the
/// instructions of the function around them.)
fn with_room<const N: usize>(
    sizes: [usize; N],
    wide: usize,
    work: impl FnOnce(&[*mut f32; N], *mut f64),
) {
    let with = |room: &mut Vec<f32>, wide: *mut f64| {
        let mut next = gemm::room(room, sizes.iter().sum());
        let mut parts = [std::ptr::null_mut::<f32>(); N];
        for (part, size) in parts.iter_mut().zip(sizes) {
            *part = next;
            // SAFETY: within the room.
            next = unsafe { next.add(size) };
        }
        work(&parts, wide)
    };
    ROOM.with_borrow_mut(|room| {
        WIDE.with_borrow_mut(|buffer| with(room, gemm::room(buffer, wide)));
    })
}

unsafe fn run_one<T: Element>(level: Level, head: &Head<T>) {
    let sizes = [
        padded(head.keys) * head.size,
        head.keys * padded(head.value_size),
        QUERIES * head.size.max(head.keys),
        QUERIES * head.keys,
        // Up to whole vectors.
        QUERIES * head.value_size + 16,
    ];
    let wide = QUERIES * head.value_size + 16;
    // SAFETY: the caller's word, and room as the sizes say.
    with_room(sizes, wide, |parts, wide| unsafe {
        run_head::<T>(level, head, parts, wide)
    })
}

unsafe fn run_together<T: Element>(level: Level, heads: &[Head<T>]) {
    let one = &heads[0];
    let count = heads.len() * one.queries;
    let sizes = [
        count * few::row_size(one.size),
        count * few::row_size(one.keys),
        count * one.value_size,
    ];
    let wide = few::wide_size(count, one.keys, one.value_size);
    // SAFETY: the caller's word, and room as the sizes say.
    with_room(sizes, wide, |parts, wide| unsafe {
        run_few::<T>(level, heads, parts, wide)
    })
}

/// The last two axes at batch `b` and head `h` of an array of four axes.
unsafe fn matrix<T>(view: &View, b: usize, h: usize) -> Matrix<T> {
    let strides = view.strides();
    Matrix {
        data: view
            .data
            .cast::<T>()
            .offset(b as isize * strides[0] as isize + h as isize * strides[1] as isize),
        row: strides[2] as isize,
        column: strides[3] as isize,
    }
}

/// q is {batch, heads, length, size}, k and v {batch, kv_heads, keys, size}; a mask is of four axes already broadcast.
///
/// # Safety
/// The views are of live arrays of these shapes; a causal mask goes with no more queries than keys.
pub unsafe fn run<T: Element>(level: Level, inputs: &[View], mask: Mask, scale: f32, out: &View) {
    let (q, k, v) = (&inputs[0], &inputs[1], &inputs[2]);
    let sizes = |view: &View, axis: usize| view.shape()[axis] as usize;
    let (batch, heads, queries) = (sizes(q, 0), sizes(q, 1), sizes(q, 2));
    let group = heads / sizes(k, 1);
    let (keys, size, value_size) = (sizes(k, 2), sizes(q, 3), sizes(v, 3));
    let all = batch * heads;
    let wanted = (2 * pool::threads()).div_ceil(all).max(1);
    let chunk = queries.div_ceil(wanted).next_multiple_of(QUERIES);
    let chunks = queries.div_ceil(chunk);
    let share = all * queries * keys * (size + value_size) >= WORTH_SHARING;
    let out_strides = out.strides();
    let to = Shared(out.data.cast::<T>());
    // Queries `first` to `last` of a head.
    let head = |number: usize, first: usize, last: usize| {
        let (b, h) = (number / heads, number % heads);
        let place = b as isize * out_strides[0] as isize + h as isize * out_strides[1] as isize;
        // SAFETY: within the arrays' shapes; a head's queries have rows of the result of their own.
        unsafe {
            Head {
                q: matrix(q, b, h),
                k: matrix(k, b, h / group),
                v: matrix(v, b, h / group),
                mask,
                seen: match mask {
                    Mask::Seen => matrix(&inputs[3], b, h),
                    _ => Matrix::NONE,
                },
                added: match mask {
                    Mask::Added => matrix(&inputs[3], b, h),
                    _ => Matrix::NONE,
                },
                out: to.offset(place),
                out_row: out_strides[2] as isize,
                first,
                last,
                queries,
                keys,
                size,
                value_size,
                scale,
            }
        }
    };
    let first = head(0, 0, queries);
    if queries <= FEW_QUERIES && few::fits(first.k) && few::fits(first.v) {
        // Heads of one group, as many together as there is room for; never of two groups.
        let together = (FEW_ROWS / queries).min(group);
        let parts = group.div_ceil(together);
        return pool::parallel(all / group * parts, share, &|part| {
            let start = part / parts * group + part % parts * together;
            let end = (start + together).min((part / parts + 1) * group);
            let heads: Vec<Head<T>> = (start..end).map(|n| head(n, 0, queries)).collect();
            // SAFETY: the views' own shapes and strides.
            unsafe { run_together::<T>(level, &heads) };
        });
    }
    pool::parallel(all * chunks, share, &|part| {
        let first = part % chunks * chunk;
        let one = head(part / chunks, first, queries.min(first + chunk));
        // SAFETY: the views' own shapes and strides.
        unsafe { run_one::<T>(level, &one) };
    });
}
