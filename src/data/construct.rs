//! Applies an objective to rows read from files. Builds in memory the same rows that `mapl data
//! build` writes.

use std::collections::HashSet;

use rayon::prelude::*;

use super::mapl::{Report, build_keyed, draw_keys};
use super::options::BuildOptions;
use super::source::SourceRow;

/// Appends a number to the id of every row except the first with that id, because written groups need
/// distinct ids. Returns the number of rows with a new id, and the first new id.
pub fn make_ids_distinct(rows: &mut [SourceRow]) -> Option<(usize, String)> {
    let mut known: HashSet<String> = rows.iter().map(|row| row.group.id.clone()).collect();
    if known.len() == rows.len() {
        return None;
    }
    let (mut first, mut renamed) = (HashSet::new(), Vec::new());
    for row in rows {
        if first.insert(row.group.id.clone()) {
            continue;
        }
        let new = (2..).map(|n| format!("{}-{n}", row.group.id)).find(|new| !known.contains(new));
        row.group.id = new.unwrap_or_default();
        known.insert(row.group.id.clone());
        renamed.push(row.group.id.clone());
    }
    Some((renamed.len(), renamed.swap_remove(0)))
}

/// Builds the groups of an epoch. Rows keep file and line, so later errors still name them. A row
/// without comparisons is dropped and counted in the report. The result does not depend on the
/// number of threads.
pub fn build_rows(rows: Vec<SourceRow>, options: &BuildOptions, epoch: u64) -> (Vec<SourceRow>, Report) {
    let keys = draw_keys(rows.par_iter().map(|row| &row.group));
    let built: Vec<_> =
        rows.par_iter().zip(&keys).map(|(row, key)| build_keyed(&row.group, key, options, epoch)).collect();
    let (mut kept, mut total) = (Vec::with_capacity(rows.len()), Report::default());
    for (row, (group, report)) in rows.into_iter().zip(built) {
        total.merge(&report);
        if !group.comparisons.is_empty() {
            kept.push(SourceRow { group, ..row });
        }
    }
    (kept, total)
}
