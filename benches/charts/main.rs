//! Draws the figures of the documents from committed records: `cargo run --release --example charts` writes
//! `docs/figures`. The tests fail if a committed figure or table differs from a newly generated one.
//!
//! - `record`: rows of `benches/record`; `experiments`: recorded sweeps, with their tables in
//!   `benches/experiments/README.md`
//! - `figures`: the figures by name; `bars`: horizontal bar charts; `dots`: dots with intervals; `pair`: MAPL's
//!   comparisons of one pair
//! - `file`: an SVG file per theme, and all figures as one HTML fragment for the front page of `cargo doc`

mod bars;
mod dots;
mod experiments;
mod figures;
mod file;
mod pair;
mod record;

use std::error::Error;
use std::path::Path;

/// Files of `docs/figures`: name and content.
fn drawn(root: &Path) -> Result<Vec<(String, String)>, Box<dyn Error>> {
    let figures = figures::all(&root.join("benches/record"))?;
    let mut files = Vec::new();
    for (name, svg) in &figures {
        files.push((format!("{name}-light.svg"), file::svg_file(svg, file::Theme::Light)));
        files.push((format!("{name}-dark.svg"), file::svg_file(svg, file::Theme::Dark)));
    }
    let front: Vec<&str> =
        figures.iter().filter(|(name, _)| figures::ON_FRONT_PAGE.contains(name)).map(|(_, svg)| svg.as_str()).collect();
    files.push(("cargo-doc.html".to_owned(), file::html_fragment(&front)));
    Ok(files)
}

fn main() -> Result<(), Box<dyn Error>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = root.join("docs/figures");
    std::fs::create_dir_all(&folder)?;
    for (name, text) in drawn(root)? {
        std::fs::write(folder.join(&name), text)?;
        println!("docs/figures/{name}");
    }
    let page = root.join(EXPERIMENTS);
    let text = with_tables(root, &std::fs::read_to_string(&page)?)?;
    std::fs::write(&page, text)?;
    println!("{EXPERIMENTS}");
    Ok(())
}

/// Page with the tables of the recorded sweeps.
const EXPERIMENTS: &str = "benches/experiments/README.md";

/// Returns the page with every table regenerated from its record. A table lies between a line
/// `<!-- table FILE -->` and the next empty line.
fn with_tables(root: &Path, page: &str) -> Result<String, Box<dyn Error>> {
    let mut page = page.to_owned();
    for sweep in experiments::SWEEPS {
        let file = sweep.file;
        let table = experiments::Sweep::read(&root.join("benches/record"), file)?.to_markdown(&sweep);
        let mark = format!("<!-- table {file} -->\n");
        let start = page.find(&mark).ok_or(format!("{EXPERIMENTS} has no line {}", mark.trim()))? + mark.len();
        let end = page[start..].find("\n\n").map_or(page.len(), |at| start + at + 1);
        page.replace_range(start..end, &table);
    }
    Ok(page)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn committed_tables_are_what_the_records_give() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let page = std::fs::read_to_string(root.join(EXPERIMENTS)).unwrap();
        let fresh = with_tables(root, &page).unwrap();
        assert!(page == fresh, "{EXPERIMENTS} is stale; run: cargo run --release --example charts");
    }

    #[test]
    fn committed_figures_are_what_the_records_give() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let folder = root.join("docs/figures");
        let mut names = BTreeSet::new();
        for (name, text) in drawn(root).unwrap() {
            let committed = std::fs::read_to_string(folder.join(&name)).unwrap_or_default();
            assert!(committed == text, "docs/figures/{name} is stale; run: cargo run --release --example charts");
            names.insert(name);
        }
        for entry in std::fs::read_dir(&folder).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            assert!(names.contains(&name), "docs/figures/{name} is not drawn by this program");
        }
    }
}
