//! Figures as SVG files and as an HTML fragment. Colours and chart styles are those of the report pages. Text is
//! larger than on these pages, because a README scales figures down.

/// Colours of a figure.
#[derive(Clone, Copy)]
pub enum Theme {
    Light,
    Dark,
}

/// `:root` rules of the report pages: light, then dark.
const THEMES: &str = include_str!("../../src/report/theme.css");
const CHART: &str = include_str!("../../src/report/chart.css");
const FIGURE: &str = include_str!("figure.css");

impl Theme {
    /// Variables of the theme, such as `--back: #ffffff; ...`.
    fn variables(self) -> String {
        let blocks: Vec<&str> = THEMES.split("--back").skip(1).collect();
        let block = match self {
            Theme::Light => blocks[0],
            Theme::Dark => blocks[1],
        };
        let declarations = block.split('}').next().unwrap_or_default();
        format!("--back{}", declarations.split_whitespace().collect::<Vec<_>>().join(" "))
    }
}

/// Returns a figure as an SVG file in the colours of `theme`.
pub fn svg_file(svg: &str, theme: Theme) -> String {
    let style = format!("\n<style>\n.chart {{ {} }}\n{CHART}{FIGURE}</style>\n", theme.variables());
    let panel = r#"<rect class="panel" width="100%" height="100%" rx="8"/>"#;
    let (open, rest) = svg.split_once('>').unwrap_or((svg, ""));
    let open = open.replacen("<svg", r#"<svg xmlns="http://www.w3.org/2000/svg""#, 1);
    format!("{open}>{style}{panel}\n{}\n", lines(rest))
}

/// Returns all figures as inline HTML with one style sheet, for the front page of `cargo doc`. The theme follows
/// rustdoc's. The HTML has no empty lines, because an empty line would end the HTML block in Markdown.
pub fn html_fragment(svgs: &[&str]) -> String {
    let dark = r#":root[data-theme="dark"] .mapl-figures .chart, :root[data-theme="ayu"] .mapl-figures .chart"#;
    let back = "--back: var(--main-background-color)";
    let mut out = String::from("<div class=\"mapl-figures\">\n<style>\n");
    out +=
        ".mapl-figures { display: flex; flex-wrap: wrap; align-items: flex-start; gap: 16px 24px; margin: 16px 0; }\n";
    out += &format!(".mapl-figures .chart {{ {} }}\n", Theme::Light.variables());
    out += &format!("{dark} {{ {} }}\n", Theme::Dark.variables());
    out += CHART;
    out += FIGURE;
    out += &format!(".mapl-figures .chart {{ {back}; flex: 1 1 320px; max-width: 440px; }}\n");
    out += ".mapl-figures .chart:first-of-type { flex-basis: 100%; max-width: 520px; margin-right: max(0px, 100% - 520px); }\n</style>\n";
    for svg in svgs {
        out += &lines(svg);
        out.push('\n');
    }
    out + "</div>\n"
}

/// Puts each element on a separate line, for readable diffs.
fn lines(svg: &str) -> String {
    svg.replace("/><", "/>\n<").replace("</text><", "</text>\n<").replace("</desc><", "</desc>\n<")
}
