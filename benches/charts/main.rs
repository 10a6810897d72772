//! Draws the figures of the documents from committed records: `cargo run --release --example charts` writes
//! `docs/figures`. The test fails if a file there differs from a fresh drawing.
//!
//! - `record`: rows of `benches/record`
//! - `figures`: the figures by name; `bars`: horizontal bar charts; `pair`: MAPL's comparisons of one pair
//! - `file`: an SVG file per theme, and all figures as one HTML fragment for the front page of `cargo doc`

mod bars;
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
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

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
