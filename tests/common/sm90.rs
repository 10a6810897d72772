//! Checks of ops on the Hopper kernels. Results are within tolerance of the reference. They are
//! bitwise equal on the emulator in every schedule and for any number of multiprocessors, and on a
//! GPU in repeated runs.

use super::{On, Outputs, compare, emulator, full, gpu};
use half::bf16;
use mapl::backend::contract::{Precision, Tolerance};
use mapl::backend::kernels::Kernels;
use mapl::backend::kernels::device::Device;
use mapl::backend::kernels::emulator::Schedule;
use mapl::backend::kernels::hopper::Hopper;

/// A case that runs on any device.
pub trait Work {
    fn on<D: Device>(&self, on: &On<'_, Kernels<D, bf16>>) -> Outputs;

    /// Configures the backend before the run.
    fn prepare<D: Device>(&self, kernels: Kernels<D, bf16>) -> Kernels<D, bf16> {
        kernels
    }
}

/// Runs a case on a device. Operands are 16-byte aligned; otherwise the backend would not use the
/// Hopper kernels.
pub fn run_on<D: Device>(device: D, how: Hopper, work: &impl Work) -> Outputs {
    let kernels = work.prepare(Kernels::<_, bf16>::new(device).with_hopper(how));
    let mut on = On::new(&kernels, Precision::Bf16);
    on.before = 8;
    work.on(&on)
}

/// Returns the schedules and numbers of multiprocessors to compare with the first run. The case's label
/// selects one of three; `MAPL_TEST_FULL=1` selects all three and the multiprocessors of an H200.
fn others(label: &str) -> Vec<(Schedule, usize)> {
    let all = [(Schedule::Falling, 3), (Schedule::Random(5), 7), (Schedule::Random(9), 1)];
    let hash = label.bytes().fold(0u32, |hash, byte| hash.wrapping_mul(31).wrapping_add(byte.into()));
    if full() { [&all[..], &[(Schedule::Falling, 132)]].concat() } else { vec![all[(hash % 3) as usize]] }
}

/// Compares the results of the kernel variant `how` with `expected`, and bitwise between schedules and
/// repeated runs.
pub fn check_variant(
    label: &str,
    how: Hopper,
    blocks: usize,
    expected: &Outputs,
    tolerance: impl Fn(&str) -> Tolerance,
    work: &impl Work,
) {
    if let Some(device) = emulator(Schedule::Rising, 2) {
        let first = run_on(device, how, work);
        compare::outputs(label, &first, expected, &tolerance);
        for (schedule, processors) in others(label) {
            // Clusters of two blocks need two multiprocessors.
            let Some(device) = emulator(schedule, processors.max(blocks)) else { continue };
            compare::same_bits(&format!("{label}, {schedule:?} on {processors}"), &run_on(device, how, work), &first);
        }
    }
    if let (Some(one), Some(two)) = (gpu(), gpu()) {
        let first = run_on(one, how, work);
        compare::outputs(&format!("{label} on the GPU"), &first, expected, &tolerance);
        compare::same_bits(&format!("{label} on the GPU again"), &run_on(two, how, work), &first);
    }
}
