//! Drawing of a run in a terminal of any size.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Style};
use ratatui::symbols::Marker;
use ratatui::text::{Line, Span};
use ratatui::widgets::{Axis, Block, Chart, Dataset, Gauge, GraphType, Paragraph, Tabs};
use serde_json::Value;

use super::state::{RunState, Series};
use crate::terminal::shown;

/// A page of charts: title, and charts of (title, metric names).
type Panel = (&'static str, &'static [(&'static str, &'static [&'static str])]);

/// The pages.
pub const PANELS: [Panel; 5] = [
    ("loss", &[("loss", &["loss", "eval_loss"]), ("loss by kind", &["loss/base", "loss/intra", "loss/inter"])]),
    (
        "accuracy",
        &[
            ("accuracy by kind", &["rewards/accuracies/base", "rewards/accuracies/intra", "rewards/accuracies/inter"]),
            (
                "evaluation",
                &["eval_rewards/accuracies/base", "eval_rewards/accuracies/intra", "eval_rewards/accuracies/inter"],
            ),
        ],
    ),
    (
        "margins",
        &[
            ("margin by kind", &["rewards/margins/base", "rewards/margins/intra", "rewards/margins/inter"]),
            ("rewards", &["rewards/chosen", "rewards/rejected", "mean_reward"]),
        ],
    ),
    (
        "ifeval",
        &[
            ("prompts followed", &["eval_ifeval/prompt_strict", "eval_ifeval/prompt_loose"]),
            ("instructions followed", &["eval_ifeval/instruction_strict", "eval_ifeval/instruction_loose"]),
            ("new tokens of an answer", &["eval_ifeval/mean_tokens"]),
        ],
    ),
    (
        "optimiser",
        &[
            ("gradient norm", &["grad_norm"]),
            ("learning rate", &["learning_rate"]),
            ("tokens per second", &["tokens_per_s"]),
        ],
    ),
];

const COLOURS: [Color; 4] = [Color::Cyan, Color::Yellow, Color::Green, Color::Magenta];

/// Selected page and window.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ViewState {
    /// Selected panel.
    pub panel: usize,
    /// Number of last steps shown; `None` shows all.
    pub window: Option<u64>,
}

/// Draws a run.
pub fn draw(frame: &mut Frame<'_>, name: &str, state: &RunState, choice: ViewState) {
    let area = frame.area();
    let rows = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(1),
        Constraint::Length(1),
        Constraint::Min(3),
        Constraint::Length(4),
    ]);
    let [head, progress, tabs, body, events] = rows.areas(area);
    frame.render_widget(Paragraph::new(headline(name, state, head.width)), head);
    draw_progress(frame, progress, state);
    let titles = PANELS.iter().map(|panel| panel.0);
    let chosen = choice.panel % PANELS.len();
    frame.render_widget(Tabs::new(titles).select(chosen), tabs);
    if state.series.is_empty() {
        frame.render_widget(Paragraph::new("waiting for the first step"), body);
    } else {
        let charts = PANELS[chosen].1;
        let places = Layout::vertical(charts.iter().map(|_| Constraint::Fill(1))).split(body);
        for ((title, names), place) in charts.iter().zip(places.iter()) {
            draw_chart(frame, *place, title, names, state, choice.window);
        }
    }
    let window = choice.window.map_or("all steps".into(), |steps| format!("last {steps} steps"));
    let keys = format!("{window}   left, right: page   +, -: window   q: quit");
    let newest = state.events.iter().rev().take(3).rev().map(|event| Line::from(event.as_str()));
    let lines: Vec<Line<'_>> = newest.chain([Line::from(keys).style(Style::new().fg(Color::DarkGray))]).collect();
    frame.render_widget(Paragraph::new(lines), events);
}

/// The last row as one line. Values that do not fit are left out as a whole.
fn headline(name: &str, state: &RunState, width: u16) -> String {
    let mut parts = vec![shown(name)];
    parts.extend(state.status.clone());
    if state.not_finite > 0 {
        parts.push(format!("{} numbers were not finite", state.not_finite));
    }
    for (label, key) in [
        ("loss", "loss"),
        ("acc", "rewards/accuracies"),
        ("acc", "accuracy"),
        ("margin", "rewards/margins"),
        ("gnorm", "grad_norm"),
        ("lr", "learning_rate"),
    ] {
        match state.last.get(key) {
            Some(Value::Number(number)) => parts.push(format!("{label} {}", short(number.as_f64().unwrap_or(0.0)))),
            Some(Value::String(text)) => parts.push(format!("{label} {}", shown(text))),
            _ => {}
        }
    }
    let mut line = String::new();
    for part in parts {
        let gap = if line.is_empty() { "" } else { "  " };
        if line.is_empty() || line.chars().count() + gap.len() + part.chars().count() <= usize::from(width) {
            line += gap;
            line += &part;
        }
    }
    line
}

/// Short text of a value.
fn short(value: f64) -> String {
    match value.abs() {
        0.0 => "0".into(),
        size if !(1e-3..1e5).contains(&size) => format!("{value:.2e}"),
        size if size < 10.0 => format!("{value:.4}"),
        _ => format!("{value:.1}"),
    }
}

fn draw_progress(frame: &mut Frame<'_>, area: Rect, state: &RunState) {
    let total = state.total();
    let left = state.seconds_left().map_or(String::new(), |seconds| format!(", {} left", clock(seconds)));
    let label = match total {
        Some(total) => format!("step {} of {total}{left}", state.step),
        None => format!("step {}", state.step),
    };
    let ratio = total.filter(|&total| total > 0).map_or(0.0, |total| state.step as f64 / total as f64);
    frame.render_widget(Gauge::default().ratio(ratio.clamp(0.0, 1.0)).label(label), area);
}

fn clock(seconds: f64) -> String {
    let seconds = seconds.min(1e9) as u64;
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, s) => format!("{s} s"),
        (0, m, s) => format!("{m} min {s} s"),
        (h, m, _) => format!("{h} h {m} min"),
    }
}

