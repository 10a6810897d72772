//! Report page of a study: step times and hardware readings over time, ops under the measured
//! roofline, planned and used memory.

use std::collections::BTreeMap;

use super::record::Study;
use crate::perf::hardware::Sample;
use crate::report::page::Figure;
use crate::report::svg::Series;
use crate::report::{Axis, Block, LineChart, Page, Roofline, RooflinePoint, Section, Table, decimal, significant};

/// Report page as HTML.
pub fn html(study: &Study) -> String {
    let end = study.steps.iter().filter_map(|row| row.end_s).chain(study.samples.iter().map(|s| s.time_s));
    let end = end.fold(1e-3, f64::max);
    let mut sections: Vec<Section> = steps(study, end).into_iter().collect();
    sections.extend([overview(study), timeline(study, end)]);
    sections.extend(roofline(study));
    sections.push(ops(study));
    sections.push(memory(study));
    sections.push(facts(study));
    let facts = &study.facts;
    let lead = format!(
        "A {} run on {} ({}, {}): {}.",
        facts.method, facts.hardware, facts.backend, facts.dtype, study.outcome
    );
    Page { title: "Study of a run".into(), lead, sections }.to_html()
}

pub(super) fn table(caption: &str, header: &[&str], numeric: &[usize], rows: Vec<Vec<String>>) -> Table {
    Table {
        caption: caption.into(),
        header: header.iter().map(|text| (*text).to_owned()).collect(),
        rows,
        numeric: numeric.to_vec(),
    }
}

pub(super) fn percent(share: Option<f64>) -> String {
    share.map_or("unknown".into(), |share| format!("{} %", decimal(100.0 * share, 1)))
}

fn overview(study: &Study) -> Section {
    let Some(s) = &study.summary else {
        let text = "The run has no steps after the first two, which are not counted; raise --max-steps.";
        return Section { heading: "Overview".into(), blocks: vec![Block::Warning(text.into())] };
    };
    let row = |name: &str, value: String| vec![name.to_owned(), value];
    let mut rows = vec![
        row("steps counted (without the first two)", s.steps.to_string()),
        row("step (ms)", significant(1e3 * s.step_seconds)),
        row("tokens per second", significant(s.tokens_per_s)),
        row("groups per second", significant(s.groups_per_s)),
        row("executed GFLOP per step", significant(1e-9 * s.flops_per_step)),
        row("executed TFLOP/s", significant(s.tflop_per_s)),
        row("utilisation (MFU), by the data sheet's FLOP/s", percent(s.utilisation)),
    ];
    rows.push(row(
        "share of the GEMM rate measured in this run",
        percent(study.product_flops_per_s.map(|rate| 1e12 * s.tflop_per_s / rate)),
    ));
    rows.push(match &s.energy {
        Some(energy) => {
            row(&format!("energy (J per group, by {})", energy.source), significant(energy.joules_per_group))
        }
        None => row("energy (J per group)", "not available on this machine".into()),
    });
    Section {
        heading: "Overview".into(),
        blocks: vec![Block::Table(table("Means of the steps", &["what", "value"], &[1], rows))],
    }
}

