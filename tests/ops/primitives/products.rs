//! wgmma: operands in the ISA's shared-memory layouts, written byte by byte here, and the fragments
//! of the result.

use half::bf16;
use mapl::backend::kernels::device::{ConstPtr, Device, MutPtr};
use mapl::backend::kernels::launchers::{
    TestProduct64Kk, TestProduct128Ka, TestProduct192Aa, TestProduct256Ak, TestProductRegisters64A,
    TestProductRegisters80K, TestProductRegisters96K,
};

use super::harness::{download, matmul, pair, small, unwritten, upload};

/// An operand in shared memory: its bytes and the fields of its descriptor.
struct Image {
    bytes: Vec<u8>,
    leading: i32,
    stride: i32,
    /// Bytes between the start addresses of consecutive K steps of 16.
    step: i32,
}

/// Row bytes of each swizzle mode of a descriptor: none, 128, 64, 32.
const ROWS: [usize; 4] = [16, 128, 64, 32];

/// Lays out an operand of `rows` by `k`, contiguous along k (K-major). With a swizzle, eight rows
/// form a pattern, and patterns are `stride` bytes apart (here with a gap). Without a swizzle, core
/// matrices of 8 rows by 16 bytes are `leading` bytes apart along k and `stride` bytes apart
/// across.
fn along_k(get: impl Fn(usize, usize) -> f32, rows: usize, k: usize, mode: usize) -> Image {
    let row = ROWS[mode];
    let (leading, stride, step) = if mode == 0 { (128, 128 * (k / 8), 256) } else { (16, 16 * row, 32) };
    let mut bytes = vec![0xff; rows / 8 * stride + 16];
    for i in 0..rows * k {
        let (r, j) = (i / k, i % k);
        let at = if mode == 0 {
            r % 8 * 16 + r / 8 * stride + j / 8 * leading
        } else {
            r % 8 * row + r / 8 * stride + j / 8 * 16
        };
        put(&mut bytes, at, mode, j % 8, get(r, j));
    }
    bytes.truncate(bytes.len() / 16 * 16);
    Image { bytes, leading: leading as i32, stride: stride as i32, step }
}

/// Lays out an operand of `rows` by `k`, contiguous across k (MN-major). With the 128-byte swizzle,
/// a row holds 64 elements of one k, and eight values of k form a pattern. Patterns are `stride`
/// bytes apart along k; the next 64 elements are `leading` bytes away. Without a swizzle, core
/// matrices of 8 values of k by 16 bytes are `leading` bytes apart along k and `stride` bytes apart
/// across.
fn across_k(get: impl Fn(usize, usize) -> f32, rows: usize, k: usize, mode: usize) -> Image {
    let (leading, stride) = if mode == 0 { (128 * (rows / 8), 128) } else { (128 * k, 1024) };
    let mut bytes = vec![0xff; rows * k * 2 + 16];
    for i in 0..rows * k {
        let (r, j) = (i / k, i % k);
        let at = if mode == 0 {
            j % 8 * 16 + j / 8 * leading + r / 8 * stride
        } else {
            j % 8 * 128 + j / 8 * stride + r % 64 / 8 * 16 + r / 64 * leading
        };
        put(&mut bytes, at, mode, r % 8, get(r, j));
    }
    let step = if mode == 0 { 2 * leading } else { 2 * stride };
    Image { bytes, leading: leading as i32, stride: stride as i32, step: step as i32 }
}

/// Writes element `i` of the 16-byte chunk at `at`, the offset before the swizzle. The swizzle xors
/// the address bits from bit 4 up with the same number of bits from bit 7 up.
fn put(bytes: &mut [u8], at: usize, mode: usize, i: usize, x: f32) {
    let at = (at ^ (at >> 7 & (ROWS[mode] / 16 - 1)) << 4) + 2 * i;
    bytes[at..at + 2].copy_from_slice(&bf16::from_f32(x).to_ne_bytes());
}

/// Compares result fragments. For each group j of eight columns, thread 32 w + 4 g + t holds
/// elements (16 w + g, 8 j + 2 t) and the next column, then the same columns of row 16 w + g + 8.
fn expect(got: &[f32], product: &[f32], columns: usize, add: f32, label: &str) {
    for (i, &x) in got.iter().enumerate() {
        let (thread, value) = (i / (columns / 2), i % (columns / 2));
        let (w, g, t) = (thread / 32, thread % 32 / 4, thread % 4);
        let (row, col) = (16 * w + g + value % 4 / 2 * 8, value / 4 * 8 + 2 * t + value % 2);
        assert_eq!(x, product[row * columns + col] + add, "{label}: element ({row}, {col})");
    }
}

