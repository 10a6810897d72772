//! Rows as a table on a terminal.

use crate::bench::row::Row;

/// Head of the table.
pub(super) fn header() -> String {
    format!(
        "{:<18} {:<12} {:<14} {:>10} {:>13} {:>8} {:>8} {:>6} {:>6}  shape",
        "op", "variant", "model", "median us", "p20-p80", "GB/s", "TFLOP/s", "share", "error"
    )
}

/// A row as text for a terminal.
pub(super) fn line(row: &Row) -> String {
    let start = format!("{:<18} {:<12} {:<14}", row.op, row.variant, row.model);
    let (Some(median), Some(p20), Some(p80)) = (row.median_us, row.p20_us, row.p80_us) else {
        let status = format!("{:?}", row.status).to_lowercase();
        return format!("{start} {status}: {} ({} {})", row.note, row.layer, row.shape);
    };
    let share = row.share.map_or("-".into(), |share| format!("{:.0}%", 100.0 * share));
    format!(
        "{start} {median:>10.2} {:>13} {:>8.1} {:>8.3} {share:>6} {:>6.2}  {} {}",
        format!("{p20:.1}-{p80:.1}"),
        row.gb_per_s.unwrap_or(0.0),
        row.tflop_per_s.unwrap_or(0.0),
        row.error_share.unwrap_or(0.0),
        row.layer,
        row.shape
    )
}
