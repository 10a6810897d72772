//! Study of a benchmark: its rows, with hardware readings taken while each row was timed.

use std::collections::BTreeMap;
use std::time::Instant;

use serde::Serialize;

use super::page::{hardware_charts, percent, roofline_section, table, unavailable_readings};
use crate::bench::row::{Row, Status};
use crate::perf::hardware::Sample;
use crate::perf::hardware::sampler::Readings;
use crate::report::{Block, Page, RooflinePoint, Section, significant};

/// Time span in which the competing implementations of a call were timed, and their rows at that time.
#[derive(Clone, Debug)]
pub struct Span {
    pub from: Instant,
    pub to: Instant,
    pub rows: Vec<Row>,
}

/// A row, with means of the readings within its spans. Implementations that are timed in alternation share
/// spans and readings.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ObservedRow {
    pub row: Row,
    /// Start and end of each span, in seconds since the sampler started.
    pub spans_s: Vec<(f64, f64)>,
    pub readings: usize,
    pub power_w: Option<f64>,
    pub sm_clock_mhz: Option<f64>,
    pub temperature_c: Option<f64>,
    pub tensor_active: Option<f64>,
    pub dram_active: Option<f64>,
    pub processors_used: Option<f64>,
    pub processors_others: Option<f64>,
    /// Reasons for throttled clocks in any reading.
    pub throttle: Vec<String>,
}

/// The complete study, as stored in `study.json`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct BenchStudy {
    pub schema: u32,
    pub command: String,
    pub threads: usize,
    pub sample_interval_ms: u64,
    /// How the run ended: `finished`, or its error.
    pub outcome: String,
    pub calls: Vec<ObservedRow>,
    /// Hardware readings that were unavailable, with the reason.
    pub missing: BTreeMap<String, String>,
    pub samples: Vec<Sample>,
}

/// Schema version of a benchmark's `study.json`.
pub const SCHEMA: u32 = 1;

impl BenchStudy {
    /// Combines the final rows with the spans in which they were timed.
    pub fn new(
        command: &str,
        sample_interval_ms: u64,
        outcome: String,
        rows: &[Row],
        spans: &[Span],
        readings: Readings,
    ) -> Self {
        let seconds =
            |moment: Instant| readings.began.map_or(0.0, |began| moment.saturating_duration_since(began).as_secs_f64());
        let calls = rows.iter().map(|row| {
            let own = spans.iter().filter(|span| span.rows.iter().any(|other| other.key() == row.key()));
            let within = own.map(|span| (seconds(span.from), seconds(span.to))).collect();
            observed_row(row.clone(), within, &readings.samples)
        });
        Self {
            schema: SCHEMA,
            command: command.to_owned(),
            threads: rayon::current_num_threads(),
            sample_interval_ms,
            outcome,
            calls: calls.collect(),
            missing: readings.missing.into_iter().collect(),
            samples: readings.samples,
        }
    }

    /// Report page as HTML.
    pub fn html(&self) -> String {
        let device = self.calls.first().map_or("no device", |call| call.row.device.as_str());
        let count = self.calls.iter().filter(|call| call.row.status == Status::Measured).count();
        let lead = format!("{count} rows measured on {device}: {}.", self.outcome);
        let mut sections = self.rooflines();
        sections.push(self.rows());
        let end = self.samples.last().map_or(1e-3, |sample| sample.time_s.max(1e-3));
        let figures = Block::Figures(hardware_charts(&self.samples, end));
        let blocks = [figures].into_iter().chain(unavailable_readings(&self.missing)).collect();
        sections.push(Section { heading: "Timeline".into(), blocks });
        let facts = vec![
            vec!["threads".into(), self.threads.to_string()],
            vec!["sample interval (ms)".into(), self.sample_interval_ms.to_string()],
        ];
        let blocks = vec![
            Block::Table(table("", &["what", "value"], &[1], facts)),
            Block::Code { caption: "Command".into(), text: self.command.clone() },
        ];
        sections.push(Section { heading: "Run".into(), blocks });
        Page { title: "Study of a benchmark".into(), lead, sections }.to_html()
    }

    /// One roofline plot per device, storage and model. Points of all rows in one plot would
    /// overlap.
    fn rooflines(&self) -> Vec<Section> {
        let mut groups: BTreeMap<(&str, &str, &str), Vec<&Row>> = BTreeMap::new();
        for row in self.calls.iter().map(|call| &call.row).filter(|row| row.status == Status::Measured) {
            groups.entry((&row.backend, &row.dtype, &row.model)).or_default().push(row);
        }
        let section = |((backend, dtype, model), rows): ((&str, &str, &str), Vec<&Row>)| {
            let first = rows.first()?;
            let points = rows.iter().filter_map(|row| {
                Some(RooflinePoint {
                    name: format!("{} {} {} {}", row.op, row.variant, row.layer, row.shape),
                    label: if row.layer.is_empty() { row.op.clone() } else { format!("{} {}", row.op, row.layer) },
                    intensity: row.flops? as f64 / row.bytes?.max(1) as f64,
                    rate: 1e12 * row.tflop_per_s?,
                    seconds: 1e-6 * row.median_us?,
                })
            });
            let title = format!("{model} on {backend}, {dtype}");
            let (memory, product) = (1e9 * first.memory_gb_per_s?, 1e12 * first.product_tflop_per_s?);
            Some(roofline_section(&title, memory, product, points.collect()))
        };
        groups.into_iter().filter_map(section).collect()
    }

