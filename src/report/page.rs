//! Pages, sections and tables as HTML: one file with its style sheet, for phones and desktops,
//! light and dark.

use std::fmt::Write;

use super::escape;

/// Table of text cells. The first column names the row.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Table {
    /// Text above the table; empty for none.
    pub caption: String,
    /// Column names.
    pub header: Vec<String>,
    /// Rows of any length. Shorter rows are filled with empty cells; longer rows keep all their
    /// cells.
    pub rows: Vec<Vec<String>>,
    /// Columns (from 0) of numbers, aligned to the right.
    pub numeric: Vec<usize>,
}

/// Part of a section.
#[derive(Clone, Debug, PartialEq)]
pub enum Block {
    /// A paragraph.
    Paragraph(String),
    /// Items of an unordered list.
    List(Vec<String>),
    /// Highlighted paragraph.
    Warning(String),
    /// Charts, side by side if there is room. Each is an `<svg>` element from [`super::svg`], which
    /// is inserted without escaping.
    Charts(Vec<String>),
    /// Charts with captions and numbers.
    Figures(Vec<Figure>),
    /// Charts for comparison, across the whole width of the page.
    LeadCharts(Vec<String>),
    /// One figure across the whole width of the page. Its chart has two sizes, as from
    /// [`super::LineChart::to_wide_svg`].
    LeadFigure(Figure),
    /// A table.
    Table(Table),
    /// Table whose rows are linked: one address per row, relative to the page; empty for none.
    LinkedTable {
        /// The table.
        table: Table,
        /// Address of each row, or empty.
        links: Vec<String>,
    },
    /// Heading within a section.
    Heading(String),
    /// Table that a click on the heading opens.
    Folded {
        /// Heading.
        heading: String,
        /// The table.
        table: Table,
    },
    /// Preformatted text under a caption (empty for none): commands, rows, decoded examples.
    Code {
        /// Caption.
        caption: String,
        /// Text.
        text: String,
    },
}

/// Chart with a caption and its numbers.
#[derive(Clone, Debug, PartialEq)]
pub struct Figure {
    /// `<svg>` element from [`super::svg`] or `plots`, inserted without escaping.
    pub svg: String,
    /// Caption.
    pub caption: String,
    /// Numbers of the chart as text, for readers who cannot see it; collapsed.
    pub table: Table,
}

/// Heading and content of a section.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Section {
    /// Heading.
    pub heading: String,
    /// Contents.
    pub blocks: Vec<Block>,
}

/// One HTML file.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Page {
    /// Title.
    pub title: String,
    /// Paragraph below the title; empty for none.
    pub lead: String,
    /// Sections.
    pub sections: Vec<Section>,
}

impl Table {
    /// Removes columns in which every row is missing or equals `empty`. The other columns keep
    /// their alignment.
    pub fn without_empty_columns(mut self, empty: &str) -> Self {
        let is_empty = |row: &Vec<String>, column: usize| row.get(column).is_none_or(|cell| cell == empty);
        let kept: Vec<usize> =
            (0..self.header.len()).filter(|&column| !self.rows.iter().all(|row| is_empty(row, column))).collect();
        let keep = |cells: &[String]| kept.iter().filter_map(|&column| cells.get(column).cloned()).collect();
        self.header = keep(&self.header);
        self.rows = self.rows.iter().map(|row| keep(row)).collect();
        self.numeric = (0..kept.len()).filter(|&at| self.numeric.contains(&kept[at])).collect();
        self
    }

    /// Caption and aligned columns, as Markdown.
    pub fn to_text(&self) -> String {
        let rows: Vec<Vec<String>> = [&self.header].into_iter().chain(&self.rows).cloned().collect();
        format!("{}:\n\n{}", self.caption, plain_table(&rows, |column| self.numeric.contains(&column)))
    }

    /// Table as HTML, in a frame that scrolls sideways on narrow screens.
    pub fn to_html(&self) -> String {
        self.to_html_with(&[])
    }

