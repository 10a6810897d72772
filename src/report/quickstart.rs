//! Report of the quick start: accuracies of all runs, curves, data, commands, environment.

use std::fmt::Write;

use super::axis::Axis;
use super::distribution::smoothed;
use super::page::{Block, Page, Section, Table, plain_table};
use super::scores::{BASE_EQUAL, Gain, MAPL, MEASURES, RunScores, Score, method_of};
use super::summary::{AccuracyPoint, Count, NamedText, QuickstartSummary, RunSummary};
use super::svg::{Bar, BarChart, BarSeries, LineChart, ReferenceLine, Series, Shade, method_style};
use super::{ACCURACY_DECIMALS, NO_VALUE, decimal};

/// Loss curves are running means over 1/20 of the run, which separates runs from noise.
const SMOOTHED_SHARE: usize = 20;
/// Columns of the result table.
const COLUMNS: [&str; 7] = ["run", "semantic", "intra", "inter", "steps", "ktokens", "seconds"];

/// Report as one HTML file. Its links to the reports of the runs are relative.
pub fn quickstart_report(summary: &QuickstartSummary) -> String {
    let mut sections = Vec::new();
    if !summary.warnings.is_empty() {
        let blocks = summary.warnings.iter().cloned().map(Block::Warning).collect();
        sections.push(Section { heading: "Warnings".into(), blocks });
    }
    sections.push(results(summary));
    sections.push(curves(summary));
    if !summary.data.is_empty() || !summary.examples.is_empty() {
        sections.push(data(summary));
    }
    sections.push(commands(&summary.commands));
    sections.push(environment(summary));
    let seeds = match summary.seeds() {
        0 | 1 => String::new(),
        seeds => format!(" with {seeds} seeds"),
    };
    let page = Page {
        title: "mapl quick start".into(),
        lead: format!(
            "{} training runs{seeds} on an artificial preference language, {} seconds in total.",
            summary.runs.len(),
            decimal(summary.seconds, 0)
        ),
        sections,
    };
    page.to_html()
}

/// Tables of the runs as plain text, which are also Markdown tables: accuracies, and for several
/// seeds their intervals.
pub fn quickstart_table(summary: &QuickstartSummary) -> String {
    let scores = summary.scores();
    let with_header = |header: &[&str], rows: Vec<Vec<String>>| {
        let header = header.iter().map(|text| (*text).to_owned()).collect();
        std::iter::once(header).chain(rows).collect::<Vec<Vec<String>>>()
    };
    let mut out = plain_table(&with_header(&COLUMNS, scores.iter().map(result_row).collect()), |c| c > 0);
    if summary.seeds() > 1 {
        let rows = scores.iter().map(interval_row).collect();
        let _ = write!(
            out,
            "\n{}:\n{}",
            interval_caption(summary),
            plain_table(&with_header(&COLUMNS[..4], rows), |c| c > 0)
        );
    }
    out
}

fn accuracy(score: Option<Score>) -> String {
    decimal(score.map_or(f64::NAN, |score| score.mean), ACCURACY_DECIMALS)
}

fn range(low: f64, high: f64) -> String {
    format!("{} to {}", decimal(low, ACCURACY_DECIMALS), decimal(high, ACCURACY_DECIMALS))
}

fn result_row(run: &RunScores) -> Vec<String> {
    let mut row = vec![run.name.clone()];
    row.extend(run.accuracies.map(accuracy));
    let tokens = if run.tokens > 0.0 { 1e-3 * run.tokens } else { f64::NAN };
    row.extend([decimal(run.steps, 0), decimal(tokens, 0), decimal(run.seconds, 1)]);
    row
}

fn interval_row(run: &RunScores) -> Vec<String> {
    let cell = |score: Option<Score>| score.map_or(NO_VALUE.to_owned(), |score| range(score.low, score.high));
    std::iter::once(run.name.clone()).chain(run.accuracies.map(cell)).collect()
}

fn interval_caption(summary: &QuickstartSummary) -> String {
    match summary.seeds() {
        0 | 1 => "95 % Wilson intervals of the held-out comparisons".into(),
        seeds => format!("95 % t intervals over {seeds} seeds"),
    }
}

