//! The figures by name. Bars that are compared with each other come from one record file, which is one run.

use std::error::Error;
use std::path::Path;

use mapl::report::Axis;
use mapl::report::decimal;
use mapl::report::svg::{Bar as Column, BarChart, BarSeries, ReferenceLine, Shade, method_style};

use super::bars::{Bar, Group, HorizontalBars};
use super::experiments::{SWEEPS, Sweep};
use super::pair;
use super::record::{Quickstart, QuickstartRun, Record, Step, TrlOnCpu, read_json};

/// Colours: this project, other libraries, bare GEMMs.
const OURS: usize = 0;
const PEER: usize = 5;
const GEMM: usize = 2;
/// Shapes of the vocabulary head and of its GEMM, as the records name them.
const HEAD: &str = "rows=8192 hidden=896 vocab=151936";
const LOGITS: &str = "tokens=8192 inputs=896 outputs=151936";

/// Figures that the front page of `cargo doc` shows.
pub const ON_FRONT_PAGE: [&str; 6] =
    ["mapl-pair", "accuracy-reward", "accuracy-dpo", "head-dpo", "head-forward", "dpo-cpu"];

/// Every figure: its name and its `<svg>` element. `records` is `benches/record`.
pub fn all(records: &Path) -> Result<Vec<(&'static str, String)>, Box<dyn Error>> {
    let quickstart: Quickstart = read_json(&records.join("quickstart/2026-12-01-d4d17f9.json"))?;
    let h200 = records.join("nvidia-h200");
    let heads = Record::read(&h200.join("2026-11-27-707e5bc.csv"))?;
    let gemms = Record::read(&h200.join("2026-11-27-8ddee10.csv"))?;
    let steps = Record::read(&h200.join("2026-11-27-96a385c.csv"))?;
    let mut figures = vec![
        ("mapl-pair", pair::to_svg()),
        ("accuracy-reward", accuracy(&quickstart, "Reward model: held-out accuracy", "reward")?),
        ("accuracy-dpo", accuracy(&quickstart, "DPO: held-out accuracy", "dpo")?),
        ("head-dpo", head_dpo(&heads, &gemms)?),
        ("head-forward", head_forward(&heads)?),
        ("dpo-step", dpo_step(&steps)?),
        ("dpo-cpu", dpo_on_cpu(&read_json(&records.join("trl-cpu/2026-11-30.json"))?)?),
        ("step-ops", step_ops(&read_json(&h200.join("2026-11-27-8ddee10-step.json"))?)),
    ];
    for sweep in SWEEPS {
        figures.push((sweep.figure, Sweep::read(records, sweep.file)?.to_svg(sweep.title)));
    }
    Ok(figures)
}

/// Chart of a method's held-out accuracies after training on base pairs only and with MAPL. If the record has an
/// equal-token run, a third series shows it: base pairs only, with as many tokens as with MAPL.
fn accuracy(quickstart: &Quickstart, title: &str, method: &str) -> Result<String, Box<dyn Error>> {
    let series = |suffix: &str, name: &str, shade: Shade| -> Option<BarSeries> {
        let wanted = format!("{method}-{suffix}");
        let run = quickstart.runs.iter().find(|run| run.name == wanted)?;
        let QuickstartRun { semantic, intra, inter, .. } = *run;
        let bars = [semantic, intra, inter].map(|value| Column { value, interval: None }).to_vec();
        Some(BarSeries { name: name.to_owned(), style: method_style(method, shade), bars })
    };
    let base = series("base", "base pairs only", Shade::Base).ok_or(format!("no run {method}-base"))?;
    let mapl = series("mapl", "with MAPL", Shade::Mapl).ok_or(format!("no run {method}-mapl"))?;
    let equal = series("base-equal", "base, equal tokens", Shade::BaseEqual);
    let chart = BarChart {
        title: title.to_owned(),
        categories: ["semantic", "intra", "inter"].map(str::to_owned).to_vec(),
        y: Axis::new("accuracy", "dotted: random guess").within(0.0, 1.0),
        series: [base].into_iter().chain(equal).chain([mapl]).collect(),
        reference: Some(ReferenceLine { value: 0.5, label: String::new() }),
    };
    Ok(chart.to_svg())
}

/// Bar of one time in milliseconds, with its ratio to the first bar of the group.
fn time(name: &str, milliseconds: f64, style: usize, ours: f64) -> Bar {
    let digits = if milliseconds < 10.0 { 2 } else { 1 };
    let remark = if style == OURS { String::new() } else { format!("{}x", decimal(milliseconds / ours, 2)) };
    Bar {
        name: name.to_owned(),
        parts: vec![milliseconds],
        label: decimal(milliseconds, digits),
        remark,
        strong: style == OURS,
        style,
    }
}

