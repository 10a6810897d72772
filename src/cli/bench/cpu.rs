//! `mapl bench` on the CPU, in f32 and bf16.

use super::{BenchArgs, RunRecord};
use crate::backend::cpu::Cpu;
use crate::cli::device::{Dtype, bf16_cpu, on_pool};
use crate::perf::ceilings::gemms;
use crate::{Error, Result};

impl BenchArgs {
    /// Runs the selected calls in these precisions. For bf16, prints the GEMM rates of f32 and bf16 first.
    pub(super) fn on_cpu(&self, dtypes: &[Dtype], record: &mut RunRecord) -> Result<()> {
        let options = self.options(false, false);
        for dtype in dtypes {
            match dtype {
                Dtype::F32 => on_pool(|| self.on(&Cpu::new(), &options, record))?,
                Dtype::Bf16 => {
                    let cpu = bf16_cpu()?;
                    if !self.list {
                        let [f32, bf16] = on_pool(|| gemms(cpu.units())).map(|rate| rate * 1e-9);
                        let units = cpu.units();
                        record.tell(&format!(
                            "GEMM of 2048 x 2048 matrices: {f32:.0} GFLOP/s in f32, {bf16:.0} in bf16 ({units})"
                        ))?;
                    }
                    on_pool(|| self.on(&cpu, &options, record))?;
                }
                Dtype::F64 => {
                    return Err(Error::Usage(
                        "--dtype f64: the cpu computes in f32 or bf16; choose one of them".into(),
                    ));
                }
            }
        }
        Ok(())
    }
}