    /// Table as HTML; the first cell of a row is a link if `links` has an address for the row.
    fn to_html_with(&self, links: &[String]) -> String {
        let columns = self.rows.iter().map(Vec::len).chain([self.header.len()]).max().unwrap_or(0);
        let class = |column: usize| if self.numeric.contains(&column) { " class=\"number\"" } else { "" };
        let name = if self.caption.is_empty() { "table" } else { &self.caption };
        let mut out =
            format!(r#"<div class="scroll" role="region" tabindex="0" aria-label="{}"><table>"#, escape(name));
        if !self.caption.is_empty() {
            let _ = write!(out, "<caption>{}</caption>", escape(&self.caption));
        }
        if !self.header.is_empty() {
            out.push_str("<thead><tr>");
            for column in 0..columns {
                let cell = self.header.get(column).map_or("", String::as_str);
                let _ = write!(out, r#"<th scope="col"{}>{}</th>"#, class(column), escape(cell));
            }
            out.push_str("</tr></thead>");
        }
        out.push_str("<tbody>");
        for (at, row) in self.rows.iter().enumerate() {
            out.push_str("<tr>");
            for column in 0..columns {
                let cell = escape(row.get(column).map_or("", String::as_str));
                let link = links.get(at).filter(|link| column == 0 && !link.is_empty());
                let cell = link.map_or(cell.clone(), |link| format!(r#"<a href="{}">{cell}</a>"#, escape(link)));
                let _ = match column {
                    0 => write!(out, r#"<th scope="row"{}>{cell}</th>"#, class(column)),
                    _ => write!(out, "<td{}>{cell}</td>", class(column)),
                };
            }
            out.push_str("</tr>");
        }
        out.push_str("</tbody></table></div>\n");
        out
    }
}

impl Figure {
    fn to_html(&self) -> String {
        let (svg, caption) = (&self.svg, escape(&self.caption));
        format!("<figure>{svg}<figcaption>{caption}</figcaption>{}</figure>\n", folded("Numbers", &self.table))
    }
}

fn folded(heading: &str, table: &Table) -> String {
    format!("<details><summary>{}</summary>{}</details>\n", escape(heading), table.to_html())
}

impl Block {
    fn write(&self, out: &mut String) {
        let _ = match self {
            Block::Paragraph(text) => writeln!(out, "<p>{}</p>", escape(text)),
            Block::Warning(text) => writeln!(out, r#"<p class="warning" role="note">{}</p>"#, escape(text)),
            Block::List(points) => {
                let items: String = points.iter().map(|p| format!("<li>{}</li>", escape(p))).collect();
                writeln!(out, "<ul>{items}</ul>")
            }
            Block::Charts(charts) => {
                let figures: String = charts.iter().map(|svg| format!("<figure>{svg}</figure>\n")).collect();
                writeln!(out, "<div class=\"charts\">\n{figures}</div>")
            }
            Block::Figures(figures) => {
                let figures: String = figures.iter().map(Figure::to_html).collect();
                writeln!(out, "<div class=\"charts\">\n{figures}</div>")
            }
            Block::LeadCharts(charts) => {
                let figures: String = charts.iter().map(|svg| format!("<figure>{svg}</figure>\n")).collect();
                writeln!(out, "<div class=\"charts lead-charts\">\n{figures}</div>")
            }
            Block::LeadFigure(figure) => writeln!(out, "<div class=\"lead-charts\">\n{}</div>", figure.to_html()),
            Block::Table(table) => write!(out, "{}", table.to_html()),
            Block::LinkedTable { table, links } => write!(out, "{}", table.to_html_with(links)),
            Block::Heading(text) => writeln!(out, "<h3>{}</h3>", escape(text)),
            Block::Folded { heading, table } => write!(out, "{}", folded(heading, table)),
            Block::Code { caption, text } => {
                if !caption.is_empty() {
                    let _ = writeln!(out, "<h3>{}</h3>", escape(caption));
                }
                writeln!(out, "<pre tabindex=\"0\"><code>{}</code></pre>", escape(text))
            }
        };
    }
}

impl Page {
    /// The complete file.
    pub fn to_html(&self) -> String {
        let title = escape(&self.title);
        let mut out = format!(
            concat!(
                "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n",
                "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n",
                "<meta name=\"color-scheme\" content=\"light dark\">\n<title>{}</title>\n<style>\n{}</style>\n</head>\n",
                "<body>\n<main>\n<h1>{}</h1>\n"
            ),
            title, STYLE, title
        );
        if !self.lead.is_empty() {
            let _ = writeln!(out, r#"<p class="lead">{}</p>"#, escape(&self.lead));
        }
        for section in &self.sections {
            let _ = writeln!(out, "<section>\n<h2>{}</h2>", escape(&section.heading));
            section.blocks.iter().for_each(|block| block.write(&mut out));
            out.push_str("</section>\n");
        }
        out.push_str("</main>\n</body>\n</html>\n");
        out
    }
}

/// Style sheet. In both themes, series colours have a contrast of at least 3 to 1 with the
/// background.
const STYLE: &str = concat!(include_str!("theme.css"), include_str!("page.css"), include_str!("chart.css"));

/// Rows as a Markdown table with aligned columns; the first row is the header. `right` says which
/// columns are aligned to the right.
pub(super) fn plain_table(rows: &[Vec<String>], right: impl Fn(usize) -> bool) -> String {
    let width = |c: usize| rows.iter().map(|r| r[c].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..rows[0].len()).map(width).collect();
    let mut out = String::new();
    for (i, row) in rows.iter().enumerate() {
        for (c, (cell, &width)) in row.iter().zip(&widths).enumerate() {
            let cell = cell.replace('|', "/");
            let _ = if right(c) { write!(out, "| {cell:>width$} ") } else { write!(out, "| {cell:<width$} ") };
        }
        out.push_str("|\n");
        if i == 0 {
            for (c, &width) in widths.iter().enumerate() {
                let _ = if right(c) {
                    write!(out, "|{}:", "-".repeat(width + 1))
                } else {
                    write!(out, "|{}", "-".repeat(width + 2))
                };
            }
            out.push_str("|\n");
        }
    }
    out
}
