//! Ops by the kernels for Hopper: on the emulator the same bits in every order of threads and on any number of multiprocessors,
//! on a GPU the same bits again, and on both within tolerance of the reference.

use super::{On, Outputs, compare, emulator, gpu};
use half::bf16;
use mapl::backend::contract::{Precision, Tolerance};
use mapl::backend::kernels::Kernels;
use mapl::backend::kernels::device::Device;
use mapl::backend::kernels::emulator::Schedule;
use mapl::backend::kernels::hopper::Hopper;

/// What a case does on any device.
pub trait Work {
    fn on<D: Device>(&self, on: &On<'_, Kernels<D, bf16>>) -> Outputs;

    /// The backend it is done on.
    fn prepare<D: Device>(&self, kernels: Kernels<D, bf16>) -> Kernels<D, bf16> {
        kernels
    }
}

/// Runs on a device. Operands begin at multiples of 16 bytes, or these kernels would not be used.
pub fn done<D: Device>(device: D, how: Hopper, work: &impl Work) -> Outputs {
    let kernels = work.prepare(Kernels::<_, bf16>::new(device).with_hopper(how));
    let mut on = On::new(&kernels, Precision::Bf16);
    on.before = 8;
    work.on(&on)
}

/// Compares a way with the reference's results, and with itself for the bits.
pub fn one_way(
    label: &str,
    how: Hopper,
    blocks: usize,
    expected: &Outputs,
    tolerance: impl Fn(&str) -> Tolerance,
    work: &impl Work,
) {
    if let Some(device) = emulator(Schedule::Rising, 2) {
        let first = done(device, how, work);
        compare::outputs(label, &first, expected, &tolerance);
        for (schedule, processors) in [(Schedule::Falling, 3), (Schedule::Random(5), 7), (Schedule::Random(9), 1)] {
            // Clusters of two need two multiprocessors.
            let Some(device) = emulator(schedule, processors.max(blocks)) else { continue };
            compare::same_bits(&format!("{label}, {schedule:?} on {processors}"), &done(device, how, work), &first);
        }
    }
    if let (Some(one), Some(two)) = (gpu(), gpu()) {
        let first = done(one, how, work);
        compare::outputs(&format!("{label} on the GPU"), &first, expected, &tolerance);
        compare::same_bits(&format!("{label} on the GPU again"), &done(two, how, work), &first);
    }
}
