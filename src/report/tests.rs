//! Tests of the report pages: every page is well formed, escaped, self-contained and without broken numbers.

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
        tokens: 123_456,
        seconds: 71.25,
        seed: 42,
        folder: name.into(),
        loss: (1..=400).map(|s| Point { step: s, value: (2.0 - accuracy) / (1.0 + s as f64 / 90.0) }).collect(),
        accuracy: (0..=4)
            .map(|i| {
                let semantic = 0.5 + 0.1 * i as f64;
                AccuracyPoint { step: 100 * i, semantic, intra: accuracy, inter: 0.4, ties: [0.0; 3] }
            })
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
    // Each of the two methods has a bar chart, three accuracy charts (one per measure) and a loss chart.
    assert_eq!(html.matches("<svg").count(), 10);
    assert_eq!(html.matches("aria-label").count(), 10 + html.matches("class=\"scroll\"").count());
    // The section starts with the lead charts. In the table, the name of every run links to its report.
    let results = html.split("<h2>Results</h2>").nth(1).unwrap();
    assert!(results.trim_start().starts_with("<div class=\"charts lead-charts\">"), "{results}");
    for name in ["reward-base", "reward-mapl", "dpo-base", "dpo-mapl"] {
        let link = format!(r#"<th scope="row"><a href="{name}/report.html">{name}</a></th>"#);
        assert!(results.contains(&link), "{name} is not linked");
    }
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
    all.runs.iter_mut().for_each(|r| r.folder = evil.into());
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
        series: vec![Series { name: "one".into(), style: 18, points }],
        reference: Some(ReferenceLine { value: 50.0, label: "half".into() }),
    }
}

#[test]
fn a_line_chart_places_its_points_and_breaks_at_gaps() {
    let svg = line(vec![(0.0, 0.0), (10.0, 100.0), (20.0, f64::NAN), (30.0, 50.0), (40.0, 50.0)]).to_svg();
    let text = well_formed(&svg);
    assert!(text.contains("time (s)") && text.contains("share (%)") && text.contains("half") && text.contains("one"));
    // The plot area is 62..446 by 46..256; style 18 is drawn as style 1.
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
    // Every chunk of ten points has as many values of 0 as of 100, so its mean is in the middle of the plot.
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
    // The bar of 0.5 covers half of the plot height of 210, from the middle to the baseline.
    assert!(svg.contains(r#"y="151.0" width="46.0" height="105.0"/>"#), "{svg}");
    assert!(text.contains("0.500") && text.contains("1.000"));
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
| run         | semantic | intra | inter | steps | ktokens | seconds |
|-------------|---------:|------:|------:|------:|--------:|--------:|
| reward-base |    0.990 | 0.580 |     – |   400 |     123 |    71.2 |
| reward-mapl |    0.990 | 0.900 | 0.450 |   400 |     123 |    71.2 |
";
    assert_eq!(quickstart_table(&all), expected);
    // With several seeds, means are followed by intervals; no line is wider than a terminal of 80 columns.
    let mut second = all.runs[1].clone();
    (second.seed, second.intra, second.steps) = (43, Count { correct: 528, ties: 0, total: 600 }, 401);
    all.runs.push(second);
    all.runs.remove(0);
    let expected = "\
| run         | semantic | intra | inter | steps | ktokens | seconds |
|-------------|---------:|------:|------:|------:|--------:|--------:|
| reward-mapl |    0.990 | 0.890 | 0.450 |   400 |     123 |    71.2 |

95 % t intervals over 2 seeds:
| run         |       semantic |          intra |          inter |
|-------------|---------------:|---------------:|---------------:|
| reward-mapl | 0.990 to 0.990 | 0.763 to 1.000 | 0.450 to 0.450 |
";
    assert_eq!(quickstart_table(&all), expected);
    assert!(expected.lines().all(|line| line.chars().count() <= 80));
}

#[test]
fn decimals_have_no_negative_zero_and_no_broken_number() {
    assert_eq!([decimal(-0.0004, 3), decimal(-0.0006, 3), decimal(2.0, 0)], ["0.000", "-0.001", "2"]);
    assert_eq!([decimal(f64::NAN, 2), decimal(f64::NEG_INFINITY, 2)], ["–", "–"]);
}

/// Returns a summary in which one method has a third run, as the quick start writes it by default.
fn with_equal_run() -> QuickstartSummary {
    let mut all = summary();
    let mut equal = run("dpo-base-equal", 0.55);
    (equal.steps, equal.folder) = (1000, "dpo-base-equal".into());
    all.runs.insert(3, equal);
    all
}

/// Returns the content of every `<svg>` element of a page, in every size.
fn charts(html: &str) -> Vec<&str> {
    html.split("<svg ").skip(1).map(|svg| svg.split("</svg>").next().unwrap()).collect()
}

/// Returns the value of a numeric attribute of the element at the start of `text`.
fn attribute(text: &str, name: &str) -> f64 {
    text.split(&format!(" {name}=\"")).nth(1).unwrap().split('"').next().unwrap().parse().unwrap()
}

/// Returns the text after `class="CLASS` for each element of a chart whose class starts with `class`.
fn elements<'a>(svg: &'a str, class: &str) -> Vec<&'a str> {
    svg.split(&format!("class=\"{class}")).skip(1).collect()
}