fn results(summary: &QuickstartSummary) -> Section {
    let scores = summary.scores();
    let charts = methods(&scores).into_iter().map(|method| accuracy_chart(method, &scores).to_svg()).collect();
    let several = summary.seeds() > 1;
    let what = if several { "mean over seeds; " } else { "" };
    let report = |run: &RunSummary| match run.folder.as_str() {
        "" => String::new(),
        folder => format!("{folder}/{}", super::run::REPORT_FILE),
    };
    let mut blocks = vec![Block::LeadCharts(charts)];
    blocks.push(Block::Paragraph(format!("Whiskers are {}. Guessing gives 0.5.", interval_caption(summary))));
    blocks.push(Block::LinkedTable {
        table: Table {
            caption: format!("Accuracy on held-out prompts; {what}ties count as wrong"),
            header: COLUMNS.map(str::to_owned).to_vec(),
            rows: scores.iter().map(result_row).collect(),
            numeric: (1..COLUMNS.len()).collect(),
        },
        links: summary.first_runs().into_iter().map(report).collect(),
    });
    let gains = summary.gains();
    if !gains.is_empty() {
        blocks.push(Block::Table(Table {
            caption: "Gain from the MAPL terms: mapl minus base".into(),
            header: ["compared", "semantic", "intra", "inter"].map(str::to_owned).to_vec(),
            rows: gains.iter().map(gain_row).collect(),
            numeric: (1..4).collect(),
        }));
    }
    if summary.runs.iter().any(|run| run.name.ends_with(BASE_EQUAL)) {
        blocks.push(Block::Paragraph(
            "A run base-equal is a base run of as many tokens as the MAPL run. Both train the same model, so equal tokens \
             are close to equal FLOPs and equal time, and they are the same on every machine."
                .into(),
        ));
    }
    blocks.push(Block::List(vec![
        "semantic: without added instructions, the chosen response of a pair scores higher than the rejected one."
            .into(),
        "intra: a response scores higher under the prompt with the instructions it follows better.".into(),
        "inter: added instructions move the gap between chosen and rejected in the right direction.".into(),
    ]));
    blocks.push(Block::Paragraph(
        "Every run starts from the same model and is scored on held-out prompts. A scorer that ignores the added \
         instructions ties on intra and inter, and ties count as wrong."
            .into(),
    ));
    if several {
        blocks.push(Block::LinkedTable {
            table: Table {
                caption: "Runs of every seed".into(),
                header: ["run", "seed", "semantic", "intra", "inter", "steps"].map(str::to_owned).to_vec(),
                rows: summary.runs.iter().map(seed_row).collect(),
                numeric: (1..6).collect(),
            },
            links: summary.runs.iter().map(report).collect(),
        });
    }
    blocks.push(Block::Folded {
        heading: "Counts of the comparisons".into(),
        table: Table {
            caption: "Counts, with 95 % Wilson intervals".into(),
            header: ["run", "seed", "measure", "correct", "ties", "total", "interval"].map(str::to_owned).to_vec(),
            rows: summary.runs.iter().flat_map(count_rows).collect(),
            numeric: vec![1, 3, 4, 5, 6],
        },
    });
    blocks.push(Block::Paragraph(
        "These figures apply to this artificial language and these small models. The full text of the MAPL paper was \
         not available to the project, and no result here reproduces it."
            .into(),
    ));
    Section { heading: "Results".into(), blocks }
}

/// Methods in the order of their first run.
fn methods(scores: &[RunScores]) -> Vec<&str> {
    let mut methods: Vec<&str> = Vec::new();
    for run in scores {
        let method = method_of(&run.name);
        if !methods.contains(&method) {
            methods.push(method);
        }
    }
    methods
}

/// Accuracies of one method's runs.
fn accuracy_chart(method: &str, scores: &[RunScores]) -> BarChart {
    let bar = |score: Option<Score>| Bar {
        value: score.map_or(f64::NAN, |score| score.mean),
        interval: score.map(|score| (score.low, score.high)),
    };
    let series = scores.iter().filter(|run| method_of(&run.name) == method).map(|run| BarSeries {
        name: run.name.clone(),
        style: style(&run.name),
        bars: run.accuracies.map(bar).to_vec(),
    });
    BarChart {
        title: format!("{}: accuracy on held-out prompts", title(method)),
        categories: MEASURES.map(str::to_owned).to_vec(),
        y: Axis::new("accuracy", "").within(0.0, 1.0),
        series: series.collect(),
        reference: Some(chance()),
    }
}

/// Method as the start of a title.
fn title(method: &str) -> String {
    match method {
        "reward" => "Reward model".into(),
        "dpo" => "DPO".into(),
        other => other.into(),
    }
}

fn style(name: &str) -> usize {
    let shade = if name.ends_with(MAPL) {
        Shade::Mapl
    } else if name.ends_with(BASE_EQUAL) {
        Shade::BaseEqual
    } else {
        Shade::Base
    };
    method_style(method_of(name), shade)
}

fn seed_row(run: &RunSummary) -> Vec<String> {
    let accuracy = |count: Count| match count.total {
        0 => NO_VALUE.to_owned(),
        _ => decimal(count.accuracy(), ACCURACY_DECIMALS),
    };
    let mut row = vec![run.name.clone(), run.seed.to_string()];
    row.extend(run.counts().map(accuracy));
    row.push(run.steps.to_string());
    row
}

fn count_rows(run: &RunSummary) -> Vec<Vec<String>> {
    let row = |(measure, count): (&str, Count)| {
        let interval = count.interval().map_or(NO_VALUE.to_owned(), |(low, high)| range(low, high));
        let [correct, ties, total] = [count.correct, count.ties, count.total].map(|n| n.to_string());
        vec![run.name.clone(), run.seed.to_string(), measure.to_owned(), correct, ties, total, interval]
    };
    MEASURES.into_iter().zip(run.counts()).map(row).collect()
}

