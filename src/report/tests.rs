//! Properties of every page: well formed, escaped, self-contained, without broken numbers.

use super::page::{Block, Page, Section, Table};
use super::summary::{AccuracyPoint, Count, DataTable, Fact, NamedText, Point, RunSummary};
use super::svg::{Bar, BarChart, BarSeries, LineChart, ReferenceLine, Series};
use super::*;
use html::{has_no_broken_number, well_formed};

#[path = "../../tests/common/html.rs"]
pub(super) mod html;

fn run(name: &str, accuracy: f64) -> RunSummary {
    let count = |p: f64| Count { correct: (600.0 * p) as u64, ties: 3, total: 600 };
    RunSummary {
        name: name.into(),
        semantic: count(0.99),
        intra: count(accuracy),
        inter: count(accuracy / 2.0),
        steps: 400,
        seconds: 71.25,
        loss: (1..=400).map(|s| Point { step: s, value: (2.0 - accuracy) / (1.0 + s as f64 / 90.0) }).collect(),
        accuracy: (0..=4)
            .map(|i| AccuracyPoint { step: 100 * i, semantic: 0.5 + 0.1 * i as f64, intra: accuracy, inter: 0.4 })
            .collect(),
    }
}

fn summary() -> QuickstartSummary {
    let text = |caption: &str, text: &str| NamedText { caption: caption.into(), text: text.into() };
    QuickstartSummary {
        seconds: 301.4,
        runs: vec![run("reward-base", 0.58), run("reward-mapl", 0.9), run("dpo-base", 0.52), run("dpo-mapl", 0.78)],
        data: vec![DataTable {
            caption: "Comparisons".into(),
            header: vec!["kind".into(), "train".into(), "test".into()],
            rows: vec![vec!["base".into(), "4000".into(), "600".into()]],
        }],
        examples: vec![text("A <prompt> & its \"responses\"", "The rose <b>fern</b>.\nOur moss & vine.")],
        commands: vec![text("What ran", "mapl reward --model start --train-file a.jsonl > log 2>&1")],
        environment: vec![Fact { name: "device".into(), value: "cpu, 2 threads".into() }],
        warnings: vec!["only 3 % of 'x' were < 5".into()],
    }
}

#[test]
fn the_quickstart_report_is_well_formed_and_self_contained() {
    let html = quickstart_report(&summary());
    let text = well_formed(&html);
    has_no_broken_number(&html);
    for outside in ["http", "//", "<script", "<link", "@import", "url(", "src="] {
        assert!(!html.contains(outside), "refers to something outside: {outside}");
    }
    for heading in ["Warnings", "Results", "Curves", "Data", "Commands", "Environment"] {
        assert!(html.contains(&format!("<h2>{heading}</h2>")), "{heading}");
    }
    for expected in ["reward-mapl", "0.900", "+0.320", "540", "mapl reward --model", "cpu, 2 threads", "only 3 %"] {
        assert!(text.contains(expected), "{expected} is missing");
    }
    // One bar chart, a loss chart per method (two), and an accuracy chart per measure (three).
    assert_eq!(html.matches("<svg").count(), 6);
    assert_eq!(html.matches("aria-label").count(), 6 + html.matches("class=\"scroll\"").count());
    assert!(html.contains("prefers-color-scheme: dark") && html.contains("name=\"viewport\""));
}

#[test]
fn text_from_outside_is_escaped_everywhere() {
    let evil = "</pre></style><script>alert(\"1\")</script>&'\u{0}\u{1b}";
    let mut all = summary();
    all.runs.iter_mut().for_each(|r| r.name = evil.into());
    all.data[0] = DataTable { caption: evil.into(), header: vec![evil.into()], rows: vec![vec![evil.into(); 3]] };
    all.examples = vec![NamedText { caption: evil.into(), text: evil.into() }];
    all.commands = all.examples.clone();
    all.environment = vec![Fact { name: evil.into(), value: evil.into() }];
    all.warnings = vec![evil.into()];
    let html = quickstart_report(&all);
    well_formed(&html);
    assert!(!html.contains("<script") && !html.contains('\u{0}') && !html.contains('\u{1b}'));
    let page = Page {
        title: evil.into(),
        lead: evil.into(),
        sections: vec![Section {
            heading: evil.into(),
            blocks: vec![Block::List(vec![evil.into()]), Block::Paragraph(evil.into())],
        }],
    };
    let html = page.to_html();
    well_formed(&html);
    assert!(!html.contains("<script") && html.matches("&lt;script").count() == 6, "{html}");
}

#[test]
fn missing_numbers_and_empty_runs_leave_gaps() {
    let nothing = quickstart_report(&QuickstartSummary { seconds: f64::NAN, ..Default::default() });
    well_formed(&nothing);
    has_no_broken_number(&nothing);
    let mut broken = summary();
    for run in &mut broken.runs {
        run.seconds = f64::INFINITY;
        run.inter = Count::default();
        run.loss.iter_mut().step_by(3).for_each(|p| p.value = f64::NAN);
        run.loss[1].value = f64::MAX;
        run.accuracy.iter_mut().for_each(|p| (p.intra, p.inter) = (f64::NAN, f64::NEG_INFINITY));
    }
    let html = quickstart_report(&broken);
    well_formed(&html);
    has_no_broken_number(&html);
    assert!(html.contains("no values"), "the chart without a value says so");
    assert!(html.contains("<td class=\"number\">–</td>"));
}

