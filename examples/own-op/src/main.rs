//! A custom op on the reference, the emulator and a GPU: `act = max(gate, 0)² up`.
use std::time::Duration;

use mapl::Result;
use mapl::backend::kernels::{driver::Driver, emulator::Emulator};
use mapl::bench::op::{Grid, KernelFile, Op, Operand, Results, Values};

const KERNELS: &str = include_str!("../kernels/squared_glu.cu");

/// The forward or the backward pass of the op on `tokens` rows of `hidden` elements.
struct SquaredGlu {
    backward: bool,
    tokens: usize,
    hidden: usize,
}

impl Op for SquaredGlu {
    fn name(&self) -> &str {
        if self.backward { "squared_glu_bwd" } else { "squared_glu_fwd" }
    }
    fn sizes(&self) -> Vec<(&'static str, usize)> {
        vec![("tokens", self.tokens), ("hidden", self.hidden)]
    }
    fn operands(&self) -> Vec<Operand> {
        let shape = [self.tokens, self.hidden];
        let inputs = [Operand::input("gate", shape), Operand::input("up", shape)];
        let others = match self.backward {
            false => vec![Operand::output("act", shape)],
            true => vec![Operand::input("dact", shape), Operand::output("dgate", shape), Operand::output("dup", shape)],
        };
        inputs.into_iter().chain(others).collect()
    }
    fn flops(&self) -> u64 {
        (if self.backward { 6 } else { 3 }) * (self.tokens * self.hidden) as u64
    }
    fn grid(&self, threads: usize) -> Grid {
        (self.tokens * self.hidden).div_ceil(threads).into()
    }
    fn reference(&self, o: &Values) -> Result<Results> {
        let pairs: Vec<(f64, f64)> =
            o.of("gate")?.iter().zip(o.of("up")?).map(|(gate, up)| (gate.max(0.0), *up)).collect();
        if !self.backward {
            return Ok(vec![("act", pairs.iter().map(|(open, up)| open * open * up).collect())]);
        }
        let each = |f: &dyn Fn(f64, f64) -> f64| -> Result<Vec<f64>> {
            Ok(pairs.iter().zip(o.of("dact")?).map(|((open, up), d)| f(*open, *up) * d).collect())
        };
        Ok(vec![("dgate", each(&|open, up| 2.0 * open * up)?), ("dup", each(&|open, _| open * open)?)])
    }
}

/// Verifies and times both passes on the first GPU, else on the emulator; prints rows and plans.
fn main() -> Result<()> {
    let file = KernelFile::text("squared_glu", KERNELS)?;
    for backward in [false, true] {
        let op = SquaredGlu { backward, tokens: 512, hidden: 896 };
        let rows = match Driver::new(0) {
            Ok(gpu) => file.rows(&op, &gpu, Duration::from_secs(1))?,
            Err(_) => file.rows(&op, &Emulator::new()?, Duration::ZERO)?,
        };
        for row in rows {
            println!(
                "{} {} {} {:?} us, error {:?} of the tolerance",
                row.device, row.op, row.dtype, row.median_us, row.error_share
            );
        }
        file.plan(&op, "h200")?.iter().for_each(|plan| println!("{plan}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use mapl::bench::op::check_gradient;

    use super::*;

    fn ops() -> [SquaredGlu; 2] {
        [false, true].map(|backward| SquaredGlu { backward, tokens: 9, hidden: 40 })
    }

    #[test]
    fn the_gradient_agrees_with_finite_differences() {
        let [forward, backward] = ops();
        let checked = check_gradient(&forward, &backward).unwrap();
        assert_eq!(checked.iter().map(|check| check.of).collect::<Vec<_>>(), ["gate", "up"]);
    }

    #[test]
    fn the_kernels_agree_with_the_reference() {
        let file = KernelFile::text("squared_glu", KERNELS).unwrap();
        for op in ops() {
            assert_eq!(file.verify_emulated(&op).unwrap().len(), 2, "f32 and bf16");
        }
        // 9 x 40 elements of two inputs and a result, 4 bytes each.
        assert_eq!(file.plan(&ops()[0], "h200").unwrap()[0].bytes, 3 * 9 * 40 * 4);
    }

    #[test]
    fn a_fault_in_a_kernel_is_found() {
        let faulty = KERNELS.replace("2.0f * open * to_float(up[i])", "2.0f * open");
        let error = KernelFile::text("faulty", &faulty).unwrap().verify_emulated(&ops()[1]).unwrap_err();
        assert!(error.to_string().contains("dgate is wrong at"), "{error}");
    }
}