macro_rules! product {
    ($Kernel:ident, $device:expr, $columns:expr, $k:expr, $mode:expr, $a_image:ident, $b_image:ident) => {{
        let (columns, k, mode) = ($columns, $k, $mode);
        let (a, b) = (small(64, k, columns), small(k, columns, mode + 1));
        let a_image = $a_image(|r, j| a[r * k + j], 64, k, mode);
        let b_image = $b_image(|r, j| b[j * columns + r], columns, k, mode);
        // A single step must not read the operands of the next step; the full sum needs every step.
        for (steps, accumulate) in [(1, 0), (k / 16, 0), (k / 16, 1)] {
            let [a_memory, b_memory] = [&a_image, &b_image].map(|image| upload($device, &image.bytes));
            let out = unwritten($device, 128 * columns / 2);
            $Kernel {
                a: ConstPtr::of::<D>(&a_memory, 0),
                b: ConstPtr::of::<D>(&b_memory, 0),
                a_bytes: a_image.bytes.len() as i32,
                b_bytes: b_image.bytes.len() as i32,
                a_leading: a_image.leading,
                a_stride: a_image.stride,
                b_leading: b_image.leading,
                b_stride: b_image.stride,
                swizzle: mode as i32,
                steps: steps as i32,
                a_step: a_image.step,
                b_step: b_image.step,
                accumulate,
                out: MutPtr::of::<D>(&out, 0),
            }
            .launch($device, 1, a_image.bytes.len().next_multiple_of(1024) + b_image.bytes.len())
            .unwrap();
            let some: Vec<f32> = a.chunks(k).flat_map(|row| &row[..16 * steps]).copied().collect();
            let product = matmul(&some, &b[..16 * steps * columns], 64, 16 * steps, columns);
            let got = download::<D, f32>($device, &out, 128 * columns / 2);
            let label = format!("{}, mode {mode}, {steps} steps, add {accumulate}", stringify!($Kernel));
            // The accumulators start at 1, which is ignored without accumulation.
            expect(&got, &product, columns, accumulate as f32, &label);
        }
    }};
}

/// Tests both operands along k with the three swizzles: a row holds 64, 32 and 16 values of k.
pub fn wgmma_operands_along_k<D: Device>(device: &D) {
    product!(TestProduct64Kk, device, 64, 64, 1, along_k, along_k);
    product!(TestProduct64Kk, device, 64, 32, 2, along_k, along_k);
    product!(TestProduct64Kk, device, 64, 16, 3, along_k, along_k);
}

/// Tests one or both operands across k with the 128-byte swizzle, and more columns than the width of a
/// pattern.
pub fn wgmma_operands_across_k<D: Device>(device: &D) {
    product!(TestProduct128Ka, device, 128, 32, 1, along_k, across_k);
    product!(TestProduct256Ak, device, 256, 32, 1, across_k, along_k);
    product!(TestProduct192Aa, device, 192, 48, 1, across_k, across_k);
}

/// Tests operands without a swizzle: the meaning of a descriptor's two offsets depends on the direction of
/// the operand.
pub fn wgmma_operands_without_swizzle<D: Device>(device: &D) {
    product!(TestProduct64Kk, device, 64, 32, 0, along_k, along_k);
    product!(TestProduct128Ka, device, 128, 32, 0, along_k, across_k);
    product!(TestProduct256Ak, device, 256, 32, 0, across_k, along_k);
    product!(TestProduct192Aa, device, 192, 32, 0, across_k, across_k);
}

macro_rules! product_of_registers {
    ($Kernel:ident, $device:expr, $columns:expr, $b_image:ident) => {{
        let columns = $columns;
        let (a, b) = (small(64, 32, 5), small(32, columns, 6));
        let b_image = $b_image(|r, j| b[j * columns + r], columns, 32, 1);
        // Warp w holds rows 16 w to 16 w + 15 of A as fragments of mma.m16n8k16, for each step.
        let mut fragments = Vec::new();
        for thread in 0..128 {
            let (w, g, t) = (thread / 32, thread % 32 / 4, thread % 4);
            for step in 0..2 {
                for (row, col) in [(g, 2 * t), (g + 8, 2 * t), (g, 2 * t + 8), (g + 8, 2 * t + 8)] {
                    let at = 32 * (16 * w + row) + 16 * step + col;
                    fragments.push(pair(a[at], a[at + 1]));
                }
            }
        }
        let (fragments, memory) = (upload($device, &fragments), upload($device, &b_image.bytes));
        let out = unwritten($device, 128 * columns / 2);
        $Kernel {
            fragments: ConstPtr::of::<D>(&fragments, 0),
            b: ConstPtr::of::<D>(&memory, 0),
            b_bytes: b_image.bytes.len() as i32,
            b_leading: b_image.leading,
            b_stride: b_image.stride,
            b_step: b_image.step,
            out: MutPtr::of::<D>(&out, 0),
        }
        .launch($device, 1, b_image.bytes.len())
        .unwrap();
        let got = download::<D, f32>($device, &out, 128 * columns / 2);
        expect(&got, &matmul(&a, &b, 64, 32, columns), columns, 0.0, stringify!($Kernel));
    }};
}

/// Tests A in registers, with B along k and across k.
pub fn wgmma_operands_in_registers<D: Device>(device: &D) {
    product_of_registers!(TestProductRegisters80K, device, 80, along_k);
    product_of_registers!(TestProductRegisters96K, device, 96, along_k);
    product_of_registers!(TestProductRegisters64A, device, 64, across_k);
}