#[test]
fn labels_of_bars_are_outside_with_the_digits_of_the_table() {
    let html = quickstart_report(&with_equal_run());
    let results = html.split("<h2>Results</h2>").nth(1).unwrap().split("</section>").next().unwrap();
    let table = results.split("<tbody>").nth(1).unwrap().split("</tbody>").next().unwrap();
    let mut labels = 0;
    for svg in charts(results) {
        let bars: Vec<[f64; 3]> =
            elements(svg, "bar ").iter().map(|bar| ["x", "y", "width"].map(|name| attribute(bar, name))).collect();
        let shown: Vec<&str> = elements(svg, "bar-label");
        // The swatches of the legend, one per series of three bars, are `bar` elements too and come last.
        assert_eq!(bars.len(), shown.len() + shown.len() / 3, "{svg}");
        for (at, label) in shown.iter().enumerate() {
            let text = label.split(['>', '<']).nth(1).unwrap();
            assert!(table.contains(&format!(">{text}<")), "{text} is not in the table");
            let (x, y) = (attribute(label, "x"), attribute(label, "y"));
            let bar = bars.iter().find(|bar| (bar[0] + bar[2] / 2.0 - x).abs() < 0.2).unwrap();
            assert!(y < bar[1], "{text} is on its bar");
            // A label has five characters of 6.4 units each, so labels need a distance of 32 units.
            let apart = |other: &&str| (attribute(other, "x") - x).abs() >= 32.0;
            assert!(shown[..at].iter().all(apart), "{text} overlaps: {svg}");
            labels += 1;
        }
    }
    assert_eq!(labels, 3 * 5);
}

#[test]
fn legends_and_labels_cover_no_curve() {
    let html = quickstart_report(&with_equal_run()) + &line(vec![(0.0, 0.0), (40.0, 50.0)]).to_wide_svg();
    let svgs = charts(&html);
    for svg in &svgs {
        let legend = elements(svg, "legend");
        assert!(!legend.is_empty());
        // The last `line` elements are the swatches of the legend, not curves.
        let lines = elements(svg, "line ");
        for path in &lines[..lines.len().saturating_sub(legend.len())] {
            let path = path.split(" d=\"M").nth(1).unwrap().split('"').next().unwrap();
            for point in path.split(['L', 'M']) {
                let y: f64 = point.split(' ').nth(1).unwrap().parse().unwrap();
                assert!(y <= 256.0, "a curve leaves the plot: {svg}");
            }
        }
        for entry in legend {
            // A name in the legend rises at most 13 units above its baseline.
            assert!(attribute(entry, "y") - 13.0 > 256.0, "the legend covers the plot: {svg}");
        }
        for label in elements(svg, "reference-label") {
            assert!(attribute(label, "x") < 62.0, "a label covers the plot: {svg}");
        }
    }
    let sizes: Vec<&str> = svgs[svgs.len() - 2..].iter().map(|svg| svg.split('"').nth(1).unwrap()).collect();
    assert_eq!(sizes, ["chart wide", "chart narrow"]);
}

