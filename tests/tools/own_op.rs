//! User-defined ops (`bench::op`): contracts that do not hold are errors, wrong gradients and kernels are
//! found, and the plan equals the hand calculation. `examples/own-op` is the working case.

use mapl::backend::kernels::emulator::Schedule;
use mapl::bench::op::{Grid, KernelFile, Op, Operand, Results, Values, check_gradient, compute};

type Reference = fn(&Values) -> mapl::Result<Results>;

/// An op on 64 elements, which each test assembles.
struct Case {
    name: &'static str,
    operands: Vec<Operand>,
    scalars: Vec<(&'static str, f64)>,
    reference: Reference,
}

impl Op for Case {
    fn name(&self) -> &str {
        self.name
    }
    fn sizes(&self) -> Vec<(&'static str, usize)> {
        vec![("n", 64)]
    }
    fn scalars(&self) -> Vec<(&'static str, f64)> {
        self.scalars.clone()
    }
    fn operands(&self) -> Vec<Operand> {
        self.operands.clone()
    }
    fn flops(&self) -> u64 {
        64
    }
    fn grid(&self, threads: usize) -> Grid {
        64usize.div_ceil(threads).into()
    }
    fn reference(&self, given: &Values) -> mapl::Result<Results> {
        (self.reference)(given)
    }
}

fn case(name: &'static str, operands: &[Operand], reference: Reference) -> Case {
    Case { name, operands: operands.to_vec(), scalars: vec![("factor", 3.0)], reference }
}

fn x() -> Operand {
    Operand::input("x", [64])
}

fn y() -> Operand {
    Operand::output("y", [64])
}

/// `y = 3 x`
fn tripled(o: &Values) -> mapl::Result<Results> {
    Ok(vec![("y", o.of("x")?.iter().map(|x| 3.0 * x).collect())])
}

const KERNEL: &str = r#"
#include "common.cuh"

KERNEL(32, tripled)(const float* x,  // (n)
                    float* y,        // (n)
                    int n, float factor) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = factor * x[i];
}

KERNEL(32, last_one_wins)(const float* x,  // (n)
                          float* y,        // (1)
                          int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[0] = x[i];
}

template <class T, int WIDTH>
KERNELS(32, wide, FOR(WIDTH: 8 64; T: f32 bf16))(const T* x,  // (n)
                                                 T* y,        // (n)
                                                 int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = from_float<T>(to_float(x[i]) * WIDTH);
}
"#;

