//! What the tests of ops share: buffers with guards, seeded inputs, batches of trees, comparison with the oracle.
//!
//! An op is run by a generic function of [`runs`] on any backend; [`check!`] runs it on every backend under test and
//! compares with the reference from the same rounded inputs. A new backend is one more line in that macro.
#![allow(dead_code, unused_imports, unused_macros)]

pub mod compare;
pub mod runs;
pub mod trees;

use mapl::backend::contract::Precision;
use mapl::backend::{Backend, Buffer, View, ViewMut};
use mapl::rng::Rng;

/// Runs `$run(&on)` on the reference and on each backend under test and compares every output; `$tolerance` maps a
/// precision and the name of an output to the error allowed.
macro_rules! check {
    ($label:expr, $run:expr, $tolerance:expr) => {{
        $crate::common::check_backend!(mapl::backend::cpu::Cpu, $label, $run, $tolerance);
    }};
}
pub(crate) use check;

macro_rules! check_backend {
    ($B:ty, $label:expr, $run:expr, $tolerance:expr) => {{
        use mapl::backend::Backend as _;
        let precision = <$B>::PRECISION;
        let expected = {
            let on = $crate::common::On { backend: &mapl::backend::reference::Reference, inputs: precision };
            $run(&on)
        };
        let backend = <$B>::default();
        let got = {
            let on = $crate::common::On { backend: &backend, inputs: precision };
            $run(&on)
        };
        let label = format!("{} on {}", $label, <$B>::NAME);
        $crate::common::compare::outputs(&label, &got, &expected, |name: &str| $tolerance(precision, name));
    }};
}
pub(crate) use check_backend;

/// Names and values of an op's outputs.
pub type Outputs = Vec<(&'static str, Vec<f64>)>;

/// Elements before and after every view: ops must work from any offset and must not touch the neighbours.
const BEFORE: usize = 5;
const AFTER: usize = 3;
const GUARD: f64 = -4096.0;
/// What outputs hold before an op that overwrites them.
pub const STALE: f64 = 777.0;

/// A backend, and the precision that inputs are rounded to before they are written.
pub struct On<'a, B> {
    pub backend: &'a B,
    pub inputs: Precision,
}

/// A buffer with guards around the elements of interest.
pub struct Slot<T> {
    pub buffer: T,
    pub len: usize,
}

impl<T: Buffer> Slot<T> {
    pub fn view(&self) -> View<'_, T> {
        View::new(&self.buffer, BEFORE, self.len)
    }
    pub fn view_mut(&mut self) -> ViewMut<'_, T> {
        ViewMut::new(&mut self.buffer, BEFORE, self.len)
    }
}

fn round(precision: Precision, x: f64) -> f64 {
    match precision {
        Precision::F64 => x,
        Precision::F32 => f64::from(x as f32),
        Precision::Bf16 => half::bf16::from_f64(x).to_f64(),
    }
}

fn guarded(values: impl Iterator<Item = f64>) -> Vec<f64> {
    [GUARD; BEFORE].into_iter().chain(values).chain([GUARD; AFTER]).collect()
}

impl<B: Backend> On<'_, B> {
    pub fn act(&self, values: &[f64]) -> Slot<B::Act> {
        let host = guarded(values.iter().map(|&x| round(self.inputs, x)));
        let mut buffer = self.backend.zeros_act(host.len()).unwrap();
        self.backend.write_act(ViewMut::first(&mut buffer, host.len()), &host).unwrap();
        Slot { buffer, len: values.len() }
    }
    pub fn acc(&self, values: &[f64]) -> Slot<B::Acc> {
        let precision = if self.inputs == Precision::F64 { Precision::F64 } else { Precision::F32 };
        let host = guarded(values.iter().map(|&x| round(precision, x)));
        let mut buffer = self.backend.zeros_acc(host.len()).unwrap();
        self.backend.write_acc(ViewMut::first(&mut buffer, host.len()), &host).unwrap();
        Slot { buffer, len: values.len() }
    }
    pub fn idx(&self, values: &[i32]) -> Slot<B::Idx> {
        let host: Vec<i32> = [-1; BEFORE].iter().chain(values).chain(&[-1; AFTER]).copied().collect();
        let mut buffer = self.backend.zeros_idx(host.len()).unwrap();
        self.backend.write_idx(ViewMut::first(&mut buffer, host.len()), &host).unwrap();
        Slot { buffer, len: values.len() }
    }
    /// An output to be overwritten.
    pub fn act_out(&self, len: usize) -> Slot<B::Act> {
        self.act(&vec![STALE; len])
    }
    /// An output to be overwritten.
    pub fn acc_out(&self, len: usize) -> Slot<B::Acc> {
        self.acc(&vec![STALE; len])
    }
    pub fn read_act(&self, slot: &Slot<B::Act>) -> Vec<f64> {
        let mut host = vec![0.0; slot.len + BEFORE + AFTER];
        self.backend.read_act(View::first(&slot.buffer, host.len()), &mut host).unwrap();
        unguarded(host)
    }
    pub fn read_acc(&self, slot: &Slot<B::Acc>) -> Vec<f64> {
        let mut host = vec![0.0; slot.len + BEFORE + AFTER];
        self.backend.read_acc(View::first(&slot.buffer, host.len()), &mut host).unwrap();
        unguarded(host)
    }
}

fn unguarded(host: Vec<f64>) -> Vec<f64> {
    let end = host.len() - AFTER;
    assert!(host[..BEFORE].iter().chain(&host[end..]).all(|&x| x == GUARD), "an op wrote outside its view");
    host[BEFORE..end].to_vec()
}

/// Seeded normal numbers of the given standard deviation.
pub fn normal(label: &str, len: usize, deviation: f64) -> Vec<f64> {
    let mut rng = Rng::keyed(1, &["inputs", label]);
    (0..len).map(|_| rng.normal() * deviation).collect()
}

/// Seeded indices below `n`.
pub fn indices(label: &str, len: usize, n: usize) -> Vec<i32> {
    let mut rng = Rng::keyed(1, &["indices", label]);
    (0..len).map(|_| rng.below(n) as i32).collect()
}

/// Host form of `Runs`: items sorted by key.
pub struct HostRuns {
    pub order: Vec<i32>,
    pub offsets: Vec<i32>,
    pub keys: Vec<i32>,
}

pub fn runs_of(keys_of_items: &[i32]) -> HostRuns {
    let mut order: Vec<i32> = (0..keys_of_items.len() as i32).collect();
    order.sort_by_key(|&i| (keys_of_items[i as usize], i));
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