fn line(points: Vec<(f64, f64)>) -> LineChart {
    LineChart {
        title: "t".into(),
        x: Axis::new("time", "s"),
        y: Axis::new("share", "%").within(0.0, 100.0),
        series: vec![Series { name: "one".into(), style: 9, points }],
        reference: Some(ReferenceLine { value: 50.0, label: "half".into() }),
    }
}

#[test]
fn a_line_chart_places_its_points_and_breaks_at_gaps() {
    let svg = line(vec![(0.0, 0.0), (10.0, 100.0), (20.0, f64::NAN), (30.0, 50.0), (40.0, 50.0)]).to_svg();
    let text = well_formed(&svg);
    assert!(text.contains("time (s)") && text.contains("share (%)") && text.contains("half") && text.contains("one"));
    // The plot area is 62..446 by 46..256; style 9 is style 1.
    assert!(svg.contains(r#"<path class="line s1" d="M62.0 256.0L158.0 46.0M350.0 151.0L446.0 151.0"/>"#), "{svg}");
    let alone = line(vec![(0.0, f64::NAN), (1.0, 50.0), (2.0, f64::NAN)]).to_svg();
    assert_eq!(alone.matches("<circle").count(), 1);
}

#[test]
fn long_curves_are_thinned_to_means() {
    let points: Vec<_> = (0..4000).map(|i| (i as f64, if i % 2 == 0 { 0.0 } else { 100.0 })).collect();
    let svg = line(points).to_svg();
    assert!(svg.len() < 12_000, "{}", svg.len());
    let path = svg.split("d=\"").nth(1).unwrap().split('"').next().unwrap();
    assert_eq!(path.matches(['M', 'L']).count(), 400);
    // Every run of ten points has as many zeros as hundreds, so its mean is in the middle of the
    // plot.
    assert!(path.split(['M', 'L']).skip(1).all(|p| p.ends_with(" 151.0")), "{path}");
}

#[test]
fn a_bar_chart_draws_bars_whiskers_and_missing_values() {
    let bar = |value: f64| Bar { value, interval: Some((value - 0.1, value + 0.1)) };
    let chart = BarChart {
        title: "bars".into(),
        categories: vec!["a".into(), "b".into()],
        y: Axis::new("accuracy", "").within(0.0, 1.0),
        series: vec![
            BarSeries { name: "first".into(), style: 0, bars: vec![bar(0.5), Bar { value: f64::NAN, interval: None }] },
            BarSeries { name: "second".into(), style: 1, bars: vec![bar(1.0)] },
        ],
        reference: None,
    };
    let svg = chart.to_svg();
    let text = well_formed(&svg);
    has_no_broken_number(&svg);
    assert_eq!(svg.matches("class=\"whisker\"").count(), 2);
    assert_eq!(text.matches('–').count(), 2, "two of the four bars have no value");
    // Half of the plot height of 210, from the middle to the base line.
    assert!(svg.contains(r#"y="151.0" width="46.0" height="105.0"/>"#), "{svg}");
    assert!(text.contains("0.50") && text.contains("1.00"));
}

#[test]
fn tables_fill_short_rows_and_mark_headers() {
    let table = Table {
        caption: String::new(),
        header: vec!["a".into(), "b".into(), "c".into()],
        rows: vec![vec!["1".into()]],
        numeric: vec![2],
    };
    let html = table.to_html();
    well_formed(&html);
    assert!(html.contains(r#"<th scope="row">1</th><td></td><td class="number"></td>"#), "{html}");
    assert!(html.contains(r#"<th scope="col" class="number">c</th>"#), "{html}");
}

#[test]
fn columns_without_a_value_are_left_out() {
    let text = |cells: &[&str]| cells.iter().map(|cell| (*cell).to_owned()).collect::<Vec<_>>();
    let table = Table {
        caption: String::new(),
        header: text(&["a", "b", "c", "d"]),
        rows: vec![text(&["x", "–", "–", "1"]), text(&["y", "–", "2", "–"])],
        numeric: vec![1, 3],
    };
    let kept = table.without_empty_columns("–");
    assert_eq!(kept.header, ["a", "c", "d"]);
    assert_eq!(kept.rows, [["x", "–", "1"], ["y", "2", "–"]]);
    assert_eq!(kept.numeric, [2]);
}

#[test]
fn the_terminal_table_is_aligned() {
    let mut all = summary();
    all.runs.truncate(2);
    all.runs[0].inter = Count::default();
    let expected = "\
| run         | semantic | intra | inter | steps | seconds |
|-------------|---------:|------:|------:|------:|--------:|
| reward-base |    0.990 | 0.580 |     – |   400 |    71.2 |
| reward-mapl |    0.990 | 0.900 | 0.450 |   400 |    71.2 |
";
    assert_eq!(quickstart_table(&all), expected);
}

#[test]
fn decimals_have_no_negative_zero_and_no_broken_number() {
    assert_eq!([decimal(-0.0004, 3), decimal(-0.0006, 3), decimal(2.0, 0)], ["0.000", "-0.001", "2"]);
    assert_eq!([decimal(f64::NAN, 2), decimal(f64::NEG_INFINITY, 2)], ["–", "–"]);
}
