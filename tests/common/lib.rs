//! Shared helpers of the tests: buffers with guards, seeded inputs, batches of trees, comparison
//! with the oracle.
//!
//! A generic function of [`runs`] runs an op on any backend. [`check!`] runs it on every backend
//! under test and compares with the reference on the same rounded inputs. A new backend is one more
//! line in that macro.

mod attention;
pub mod compare;
pub mod comparisons;
mod elementwise;
pub mod fixtures;
pub mod golden;
pub mod head_preference;
mod norms;
pub mod observed;
pub mod paths;
pub mod runs;
pub mod sm90;
pub mod trees;

use mapl::backend::contract::Precision;
use mapl::backend::cpu::Units;
use mapl::backend::kernels::device::Device as _;
use mapl::backend::kernels::driver::Driver;
use mapl::backend::kernels::emulator::{Emulator, Schedule};
use mapl::backend::{Backend, Buffer, View, ViewMut};
use mapl::rng::Rng;

/// Runs `$run(&on)` on the reference and on each backend under test, and compares every output. `$tolerance`
/// maps a precision and the name of an output to a tolerance.
#[macro_export]
macro_rules! check {
    ($label:expr, $run:expr, $tolerance:expr) => {{
        $crate::check_backend!(mapl::backend::cpu::Cpu, $label, $run, $tolerance);
        $crate::check_bf16_cpu!($label, $run, $tolerance);
        $crate::check_kernels!(f32, $label, $run, $tolerance);
        $crate::check_kernels!(half::bf16, $label, $run, $tolerance);
    }};
}

/// Runs `$run(&on)` on the reference and on one backend and compares every output.
#[macro_export]
macro_rules! check_backend {
    ($B:ty, $label:expr, $run:expr, $tolerance:expr) => {{
        use mapl::backend::Backend as _;
        let precision = <$B>::PRECISION;
        let expected = $run(&$crate::On::new(&mapl::backend::reference::Reference, precision));
        let backend = <$B>::default();
        let got = $run(&$crate::On::new(&backend, precision));
        let label = format!("{} on {}", $label, <$B>::NAME);
        $crate::compare::outputs(&label, &got, &expected, |name: &str| $tolerance(precision, name));
    }};
}

/// Runs `$run(&on)` on the reference and on the CPU in bf16 with each of `bf16_units`, and compares every
/// output.
#[macro_export]
macro_rules! check_bf16_cpu {
    ($label:expr, $run:expr, $tolerance:expr) => {{
        use mapl::backend::cpu::{Cpu, Units};
        let precision = mapl::backend::contract::Precision::Bf16;
        let expected = $run(&$crate::On::new(&mapl::backend::reference::Reference, precision));
        for units in $crate::bf16_units() {
            let backend = Cpu::<half::bf16>::on(units);
            let got = $run(&$crate::On::new(&backend, precision));
            let label = format!("{} on the CPU, bf16 by {units}", $label);
            $crate::compare::outputs(&label, &got, &expected, |name: &str| $tolerance(precision, name));
        }
    }};
}

