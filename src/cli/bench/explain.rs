//! `--explain OP` explains the time of calls, on the GPU of this machine or on one that need not be present.
//! `--ncu` prints the profiler's command for these calls.

use std::path::Path;
use std::process::Command;

use super::super::device::{Device, Dtype};
use super::{BenchArgs, RunRecord};
use crate::backend::contract::Precision;
use crate::backend::kernels::device::{Device as _, Properties};
use crate::backend::kernels::driver::Driver;
use crate::bench::explain::{Gpu, explain, kernels_of};
use crate::bench::ncu::{METRICS, Profiled, joined, parse};
use crate::bench::shapes::Case;
use crate::files::input;
use crate::study::plan::GpuRates;
use crate::terminal::{emit, say};
use crate::{Error, Result};

/// Default model and number of tokens of `--explain`.
const MODEL: &str = "qwen2.5-0.5b";
const TOKENS: usize = 8192;
/// File that the profiler writes.
const PROFILE: &str = "ncu.csv";

fn read_profile(path: &Path) -> Result<Vec<Profiled>> {
    let bytes = input::read(path, input::MAX_RECORD).map_err(input::data_error(path))?;
    let text = String::from_utf8(bytes).map_err(|_| Error::data(path, 0, None, "is not UTF-8 text"))?;
    parse(path, &text)
}

impl BenchArgs {
    /// Explains the calls of `--explain`.
    pub(super) fn explain_calls(&self, op: &str) -> Result<()> {
        let mut args = self.clone();
        args.op = vec![op.to_owned()];
        args.device = vec![Device::Cuda(0)];
        if args.model.is_empty() {
            args.model = vec![MODEL.into()];
        }
        if args.tokens.is_empty() {
            args.tokens = vec![TOKENS];
        }
        args.check().map_err(|error| match error {
            Error::Usage(text) => Error::Usage(text.replace("--op", "--explain")),
            other => other,
        })?;
        let precision = match args.dtype.as_slice() {
            [] | [Dtype::Bf16] => Precision::Bf16,
            [Dtype::F32] => Precision::F32,
            _ => return Err(Error::Usage("--explain: one --dtype, bf16 or f32, at a time".into())),
        };
        args.dtype = vec![if precision == Precision::Bf16 { Dtype::Bf16 } else { Dtype::F32 }];
        let here = Driver::new(0).ok();
        let card = match (&args.gpu, &here) {
            (Some(name), _) => name.clone(),
            (None, Some(driver)) => driver.properties().name.clone(),
            (None, None) => "h200".into(),
        };
        let rates = GpuRates::named(&card).map_err(|_| {
            Error::Usage(format!(
                "--gpu {card}: not a known GPU; `mapl bench --plan --card {card}` lists the known ones"
            ))
        })?;
        let mut properties = Properties {
            name: rates.name.clone(),
            processors: rates.processors,
            shared_bytes: 227 << 10,
            compute_capability: rates.compute_capability,
        };
        let mut record = RunRecord::silent();
        if let (Some(driver), None) = (here, &args.gpu) {
            properties = driver.properties().clone();
            drop(driver);
            args.on_device(Device::Cuda(0), &mut record)?;
        }
        let gpu = Gpu { properties, copy: rates.copy, product: rates.product };
        let cases = args.options(true, false).cases(precision);
        let profile = match &args.ncu_csv {
            Some(_) if cases.len() != 1 => {
                return Err(Error::Usage(format!(
                    "--ncu-csv: the profile is of one call, but {} are selected; choose one with --shape, --model and --tokens",
                    cases.len()
                )));
            }
            Some(path) => Some((path.clone(), read_profile(path)?)),
            None => None,
        };
        for (at, case) in cases.iter().enumerate() {
            let row = record.rows.iter().find(|row| {
                row.variant == "mapl"
                    && row.op == case.work_op()
                    && row.layer == case.layer
                    && row.shape == case.shape()
            });
            let measured = row.and_then(|row| row.median_us);
            emit(&explain(case, &gpu, precision, measured)?)?;
            if args.ncu {
                args.profile(case, &gpu.properties, precision, measured.is_some())?;
            }
            if let Some((path, profile)) = &profile {
                let text = joined(case, &gpu.properties, precision, profile);
                emit(&text.map_err(|e| Error::Usage(format!("--ncu-csv {}: {e}", path.display())))?)?;
            }
            if at + 1 < cases.len() {
                say("");
            }
        }
        Ok(())
    }

    /// Prints the profiler's command for a call, and runs it if this machine has the GPU and `ncu`.
    fn profile(&self, case: &Case, gpu: &Properties, precision: Precision, here: bool) -> Result<()> {
        let program = std::env::current_exe().map_or_else(|_| "mapl".into(), |path| path.display().to_string());
        let names = kernels_of(case, gpu, precision)?.join("|");
        let mut words: Vec<String> = ["--set", "full", "--metrics"].map(String::from).into();
        words.push(METRICS.join(","));
        words.extend(["--csv", "--page", "raw", "--log-file", PROFILE, "--launch-count", "8"].map(String::from));
        words.extend(["--kernel-name".to_owned(), format!("regex:^({names})$")]);
        words.push(program);
        let of_row =
            ["bench", "--device", "cuda", "--repeats", "5", "--op", case.work_op(), "--dtype", precision.name()];
        words.extend(of_row.map(String::from));
        for (flag, value) in [("--model", case.model), ("--variant", "mapl"), ("--shape", case.layer)] {
            words.extend([flag.to_owned(), value.to_owned()]);
        }
        words.extend(self.tokens.iter().flat_map(|tokens| ["--tokens".to_owned(), tokens.to_string()]));
        let quoted: Vec<String> = words
            .iter()
            .map(|word| if word.contains(['|', ' ', '(']) { format!("'{word}'") } else { word.clone() })
            .collect();
        emit(&format!("  profiler     ncu {}", quoted.join(" ")))?;
        if here && Command::new("ncu").arg("--version").output().is_ok_and(|output| output.status.success()) {
            let io = |source| Error::Io { action: "create a folder in", path: std::env::temp_dir(), source };
            let folder = tempfile::Builder::new().prefix("mapl-ncu").tempdir().map_err(io)?;
            let status = Command::new("ncu").args(&words).current_dir(folder.path()).status();
            let status = status.map_err(|e| Error::Runtime(format!("cannot run ncu: {e}")))?;
            if !status.success() {
                return Err(Error::Runtime(format!(
                    "ncu ended with {status}; it may lack permission to read the GPU's performance counters"
                )));
            }
            emit(&joined(case, gpu, precision, &read_profile(&folder.path().join(PROFILE))?)?)?;
        }
        Ok(())
    }
}