#[test]
fn a_curve_starts_at_the_first_evaluation_with_a_decision() {
    let mut all = summary();
    let first = &mut all.runs[2].accuracy[0];
    (first.semantic, first.ties) = (0.0, [1.0, 0.0, 0.0]);
    let html = quickstart_report(&all);
    let svg = charts(&html).into_iter().filter(|svg| svg.contains("Held-out accuracy, semantic")).nth(1).unwrap();
    let starts: Vec<&str> =
        elements(svg, "line ").iter().filter_map(|path| path.split(" d=\"M").nth(1)).map(|d| &d[..5]).collect();
    // Step 100 of 400 is at x = 158, step 0 at x = 62.
    assert_eq!(starts[..2], ["158.0", "62.0 "], "{svg}");
}

#[test]
fn hue_shows_the_method_and_shade_shows_mapl() {
    let html = quickstart_report(&with_equal_run());
    let styles = |method: &str| -> Vec<String> {
        let svg = charts(&html).into_iter().find(|svg| svg.contains(&format!("{method}: accuracy on"))).unwrap();
        let mut found: Vec<String> =
            elements(svg, "bar s").iter().map(|bar| bar.split('"').next().unwrap().to_owned()).collect();
        found.dedup();
        found[found.len() - 2..].to_vec()
    };
    assert_eq!(
        (styles("Reward model"), styles("DPO")),
        (vec!["8".into(), "10".into()], vec!["12".into(), "13".into()])
    );
}

/// Relative luminance of a colour such as `#0069b4` (WCAG 2.2).
fn luminance(colour: &str) -> f64 {
    let channel = |at: usize| {
        let c = f64::from(u8::from_str_radix(&colour[at..at + 2], 16).unwrap()) / 255.0;
        if c <= 0.04045 { c / 12.92 } else { ((c + 0.055) / 1.055).powf(2.4) }
    };
    0.2126 * channel(1) + 0.7152 * channel(3) + 0.0722 * channel(5)
}

fn contrast(a: &str, b: &str) -> f64 {
    let (a, b) = (luminance(a), luminance(b));
    (a.max(b) + 0.05) / (a.min(b) + 0.05)
}

#[test]
fn colours_are_told_apart_by_lightness_in_both_themes() {
    let themes: Vec<&str> = include_str!("theme.css").split("--back").skip(1).collect();
    assert_eq!(themes.len(), 2);
    for theme in themes {
        let back = theme.split(['#', ';']).nth(1).unwrap();
        let back = format!("#{back}");
        let colour = |name: &str| {
            let at = theme.find(&format!("--{name}: ")).unwrap() + name.len() + 4;
            &theme[at..at + 7]
        };
        for at in 0..8 {
            assert!(contrast(colour(&format!("c{at}")), &back) >= 3.0, "c{at} on {back}");
        }
        for hue in 0..3 {
            let shades = [0, 1, 2].map(|shade| colour(&format!("m{}", 3 * hue + shade)).to_owned());
            assert!(shades.iter().all(|shade| contrast(shade, &back) >= 3.0), "{shades:?} on {back}");
            assert!(shades.windows(2).all(|pair| contrast(&pair[0], &pair[1]) >= 1.5), "{shades:?}");
            // When printed in grey, base and MAPL still differ in lightness.
            assert!(contrast(&shades[0], &shades[2]) >= 2.5, "{shades:?}");
        }
    }
}