/// Checks the portable kernels. On the emulator, results in the first schedule are within tolerance
/// of the reference; results with other schedules, numbers of multiprocessors and operand
/// alignments are bitwise equal to them. On the GPU, if there is one, results are within tolerance
/// and bitwise equal for both alignments.
#[macro_export]
macro_rules! check_kernels {
    ($A:ty, $label:expr, $run:expr, $tolerance:expr) => {{
        use mapl::backend::Backend as _;
        use mapl::backend::kernels::{Kernels, emulator::Emulator, hopper::Hopper};
        let precision = <Kernels<Emulator, $A>>::PRECISION;
        let expected = $run(&$crate::On::new(&mapl::backend::reference::Reference, precision));
        let mut first = None;
        for (schedule, processors, before) in $crate::emulated() {
            let label = format!("{} on the emulator, {precision:?}, {schedule:?}, {processors} processors", $label);
            let Some(device) = $crate::emulator(schedule, processors) else { break };
            let backend = Kernels::<Emulator, $A>::new(device).with_hopper(Hopper::Off);
            let got = $run(&$crate::On { before, ..$crate::On::new(&backend, precision) });
            match &first {
                None => {
                    let tolerance = |name: &str| $tolerance(precision, name);
                    $crate::compare::outputs(&label, &got, &expected, tolerance);
                    first = Some(got);
                }
                Some(first) => $crate::compare::same_bits(&label, &got, first),
            }
        }
        let mut first = None;
        for before in [8, 5] {
            let Some(device) = $crate::gpu() else { break };
            let label = format!("{} on the GPU, {precision:?}", $label);
            let backend = Kernels::<_, $A>::new(device).with_hopper(Hopper::Off);
            let got = $run(&$crate::On { before, ..$crate::On::new(&backend, precision) });
            match &first {
                None => {
                    let tolerance = |name: &str| $tolerance(precision, name);
                    $crate::compare::outputs(&label, &got, &expected, tolerance);
                    first = Some(got);
                }
                Some(first) => $crate::compare::same_bits(&label, &got, first),
            }
        }
    }};
}

/// Calls the generic function `$run(&on)` on every backend under test, with one schedule of the emulator. It
/// suits properties that need no reference results.
#[macro_export]
macro_rules! each_backend {
    ($run:path) => {{
        use mapl::backend::{cpu::Cpu, kernels::Kernels};
        $run(&$crate::On::new(&Cpu::new(), Precision::F32));
        for units in $crate::bf16_units() {
            $run(&$crate::On::new(&Cpu::<half::bf16>::on(units), Precision::Bf16));
        }
        let (schedule, processors, _) = $crate::EMULATED[0];
        if let Some(device) = $crate::emulator(schedule, processors) {
            let backend = Kernels::<_, f32>::new(device);
            $run(&$crate::On::new(&backend, Precision::F32));
        }
        if let Some(device) = $crate::emulator(schedule, processors) {
            let backend = Kernels::<_, half::bf16>::new(device);
            $run(&$crate::On::new(&backend, Precision::Bf16));
        }
        if let Some(device) = $crate::gpu() {
            let backend = Kernels::<_, f32>::new(device);
            $run(&$crate::On::new(&backend, Precision::F32));
        }
        if let Some(device) = $crate::gpu() {
            let backend = Kernels::<_, half::bf16>::new(device);
            $run(&$crate::On::new(&backend, Precision::Bf16));
        }
    }};
}

/// Returns the CPU units on which bf16 GEMMs are tested: the best unit of this processor, conversion to f32,
/// and the AMX code on a software model of AMX. The last two run on every processor.
pub fn bf16_units() -> Vec<Units> {
    let mut units = vec![Units::best(), Units::F32, Units::AmxModel];
    units.dedup();
    units
}

/// Schedule, number of multiprocessors, and number of elements before every view: 8 keeps 16-byte
/// alignment, 5 breaks it.
pub const EMULATED: [(Schedule, usize, usize); 3] =
    [(Schedule::Rising, 4, 8), (Schedule::Falling, 1, 5), (Schedule::Random(7), 7, 8)];

/// Returns the emulator runs whose results must be bitwise equal: the two extreme schedules, or all three
/// with `MAPL_TEST_FULL=1`. The two extreme schedules catch every fault of `mutations/`.
pub fn emulated() -> impl Iterator<Item = (Schedule, usize, usize)> {
    EMULATED.into_iter().take(if full() { EMULATED.len() } else { 2 })
}

/// Whether tests over many cases run all of them (`MAPL_TEST_FULL=1`). Otherwise they run a fixed, evenly
/// spread sample.
pub fn full() -> bool {
    std::env::var_os("MAPL_TEST_FULL").is_some_and(|v| v == "1")
}

