//! Devices under test and their memory.

use half::bf16;
use mapl::backend::kernels::device::Device;
use mapl::backend::kernels::driver::Driver;
use mapl::backend::kernels::emulator::{Emulator, Schedule};

/// Schedules of the emulator: orders of threads and of asynchronous copies.
pub const SCHEDULES: [Schedule; 4] = [Schedule::Rising, Schedule::Falling, Schedule::Random(1), Schedule::Random(2)];

/// Calls `body` with the emulator in every schedule.
pub fn emulators(body: impl Fn(&Emulator)) {
    for schedule in SCHEDULES {
        if let Some(device) = common::emulator(schedule, 3) {
            println!("emulator, {schedule:?}");
            body(&device);
        }
    }
}

/// Calls `body` with the GPU, if there is one that supports all primitives.
pub fn gpu(body: impl Fn(&Driver)) {
    if let Some(device) = common::gpu().filter(|device| device.properties().compute_capability >= (9, 0)) {
        println!("{}", device.properties().name);
        body(&device);
    }
}

/// Allocates device memory with the given values.
pub fn upload<D: Device, T: bytemuck::Pod>(device: &D, values: &[T]) -> D::Memory {
    let bytes: &[u8] = bytemuck::cast_slice(values);
    let mut memory = device.allocate(bytes.len().max(1)).unwrap();
    device.upload(&mut memory, 0, bytes).unwrap();
    memory
}

/// Allocates `len` elements with all bits set, a value that no kernel here writes.
pub fn unwritten<D: Device>(device: &D, len: usize) -> D::Memory {
    upload(device, &vec![-1i32; len])
}

/// Returns the first `len` elements of memory.
pub fn download<D: Device, T: bytemuck::Pod>(device: &D, memory: &D::Memory, len: usize) -> Vec<T> {
    let mut values = vec![T::zeroed(); len];
    device.download(memory, 0, bytemuck::cast_slice_mut(&mut values)).unwrap();
    values
}

/// Packs two bf16 values into a word, the first in the lower half.
pub fn pair(first: f32, second: f32) -> i32 {
    let bits = |x| u32::from(bf16::from_f32(x).to_bits());
    (bits(first) | bits(second) << 16) as i32
}

/// Returns small integers, exact in bf16 and in sums of products.
pub fn small(rows: usize, cols: usize, seed: usize) -> Vec<f32> {
    (0..rows * cols).map(|i| ((i * 7 + i / cols * 3 + i * i % 11 + seed * 5) % 9) as f32 - 4.0).collect()
}

/// Multiplies a (m, k) by b (k, n), exactly for small integers.
pub fn matmul(a: &[f32], b: &[f32], m: usize, k: usize, n: usize) -> Vec<f32> {
    let entry = |i: usize| (0..k).map(|j| a[i / n * k + j] * b[j * n + i % n]).sum();
    (0..m * n).map(entry).collect()
}