#[test]
fn contracts_that_do_not_hold_are_refused() {
    let outputs: [(&[Operand], Reference, &str); 7] = [
        (&[x(), x(), y()], tripled, "two operands are called x"),
        (&[Operand::input("x", [0, 64]), y()], tripled, "every axis needs an element"),
        (&[x().values(vec![1.0; 3]), y()], tripled, "x has 3 values for the 64 elements"),
        (&[x(), y(), Operand::output("z", [64])], tripled, "the reference returns no z"),
        (&[x(), Operand::output("y", [65])], tripled, "the reference returns 64 elements of y; it has 65"),
        (&[x(), Operand::scratch("y", [64])], tripled, "returns y, which the op does not write"),
        (&[Operand::input("other", [64]), y()], tripled, "has no operand x; its operands are other"),
    ];
    for (operands, reference, expected) in outputs {
        let error = compute(&case("tripled", operands, reference)).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    assert_eq!(compute(&case("tripled", &[x(), y()], tripled)).unwrap().of("y").unwrap().len(), 64);
}

#[test]
fn a_kernel_line_that_does_not_fit_the_contract_is_refused() {
    let file = KernelFile::text("case", KERNEL).unwrap();
    let plan = |case: &Case, gpu: &str| file.plan(case, gpu).unwrap_err().to_string();
    for (operands, expected) in [
        (&[x(), y(), Operand::input("z", [1])][..], "has no pointer z"),
        (&[Operand::in_out("x", [64]), y()], "x is const, but the op writes it"),
        (&[x(), Operand::input("y", [64])], "y is not const, but an input"),
        (&[x()], "pointer y is not an operand of the op"),
    ] {
        let reference: Reference =
            |o| Ok(["x", "y"].into_iter().filter_map(|name| Some((name, o.of(name).ok()?.to_vec()))).collect());
        let written: Reference = |o| Ok(vec![("x", o.of("x")?.to_vec()), ("y", o.of("x")?.to_vec())]);
        let nothing: Reference = |_| Ok(Vec::new());
        let found = [reference, written, nothing, tripled].map(|r| plan(&case("tripled", operands, r), "h200"));
        assert!(found.iter().any(|error| error.contains(expected)), "{expected}: {found:?}");
    }
    let without = Case { scalars: Vec::new(), ..case("tripled", &[x(), y()], tripled) };
    assert!(plan(&without, "h200").contains("parameter factor is neither a size nor a scalar"));
    assert!(
        plan(&case("gelu_fwd", &[x(), y()], tripled), "h200").contains("new ones are tripled, last_one_wins, wide")
    );
    let axis = plan(&case("wide", &[x(), y()], tripled), "h200");
    assert!(axis.contains("the axis WIDTH, which is not a size"), "{axis}");
    let other = Case { scalars: vec![("WIDTH", 16.0)], ..case("wide", &[x(), y()], tripled) };
    assert!(plan(&other, "h200").contains("no entry point of wide has the sizes"));
    assert!(plan(&case("tripled", &[x(), y()], tripled), "h1000").contains("h1000 is not a known GPU; these are h200"));
    let error = KernelFile::text("case", "KERNEL(32, broken)(int* x {").unwrap_err().to_string();
    assert!(error.contains("case.cu:1"), "{error}");
}

#[test]
fn a_plan_is_the_hand_calculation() {
    let file = KernelFile::text("case", KERNEL).unwrap();
    let [plan] = &file.plan(&case("tripled", &[x(), y()], tripled), "h200").unwrap()[..] else { panic!("one kernel") };
    // The op reads and writes 64 elements of 4 bytes. The rates are 4.3 TB/s and 790 TFLOP/s, and a launch
    // costs 1.8 us.
    assert_eq!((plan.bytes, plan.flops, plan.blocks), (512, 64, 2));
    assert!((plan.by_bytes_us - 1e6 * 512.0 / 4.3e12).abs() < 1e-12, "{plan}");
    assert!((plan.by_flops_us - 1e6 * 64.0 / 790e12).abs() < 1e-12, "{plan}");
    assert!((plan.predicted_us - plan.floor_us - 1.8).abs() < 1e-9, "{plan}");
    // A block is one warp, and each of the 132 multiprocessors holds at most 32 blocks.
    assert_eq!((plan.blocks_per_processor, plan.limit), (32, "blocks"));
    assert!((plan.waves - 2.0 / (32.0 * 132.0)).abs() < 1e-12);
    // y moves only 16 elements; an element has 4 bytes in f32 and 2 in bf16. The plan has only the entry
    // points of the op's width.
    let wide = Case { scalars: vec![("WIDTH", 8.0)], ..case("wide", &[x(), y().moved(16)], tripled) };
    let plans = file.plan(&wide, "a100").unwrap();
    let found: Vec<_> = plans.iter().map(|plan| (plan.kernel, plan.bytes)).collect();
    assert_eq!(found, [("wide_8_f32", (64 + 16) * 4), ("wide_8_bf16", (64 + 16) * 2)]);
}

#[test]
fn a_wrong_or_missing_gradient_is_named() {
    let d = |operands: &[Operand], reference: Reference| case("tripled_bwd", operands, reference);
    let (dx, dy) = (Operand::output("dx", [64]), Operand::input("dy", [64]));
    let forward = case("tripled", &[x(), y()], tripled);
    let right: Reference = |o| Ok(vec![("dx", o.of("dy")?.iter().map(|d| 3.0 * d).collect())]);
    let checks = check_gradient(&forward, &d(&[dy.clone(), dx.clone()], right)).unwrap();
    assert_eq!((checks.len(), checks[0].gradient, checks[0].of, checks[0].compared), (1, "dx", "x", 48));
    assert!(checks[0].error_share < 1.0);
    let wrong: Reference = |o| Ok(vec![("dx", o.of("dy")?.iter().map(|d| 3.00001 * d).collect())]);
    let error = check_gradient(&forward, &d(&[dy.clone(), dx], wrong)).unwrap_err().to_string();
    assert!(error.contains("dx is ") && error.contains("finite differences of tripled by x"), "{error}");
    let error = check_gradient(&forward, &d(std::slice::from_ref(&dy), |_| Ok(Vec::new()))).unwrap_err().to_string();
    assert!(error.contains("no operand holds the gradient of x"), "{error}");
    let stray = d(&[Operand::input("z", [64])], |_| Ok(Vec::new()));
    let error = check_gradient(&forward, &stray).unwrap_err().to_string();
    assert!(error.contains("z is neither an operand of tripled"), "{error}");
    // A gradient may be written in place under a different name, or added to the content of its operand.
    let in_place: Reference = |o| Ok(vec![("dy", o.of("dy")?.iter().map(|d| 3.0 * d).collect())]);
    check_gradient(&forward, &d(&[Operand::in_out("dy", [64]).gradient_of("x")], in_place)).unwrap();
    let added: Reference =
        |o| Ok(vec![("dx", o.of("dx")?.iter().zip(o.of("dy")?).map(|(dx, d)| dx + 3.0 * d).collect())]);
    check_gradient(&forward, &d(&[dy, Operand::in_out("dx", [64])], added)).unwrap();
}

#[test]
fn an_emulated_kernel_gives_the_same_bits_in_every_order_of_threads() {
    if common::emulator(Schedule::Rising, 4).is_none() {
        return;
    }
    let file = KernelFile::text("case", KERNEL).unwrap();
    let verified = file.verify_emulated(&case("tripled", &[x(), y()], tripled)).unwrap();
    assert_eq!((verified.len(), verified[0].kernel), (1, "tripled"));
    // The kernel gives the right result only if threads run in ascending order.
    let last: Reference = |o| Ok(vec![("y", vec![o.of("x")?[63]])]);
    let error = file.verify_emulated(&case("last_one_wins", &[x(), Operand::output("y", [1])], last)).unwrap_err();
    assert!(error.to_string().contains("y is wrong at [0]"), "{error}");
    let rows = file
        .rows(
            &case("tripled", &[x(), y()], tripled),
            &common::emulator(Schedule::Rising, 4).unwrap(),
            std::time::Duration::ZERO,
        )
        .unwrap();
    assert!(rows[0].check().is_ok() && rows[0].shape == "n=64" && rows[0].bytes == Some(512), "{rows:?}");
}