/// Returns whether tests run on `device`. `MAPL_TEST_DEVICES` lists the devices (`emulator`,
/// `cuda`); if it is unset, tests run on all of them.
fn wanted(device: &str) -> bool {
    std::env::var("MAPL_TEST_DEVICES").map_or(true, |names| names.split(',').any(|name| name == device))
}

/// Opens the GPU. If that fails, prints the reason, or panics if `MAPL_REQUIRE_GPU` is 1.
pub fn gpu() -> Option<Driver> {
    /// Keeps the primary context until the process ends: creating one takes longer than most tests.
    static HELD: std::sync::OnceLock<Option<Driver>> = std::sync::OnceLock::new();
    if !wanted(Driver::NAME) {
        return None;
    }
    HELD.get_or_init(|| Driver::new(0).ok());
    match Driver::new(0) {
        Ok(device) => Some(device),
        Err(why) => {
            assert!(std::env::var_os("MAPL_REQUIRE_GPU").is_none_or(|v| v != "1"), "{why}");
            println!("SKIPPED on a GPU: {why}");
            None
        }
    }
}

/// Creates an emulated device. If the build has no emulator, prints the reason, or panics if
/// `MAPL_REQUIRE_EMULATOR` is 1.
pub fn emulator(schedule: Schedule, processors: usize) -> Option<Emulator> {
    if !wanted(Emulator::NAME) {
        return None;
    }
    match Emulator::with(schedule, processors) {
        Ok(device) => Some(device),
        Err(why) => {
            assert!(std::env::var_os("MAPL_REQUIRE_EMULATOR").is_none_or(|v| v != "1"), "{why}");
            println!("SKIPPED: {why}");
            None
        }
    }
}

/// Names and values of an op's outputs.
pub type Outputs = Vec<(&'static str, Vec<f64>)>;

/// Default number of elements before every view. Ops must work at any offset and must not write
/// outside the view.
const BEFORE: usize = 5;
/// Number of elements after every view.
const AFTER: usize = 3;
/// Value of the elements around a view.
const GUARD: f64 = -4096.0;
/// Initial value of outputs that an op overwrites.
pub const STALE: f64 = 777.0;

/// A backend with the precision to which inputs are rounded before the upload.
pub struct On<'a, B> {
    pub backend: &'a B,
    pub inputs: Precision,
    /// Number of elements before every view.
    pub before: usize,
}

impl<'a, B> On<'a, B> {
    pub fn new(backend: &'a B, inputs: Precision) -> Self {
        Self { backend, inputs, before: BEFORE }
    }
}

/// A buffer with guard elements around the view.
pub struct Slot<T> {
    pub buffer: T,
    pub before: usize,
    pub len: usize,
}

impl<T: Buffer> Slot<T> {
    pub fn view(&self) -> View<'_, T> {
        View::new(&self.buffer, self.before, self.len)
    }
    pub fn view_mut(&mut self) -> ViewMut<'_, T> {
        ViewMut::new(&mut self.buffer, self.before, self.len)
    }
}

fn round(precision: Precision, x: f64) -> f64 {
    match precision {
        Precision::F64 => x,
        Precision::F32 => f64::from(x as f32),
        Precision::Bf16 => half::bf16::from_f64(x).to_f64(),
    }
}

fn guarded(before: usize, values: impl Iterator<Item = f64>) -> Vec<f64> {
    std::iter::repeat_n(GUARD, before).chain(values).chain([GUARD; AFTER]).collect()
}