/// A line of a chart: its name, and its value in a sample.
type Line = (&'static str, fn(&Sample) -> Option<f64>);

/// Full-width chart of the step times up to `end` seconds; `None` without a step.
fn steps(study: &Study, end: f64) -> Option<Section> {
    let time = Axis::new("time since the start", "s").within(0.0, end);
    let step = |name: &str, style, of: &dyn Fn(&super::record::StepRow) -> f64| Series {
        name: name.into(),
        style,
        points: study.steps.iter().filter_map(|row| Some((row.end_s?, of(row)))).collect(),
    };
    let series = vec![
        step("step", 0, &|row| 1e3 * row.step.seconds),
        step("in ops", 1, &|row| 1e3 * row.step.op_seconds),
        step("outside ops", 2, &|row| 1e3 * row.host_seconds),
    ];
    if series[0].points.is_empty() {
        return None;
    }
    let numbers = series[0].points.iter().zip(&study.steps).map(|(point, row)| {
        vec![
            row.step.step.to_string(),
            decimal(point.0, 2),
            significant(point.1),
            significant(1e3 * row.host_seconds),
            significant(row.tokens_per_s),
        ]
    });
    let numbers = table(
        "Steps",
        &["step", "end (s)", "time (ms)", "outside ops (ms)", "tokens/s"],
        &[0, 1, 2, 3, 4],
        numbers.collect(),
    );
    let steps = LineChart { title: "Step time".into(), x: time, y: Axis::new("time", "ms"), series, reference: None };
    let figure = Figure {
        svg: steps.to_wide_svg(),
        caption: "Each step is drawn at its end. Time outside ops is packing, waiting and logging.".into(),
        table: numbers,
    };
    Some(Section { heading: "Steps".into(), blocks: vec![Block::LeadFigure(figure)] })
}

fn timeline(study: &Study, end: f64) -> Section {
    let mut blocks = vec![Block::Figures(hardware_charts(&study.samples, end))];
    blocks.extend(unavailable_readings(&study.missing));
    Section { heading: "Timeline".into(), blocks }
}

/// List of unavailable readings, with the reasons.
pub(super) fn unavailable_readings(missing: &BTreeMap<String, String>) -> Vec<Block> {
    if missing.is_empty() {
        return Vec::new();
    }
    let missing = missing.iter().map(|(name, why)| format!("{name}: {why}")).collect();
    vec![Block::Paragraph("Unavailable on this machine:".into()), Block::List(missing)]
}

/// Charts of the hardware readings until `end` seconds. A chart without any reading is left out.
pub(super) fn hardware_charts(samples: &[Sample], end: f64) -> Vec<Figure> {
    let time = || Axis::new("time since the start", "s").within(0.0, end);
    let groups: [(&str, Axis, &[Line]); 7] = [
        ("Power", Axis::new("power", "W"), &[("power", |s| s.power_w), ("limit", |s| s.power_limit_w)]),
        ("Clocks", Axis::new("clock", "MHz"), &[("SM", |s| s.sm_clock_mhz), ("memory", |s| s.memory_clock_mhz)]),
        (
            "GPU activity",
            Axis::new("share of time", "").within(0.0, 1.0),
            &[
                ("kernels", |s| s.gpu_busy),
                ("SMs", |s| s.sm_active),
                ("tensor cores", |s| s.tensor_active),
                ("memory bandwidth", |s| s.dram_active),
            ],
        ),
        ("Temperature", Axis::new("temperature", "°C"), &[("GPU", |s| s.temperature_c)]),
        (
            "Transfers over PCIe",
            Axis::new("rate", "MB/s"),
            &[
                ("to the GPU", |s| s.pcie_in_bytes_per_s.map(|x| 1e-6 * x)),
                ("from the GPU", |s| s.pcie_out_bytes_per_s.map(|x| 1e-6 * x)),
            ],
        ),
        (
            "CPU cores",
            Axis::new("CPU cores used", ""),
            &[("this run", |s| s.processors_used), ("all others", |s| s.processors_others)],
        ),
        (
            "Memory",
            Axis::new("memory", "MiB"),
            &[("process", |s| s.resident_bytes.map(mib)), ("GPU", |s| s.gpu_memory_bytes.map(mib))],
        ),
    ];
    groups.into_iter().filter_map(|(title, y, lines)| chart(samples, title, time(), y, lines)).collect()
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// Chart of hardware readings, or `None` if no sample has any of them.
fn chart(samples: &[Sample], title: &str, x: Axis, y: Axis, lines: &[Line]) -> Option<Figure> {
    let series: Vec<Series> = (lines.iter().enumerate())
        .map(|(style, (name, of))| Series {
            name: (*name).into(),
            style,
            points: samples.iter().filter_map(|sample| Some((sample.time_s, of(sample)?))).collect(),
        })
        .filter(|series| !series.points.is_empty())
        .collect();
    if series.is_empty() {
        return None;
    }
    let unit = if y.unit.is_empty() { y.label.clone() } else { format!("{} ({})", y.label, y.unit) };
    let rows = series.iter().map(|series| {
        let values = || series.points.iter().map(|p| p.1);
        let mean = values().sum::<f64>() / series.points.len() as f64;
        let (least, most) = (values().fold(f64::INFINITY, f64::min), values().fold(f64::NEG_INFINITY, f64::max));
        vec![series.name.clone(), significant(least), significant(mean), significant(most)]
    });
    let numbers = table(&unit, &["reading", "min", "mean", "max"], &[1, 2, 3], rows.collect());
    let caption = format!("{} readings.", series.iter().map(|s| s.points.len()).max().unwrap_or(0));
    let chart = LineChart { title: title.into(), x, y, series, reference: None };
    Some(Figure { svg: chart.to_svg(), caption, table: numbers })
}

fn roofline(study: &Study) -> Option<Section> {
    let points = study.ops.iter().map(|op| RooflinePoint {
        name: op.op.clone(),
        label: op.op.clone(),
        intensity: op.flops / op.bytes.max(1.0),
        rate: 1e12 * op.tflop_per_s,
        seconds: 1e-3 * op.milliseconds,
    });
    Some(roofline_section("Roofline", study.memory_bytes_per_s?, study.product_flops_per_s?, points.collect()))
}

/// Section with a roofline chart of `points` under the ceilings of memory (byte/s) and GEMMs (FLOP/s).
pub(super) fn roofline_section(title: &str, memory: f64, product: f64, points: Vec<RooflinePoint>) -> Section {
    let rows = points.iter().enumerate().map(|(at, point)| {
        let number = (at + 1).to_string();
        vec![number, point.name.clone(), significant(point.intensity), significant(1e-9 * point.rate)]
    });
    let numbers = table("Points", &["point", "op", "FLOP/byte", "GFLOP/s"], &[0, 2, 3], rows.collect());
    let caption = format!(
        "Ceilings measured with this run: memory {} GB/s, GEMM {} GFLOP/s. Bytes are counted by the op contracts, so \
         points of operands in a cache can be above the slope. The five points with the most time are labelled with \
         their names, the others with their numbers.",
        decimal(1e-9 * memory, 1),
        decimal(1e-9 * product, 0)
    );
    let svg = Roofline { title: title.into(), memory, product, points }.to_wide_svg();
    let blocks = vec![Block::LeadFigure(Figure { svg, caption, table: numbers })];
    Section { heading: title.into(), blocks }
}

fn ops(study: &Study) -> Section {
    let rows = study.ops.iter().map(|op| {
        vec![
            op.op.clone(),
            decimal(op.calls, 1),
            significant(op.milliseconds),
            percent(Some(op.share_of_step)),
            significant(op.gb_per_s),
            significant(1e3 * op.tflop_per_s),
            op.bound.unwrap_or("–").into(),
            percent(op.share_of_ceiling),
        ]
    });
    let header = ["op", "calls", "ms", "share of step", "GB/s", "GFLOP/s", "bound", "share of ceiling"];
    let table = table("A mean step, longest first", &header, &[1, 2, 3, 4, 5, 7], rows.collect());
    let mut blocks = vec![Block::Table(table)];
    if study.ops.is_empty() {
        let text = "No times by op: the run has no steps after the first two, or its steps were replayed from CUDA graphs \
                    (--cuda-graph on).";
        blocks.push(Block::Warning(text.into()));
    }
    Section { heading: "Time by op".into(), blocks }
}

fn memory(study: &Study) -> Section {
    let memory = &study.memory;
    let row = |name: &str, bytes: Option<u64>| {
        vec![name.to_owned(), bytes.map_or("not available on this machine".into(), |bytes| decimal(mib(bytes), 1))]
    };
    let mut rows: Vec<Vec<String>> = memory.planned.iter().map(|(name, bytes)| row(name, Some(*bytes))).collect();
    rows.push(row("planned in total", Some(memory.planned_total)));
    rows.push(row("used on the device", memory.taken));
    rows.push(row("peak of the process", memory.peak_resident));
    let blocks = vec![Block::Table(table("MiB by part", &["part", "MiB"], &[1], rows))];
    Section { heading: "Memory".into(), blocks }
}

fn facts(study: &Study) -> Section {
    let facts = &study.facts;
    let row = |name: &str, value: String| vec![name.to_owned(), value];
    let rows = vec![
        row("hardware", facts.hardware.clone()),
        row("backend", format!("{}, {}", facts.backend, facts.dtype)),
        row("threads", facts.threads.to_string()),
        row("peak", facts.peak_flops.map_or("unknown".into(), |peak| format!("{} TFLOP/s", decimal(1e-12 * peak, 1)))),
        row("source of the peak", facts.peak_source.clone()),
        row("sample interval (ms)", facts.sample_interval_ms.to_string()),
    ];
    let blocks = vec![
        Block::Table(table("", &["what", "value"], &[], rows)),
        Block::Code { caption: "Command".into(), text: facts.command.clone() },
    ];
    Section { heading: "Run".into(), blocks }
}