fn draw_chart(frame: &mut Frame<'_>, area: Rect, title: &str, names: &[&str], state: &RunState, window: Option<u64>) {
    let from = window.map_or(f64::NEG_INFINITY, |steps| state.step.saturating_sub(steps) as f64);
    let lines: Vec<(&str, Series)> = names
        .iter()
        .filter_map(|name| {
            let course: Series = state.series.get(*name)?.iter().copied().filter(|p| p.0 >= from).collect();
            (!course.is_empty()).then_some((*name, course))
        })
        .collect();
    let block = Block::bordered().title(title.to_owned());
    if lines.is_empty() {
        frame.render_widget(Paragraph::new("no numbers yet").block(block), area);
        return;
    }
    let bounds = |of: fn(&(f64, f64)) -> f64| {
        let values = || lines.iter().flat_map(|line| &line.1).map(of);
        let (low, high) = (values().fold(f64::INFINITY, f64::min), values().fold(f64::NEG_INFINITY, f64::max));
        let half = if high > low { 0.0 } else { 0.5 * low.abs().max(1e-9) };
        [low - half, high + half]
    };
    let (x, y) = (bounds(|p| p.0), bounds(|p| p.1));
    // The legend has separate rows, because over the chart it would cover curves.
    let inner = block.inner(area);
    frame.render_widget(block, area);
    let names: Vec<&str> = lines.iter().map(|line| line.0).collect();
    let legend = legend(&names, inner.width);
    let rows = u16::try_from(legend.len()).unwrap_or(u16::MAX);
    let [above, plot] = Layout::vertical([Constraint::Length(rows), Constraint::Fill(1)]).areas(inner);
    frame.render_widget(Paragraph::new(legend), above);
    let sets = lines.iter().enumerate().map(|(at, (_, course))| {
        Dataset::default().marker(Marker::Braille).graph_type(GraphType::Line).style(style(at)).data(course)
    });
    let axis = |bounds: [f64; 2], labels: [String; 2]| Axis::default().bounds(bounds).labels(labels);
    // The name of the x axis is in its first label; as a title it would be drawn over the curves.
    let steps = [format!("step {:.0}", x[0]), format!("{:.0}", x[1])];
    let chart = Chart::new(sets.collect()).legend_position(None).x_axis(axis(x, steps)).y_axis(axis(y, y.map(short)));
    frame.render_widget(chart, plot);
}

fn style(line: usize) -> Style {
    Style::new().fg(COLOURS[line % COLOURS.len()])
}

/// Names of lines in their colours, as many per row as fit.
fn legend<'a>(names: &[&'a str], width: u16) -> Vec<Line<'a>> {
    let mut rows: Vec<Line<'a>> = Vec::new();
    for (at, name) in names.iter().enumerate() {
        let entry = [Span::styled("━━ ", style(at)), Span::raw(*name), Span::raw("  ")];
        let needed: usize = 3 + name.chars().count();
        match rows.last_mut() {
            Some(row) if row.width() + needed <= usize::from(width) => row.spans.extend(entry),
            _ => rows.push(Line::from_iter(entry)),
        }
    }
    rows
}