impl<B: Backend> On<'_, B> {
    pub fn act(&self, values: &[f64]) -> Slot<B::Act> {
        let host = guarded(self.before, values.iter().map(|&x| round(self.inputs, x)));
        let mut buffer = self.backend.zeros_act(host.len()).unwrap();
        self.backend.write_act(ViewMut::first(&mut buffer, host.len()), &host).unwrap();
        Slot { buffer, before: self.before, len: values.len() }
    }
    pub fn acc(&self, values: &[f64]) -> Slot<B::Acc> {
        let precision = if self.inputs == Precision::F64 { Precision::F64 } else { Precision::F32 };
        let host = guarded(self.before, values.iter().map(|&x| round(precision, x)));
        let mut buffer = self.backend.zeros_acc(host.len()).unwrap();
        self.backend.write_acc(ViewMut::first(&mut buffer, host.len()), &host).unwrap();
        Slot { buffer, before: self.before, len: values.len() }
    }
    pub fn idx(&self, values: &[i32]) -> Slot<B::Idx> {
        let host: Vec<i32> =
            std::iter::repeat_n(-1, self.before).chain(values.iter().copied()).chain([-1; AFTER]).collect();
        let mut buffer = self.backend.zeros_idx(host.len()).unwrap();
        self.backend.write_idx(ViewMut::first(&mut buffer, host.len()), &host).unwrap();
        Slot { buffer, before: self.before, len: values.len() }
    }
    /// Allocates an output that the op overwrites.
    pub fn act_out(&self, len: usize) -> Slot<B::Act> {
        self.act(&vec![STALE; len])
    }
    /// Allocates an output that the op overwrites.
    pub fn acc_out(&self, len: usize) -> Slot<B::Acc> {
        self.acc(&vec![STALE; len])
    }
    pub fn read_act(&self, slot: &Slot<B::Act>) -> Vec<f64> {
        let mut host = vec![0.0; slot.len + slot.before + AFTER];
        self.backend.read_act(View::first(&slot.buffer, host.len()), &mut host).unwrap();
        unguarded(slot.before, host)
    }
    pub fn read_acc(&self, slot: &Slot<B::Acc>) -> Vec<f64> {
        let mut host = vec![0.0; slot.len + slot.before + AFTER];
        self.backend.read_acc(View::first(&slot.buffer, host.len()), &mut host).unwrap();
        unguarded(slot.before, host)
    }
}

fn unguarded(before: usize, host: Vec<f64>) -> Vec<f64> {
    let end = host.len() - AFTER;
    assert!(host[..before].iter().chain(&host[end..]).all(|&x| x == GUARD), "an op wrote outside its view");
    host[before..end].to_vec()
}

/// Returns the precision of outputs that are stored as `Acc` and computed from exact inputs: f32 if
/// activations are bf16.
pub fn stored_as_acc(precision: Precision) -> Precision {
    if precision == Precision::Bf16 { Precision::F32 } else { precision }
}

/// Returns normally distributed numbers with the given standard deviation, seeded by the label.
pub fn normal(label: &str, len: usize, deviation: f64) -> Vec<f64> {
    let mut rng = Rng::keyed(1, &["inputs", label]);
    (0..len).map(|_| rng.normal() * deviation).collect()
}

/// Returns indices below `n`, seeded by the label.
pub fn indices(label: &str, len: usize, n: usize) -> Vec<i32> {
    let mut rng = Rng::keyed(1, &["indices", label]);
    (0..len).map(|_| rng.below(n) as i32).collect()
}

/// Host form of `Runs`: items grouped by key.
pub struct HostRuns {
    pub order: Vec<i32>,
    pub offsets: Vec<i32>,
    pub keys: Vec<i32>,
}

/// Groups items by key. Negative keys are padding and come last.
pub fn runs_of(keys_of_items: &[i32]) -> HostRuns {
    let mut order: Vec<i32> = (0..keys_of_items.len() as i32).collect();
    order.sort_by_key(|&i| (keys_of_items[i as usize] as u32, i));
    let (mut offsets, mut keys) = (vec![0], Vec::new());
    for (at, &item) in order.iter().enumerate() {
        let key = keys_of_items[item as usize];
        if keys.last() != Some(&key) {
            if !keys.is_empty() {
                offsets.push(at as i32);
            }
            keys.push(key);
        }
    }
    if !keys.is_empty() {
        offsets.push(order.len() as i32);
    }
    HostRuns { order, offsets, keys }
}