    fn rows(&self) -> Section {
        let or = |value: Option<f64>| value.map_or("–".into(), significant);
        let rows = self.calls.iter().filter(|call| call.row.status == Status::Measured).map(|call| {
            let row = &call.row;
            vec![
                format!("{} {}", row.op, row.variant),
                format!("{} {} {}", row.model, row.layer, row.shape),
                or(row.median_us),
                or(row.gb_per_s),
                or(row.tflop_per_s.map(|rate| 1e3 * rate)),
                percent(row.share),
                or(call.power_w),
                or(call.sm_clock_mhz),
                or(call.tensor_active.map(|share| 100.0 * share)),
                or(call.processors_others),
                if call.throttle.is_empty() { "–".into() } else { call.throttle.join(", ") },
            ]
        });
        let header = [
            "op",
            "shape",
            "median (µs)",
            "GB/s",
            "GFLOP/s",
            "share of ceiling",
            "power (W)",
            "SM clock (MHz)",
            "tensor cores (%)",
            "CPU cores of others",
            "clocks throttled by",
        ];
        let rows = table(
            "Rows, with means of the hardware readings while each was timed",
            &header,
            &[2, 3, 4, 5, 6, 7, 8, 9],
            rows.collect(),
        );
        let mut blocks = vec![Block::Table(rows.without_empty_columns("–"))];
        let others = self.calls.iter().filter(|call| call.row.status != Status::Measured);
        let notes: Vec<String> = others
            .map(|call| {
                format!("{} {} {} {}: {}", call.row.op, call.row.variant, call.row.model, call.row.shape, call.row.note)
            })
            .collect();
        if !notes.is_empty() {
            blocks.push(Block::Paragraph("Not measured:".into()));
            blocks.push(Block::List(notes));
        }
        Section { heading: "Rows".into(), blocks }
    }
}

fn observed_row(row: Row, spans_s: Vec<(f64, f64)>, samples: &[Sample]) -> ObservedRow {
    let within = |sample: &&Sample| spans_s.iter().any(|(from, to)| (*from..=*to).contains(&sample.time_s));
    let read: Vec<&Sample> = samples.iter().filter(within).collect();
    let mean = |of: fn(&Sample) -> Option<f64>| {
        let values: Vec<f64> = read.iter().filter_map(|sample| of(sample)).collect();
        (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
    };
    let mut throttle: Vec<String> = read.iter().filter_map(|sample| sample.throttle.clone()).flatten().collect();
    throttle.sort();
    throttle.dedup();
    ObservedRow {
        readings: read.len(),
        power_w: mean(|s| s.power_w),
        sm_clock_mhz: mean(|s| s.sm_clock_mhz),
        temperature_c: mean(|s| s.temperature_c),
        tensor_active: mean(|s| s.tensor_active),
        dram_active: mean(|s| s.dram_active),
        processors_used: mean(|s| s.processors_used),
        processors_others: mean(|s| s.processors_others),
        throttle,
        row,
        spans_s,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn row(op: &str, status: Status) -> Row {
        let text = format!(
            r#"{{"schema":1,"date":"2026-01-31","commit":"c","device":"d","backend":"cuda","variant":"mapl","dtype":"bf16",
            "op":"{op}","model":"m","layer":"l","shape":"tokens=8","cache":null,"status":"measured","samples":1,"calls":1,
            "median_us":2.0,"p20_us":2.0,"p80_us":2.0,"least_us":2.0,"bytes":4000000,"flops":8000000,"gb_per_s":2000.0,
            "tflop_per_s":4.0,"bound":"memory","memory_gb_per_s":4000.0,"product_tflop_per_s":700.0,"share":0.5,
            "energy_mj":null,"others":0.0,"error_share":0.1,"note":"left out"}}"#
        );
        Row { status, ..serde_json::from_str(&text).unwrap() }
    }

    #[test]
    fn readings_belong_to_the_rows_timed_in_their_span() {
        let began = Instant::now();
        let at = |seconds: f64| began + Duration::from_secs_f64(seconds);
        let samples = (0..10).map(|i| Sample {
            time_s: f64::from(i),
            power_w: Some(100.0 * f64::from(i)),
            throttle: Some(if i == 6 { vec!["power cap".into()] } else { Vec::new() }),
            ..Sample::default()
        });
        let readings = Readings { samples: samples.collect(), missing: Vec::new(), began: Some(began) };
        let rows = [row("norm_fwd", Status::Measured), row("glu_fwd", Status::Measured), row("adamw", Status::Skipped)];
        let span = |from, to, which: usize| Span { from: at(from), to: at(to), rows: vec![rows[which].clone()] };
        let spans = [span(0.5, 2.5, 0), span(2.6, 3.4, 1), span(5.5, 7.5, 0)];
        let study = BenchStudy::new("mapl bench", 50, "finished".into(), &rows, &spans, readings);
        // Readings 1, 2, 6 and 7 fall into the first row's spans, reading 3 into the second row's
        // span.
        assert_eq!((study.calls[0].readings, study.calls[0].power_w), (4, Some(400.0)));
        assert_eq!(study.calls[0].throttle, ["power cap"]);
        assert_eq!((study.calls[1].readings, study.calls[1].power_w), (1, Some(300.0)));
        assert!(study.calls[1].throttle.is_empty());
        assert_eq!((study.calls[2].readings, study.calls[2].power_w), (0, None));
        let html = study.html();
        for part in
            ["2 rows measured on d", "m on cuda, bf16", "power cap", "adamw mapl m tokens=8: left out", "Timeline"]
        {
            assert!(html.contains(part), "{part}");
        }
    }
}