fn gain_row(gain: &Gain) -> Vec<String> {
    let signed = |value: f64| {
        let text = decimal(value, ACCURACY_DECIMALS);
        if text.starts_with('-') { text } else { format!("+{text}") }
    };
    let at = if gain.equal_tokens { "tokens" } else { "steps" };
    let mut row = vec![format!("{}, equal {at}", gain.method)];
    row.extend(gain.differences.iter().zip(&gain.intervals).map(|(difference, interval)| {
        let Some(difference) = difference else { return NO_VALUE.to_owned() };
        let interval = interval.map_or(String::new(), |[low, high]| format!(" ({} to {})", signed(low), signed(high)));
        format!("{}{interval}", signed(*difference))
    }));
    row
}

fn chance() -> ReferenceLine {
    ReferenceLine { value: 0.5, label: "chance".into() }
}

fn curves(summary: &QuickstartSummary) -> Section {
    let runs = summary.first_runs();
    let mut blocks = Vec::new();
    let scores = summary.scores();
    for method in methods(&scores) {
        let of_method: Vec<&RunSummary> = runs.iter().filter(|run| run.method() == method).copied().collect();
        let mut charts = Vec::new();
        // Without recorded accuracies, a method has no accuracy curves.
        if of_method.iter().any(|run| !run.accuracy.is_empty()) {
            charts.extend((0..MEASURES.len()).map(|measure| accuracy_curves(&of_method, measure).to_svg()));
        }
        if of_method.iter().any(|run| !run.loss.is_empty()) {
            charts.push(loss_curves(&of_method).to_svg());
        }
        if !charts.is_empty() {
            blocks.extend([Block::Heading(title(method)), Block::Charts(charts)]);
        }
    }
    let text = if blocks.is_empty() {
        "No curve was recorded.".to_owned()
    } else {
        let seed = match (summary.seeds(), runs.first()) {
            (0 | 1, _) | (_, None) => String::new(),
            (_, Some(run)) => format!("Curves are of seed {}. ", run.seed),
        };
        format!(
            "{seed}Loss curves are running means over up to a twentieth of the run. The loss of a MAPL run sums its base, \
             intra and inter terms, so it is higher than the loss of a base run; compare shapes, not levels. An accuracy \
             is not drawn while every comparison ties, as before the first step of DPO."
        )
    };
    blocks.insert(0, Block::Paragraph(text));
    Section { heading: "Curves".into(), blocks }
}

fn accuracy_curves(runs: &[&RunSummary], measure: usize) -> LineChart {
    let value = |point: &AccuracyPoint| match point.ties[measure] {
        share if share >= 1.0 => f64::NAN,
        _ => [point.semantic, point.intra, point.inter][measure],
    };
    let series = runs.iter().map(|run| Series {
        name: run.name.clone(),
        style: style(&run.name),
        points: run.accuracy.iter().map(|point| (point.step as f64, value(point))).collect(),
    });
    LineChart {
        title: format!("Held-out accuracy, {}", MEASURES[measure]),
        x: Axis::new("step", ""),
        y: Axis::new("accuracy", "").within(0.0, 1.0),
        series: series.collect(),
        reference: Some(chance()),
    }
}

fn loss_curves(runs: &[&RunSummary]) -> LineChart {
    let series = runs.iter().map(|run| Series {
        name: run.name.clone(),
        style: style(&run.name),
        points: smoothed(
            &run.loss.iter().map(|p| (p.step as f64, p.value)).collect::<Vec<_>>(),
            run.loss.len().div_ceil(SMOOTHED_SHARE),
        ),
    });
    LineChart {
        title: "Training loss".into(),
        x: Axis::new("step", ""),
        y: Axis::new("loss", ""),
        series: series.collect(),
        reference: None,
    }
}

fn data(summary: &QuickstartSummary) -> Section {
    let mut blocks = Vec::new();
    for table in &summary.data {
        blocks.push(Block::Table(Table {
            caption: table.caption.clone(),
            header: table.header.clone(),
            rows: table.rows.clone(),
            numeric: (1..table.header.len()).collect(),
        }));
    }
    blocks.extend(summary.examples.iter().map(code));
    Section { heading: "Data".into(), blocks }
}

fn commands(commands: &[NamedText]) -> Section {
    let mut blocks: Vec<_> = commands.iter().map(code).collect();
    if blocks.is_empty() {
        blocks.push(Block::Paragraph("No command was recorded.".into()));
    }
    Section { heading: "Commands".into(), blocks }
}

fn code(text: &NamedText) -> Block {
    Block::Code { caption: text.caption.clone(), text: text.text.clone() }
}

fn environment(summary: &QuickstartSummary) -> Section {
    let rows = summary.environment.iter().map(|f| vec![f.name.clone(), f.value.clone()]).collect();
    let table = Table { rows, ..Default::default() };
    Section { heading: "Environment".into(), blocks: vec![Block::Table(table)] }
}