/// Chart of the vocabulary head with DPO's loss and all gradients, against its bare GEMMs and against other
/// libraries.
fn head_dpo(heads: &Record, gemms: &Record) -> Result<String, Box<dyn Error>> {
    let gradients = gemms.milliseconds("mapl", "head_logprob_bwd", HEAD)?;
    let cublas = ["linear_fwd", "linear_bwd_input", "linear_bwd_weight"]
        .map(|op| gemms.milliseconds("cuBLASLt 13.1.0", op, LOGITS))
        .into_iter()
        .collect::<Result<Vec<f64>, _>>()?;
    let bare = time("3 GEMMs, cuBLASLt", cublas.iter().sum(), GEMM, gradients);
    // The frozen reference's head needs a separate forward pass.
    let ours =
        heads.milliseconds("mapl", "head_preference", HEAD)? + heads.milliseconds("mapl", "head_logprob_fwd", HEAD)?;
    let peer = |name: &str, variant: &str| -> Result<Bar, Box<dyn Error>> {
        let variant = format!("{variant} with reference");
        Ok(time(name, heads.milliseconds(&variant, "head_preference", HEAD)?, PEER, ours))
    };
    let chart = HorizontalBars {
        title: "DPO vocabulary head, all gradients".into(),
        subtitle: "milliseconds on an H200, shorter is better".into(),
        groups: vec![
            Group {
                heading: "policy only, against its bare GEMMs".into(),
                bars: vec![time("mapl", gradients, OURS, gradients), Bar { parts: cublas, ..bare }],
            },
            Group {
                heading: "policy and frozen reference".into(),
                bars: vec![
                    time("mapl", ours, OURS, ours),
                    peer("TRL, stored logits", "trl 1.16.0 logits")?,
                    peer("TRL, default", "trl 1.16.0 chunked")?,
                    peer("PyTorch, eager", "torch 2.11.0 eager")?,
                    peer("Liger, fused DPO", "liger 0.8.5 dpo")?,
                ],
            },
        ],
    };
    Ok(chart.to_svg())
}

/// Chart of the vocabulary head's forward pass, which computes the log-probabilities of a batch.
fn head_forward(heads: &Record) -> Result<String, Box<dyn Error>> {
    let ours = heads.milliseconds("mapl", "head_logprob_fwd", HEAD)?;
    let peer = |name: &str, variant: &str| -> Result<Bar, Box<dyn Error>> {
        Ok(time(name, heads.milliseconds(variant, "head_logprob_fwd", HEAD)?, PEER, ours))
    };
    let bars = vec![
        time("mapl", ours, OURS, ours),
        time("bare GEMM, cuBLASLt", heads.milliseconds("cuBLASLt 13.1.0", "linear_fwd", LOGITS)?, GEMM, ours),
        peer("TRL, stored logits", "trl 1.16.0 logits")?,
        peer("TRL, default", "trl 1.16.0 chunked")?,
        peer("cut-cross-entropy", "cut-cross-entropy 25.1.1")?,
        peer("PyTorch, eager", "torch 2.11.0 eager")?,
        peer("Liger", "liger 0.8.5")?,
    ];
    let chart = HorizontalBars {
        title: "Vocabulary head, forward pass".into(),
        subtitle: "milliseconds on an H200, shorter is better".into(),
        groups: vec![Group { heading: String::new(), bars }],
    };
    Ok(chart.to_svg())
}

/// Chart of whole DPO steps, in pairs per second, against an eager PyTorch loop.
fn dpo_step(steps: &Record) -> Result<String, Box<dyn Error>> {
    let shape = "pairs=16 prompt=512 response=256";
    let rate = |variant: &str, name: &str, style: usize| -> Result<Bar, Box<dyn Error>> {
        let value = 16.0 * 1000.0 / steps.milliseconds(variant, "dpo_step", shape)?;
        Ok(Bar {
            name: name.into(),
            parts: vec![value],
            label: decimal(value, 0),
            remark: String::new(),
            strong: style == OURS,
            style,
        })
    };
    let chart = HorizontalBars {
        title: "DPO step, Qwen2.5-0.5B, bf16".into(),
        subtitle: "pairs per second on an H200, longer is better".into(),
        groups: vec![Group {
            heading: String::new(),
            bars: vec![rate("mapl", "mapl", OURS)?, rate("torch eager", "PyTorch loop, eager", PEER)?],
        }],
    };
    Ok(chart.to_svg())
}

/// Chart of DPO on a CPU, in pair rows per second, against TRL.
fn dpo_on_cpu(record: &TrlOnCpu) -> Result<String, Box<dyn Error>> {
    let mut groups = Vec::new();
    for (case, heading) in [("pairs", "pairs"), ("groups-margin", "MAPL groups")] {
        let ours = record.rate(case, "mapl")?;
        let bar = |name: &str, rate: f64, style: usize| Bar {
            name: name.into(),
            parts: vec![rate],
            label: decimal(rate, 1),
            remark: if style == OURS { String::new() } else { format!("1/{}", decimal(ours / rate, 1)) },
            strong: style == OURS,
            style,
        };
        let bars = vec![bar("mapl", ours, OURS), bar("TRL", record.rate(case, "trl")?, PEER)];
        groups.push(Group { heading: heading.into(), bars });
    }
    let chart = HorizontalBars {
        title: "DPO on a CPU, f32".into(),
        subtitle: "pair rows per second on 2 threads, longer is better".into(),
        groups,
    };
    Ok(chart.to_svg())
}

/// Chart of the time of every op in a DPO step, in the record's order. Ops below 0.4 ms share one bar.
fn step_ops(step: &Step) -> String {
    const SMALL: f64 = 0.4;
    let bar = |name: &str, value: f64| Bar {
        name: name.to_owned(),
        parts: vec![value],
        label: decimal(value, if value < 10.0 { 2 } else { 1 }),
        remark: String::new(),
        strong: false,
        style: OURS,
    };
    let mut bars: Vec<Bar> =
        step.ops.iter().filter(|op| op.milliseconds >= SMALL).map(|op| bar(&op.op, op.milliseconds)).collect();
    bars.push(bar("others", step.ops.iter().map(|op| op.milliseconds).filter(|&ms| ms < SMALL).sum()));
    let chart = HorizontalBars {
        title: "DPO step of Qwen2.5-0.5B by op".into(),
        subtitle: "milliseconds on an H200, each op timed separately".into(),
        groups: vec![Group { heading: String::new(), bars }],
    };
    chart.to_svg()
}
