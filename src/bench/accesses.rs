//! Counts of memory accesses as text, with the source lines that cost most.

use std::fmt::Write as _;

use crate::backend::kernels::emulator::accesses::{Counts, LaunchAccesses, Place, SECTOR_BYTES};

/// Adds up the launches of each kernel, in the order of their first launch. Returns the number of launches
/// with each sum.
pub(crate) fn by_kernel(launches: &[LaunchAccesses]) -> Vec<(usize, LaunchAccesses)> {
    let mut kernels: Vec<(usize, LaunchAccesses)> = Vec::new();
    for launch in launches {
        let Some((count, known)) = kernels.iter_mut().find(|(_, known)| known.kernel == launch.kernel) else {
            kernels.push((1, launch.clone()));
            continue;
        };
        *count += 1;
        for place in &launch.places {
            let same = |old: &&mut Place| {
                (&old.file, old.line, old.shared, old.store, old.bytes)
                    == (&place.file, place.line, place.shared, place.store, place.bytes)
            };
            match known.places.iter_mut().find(same) {
                Some(old) => old.counts += place.counts,
                None => known.places.push(place.clone()),
            }
        }
    }
    kernels
}

/// Sum over shared or over global memory of all launches.
pub(crate) fn total(launches: &[LaunchAccesses], shared: bool) -> Counts {
    let mut sum = Counts::default();
    launches.iter().for_each(|launch| sum += launch.total(shared));
    sum
}

fn shared_text(c: &Counts) -> String {
    format!("{} accesses, {} passes, {} bank conflicts", c.accesses, c.units, c.units - c.fewest)
}

fn global_text(c: &Counts) -> String {
    format!(
        "{} accesses, {} sectors ({} bytes), fewest {}, {} accesses uncoalesced",
        c.accesses,
        c.units,
        c.units * SECTOR_BYTES,
        c.fewest,
        c.wide
    )
}

/// Formats the accesses of a call's kernels, by source line.
pub(crate) fn text(of: &str, launches: &[LaunchAccesses]) -> String {
    let mut text = format!("accesses of {of}:");
    for (count, launch) in by_kernel(launches) {
        let launched = if count == 1 { "1 launch".to_owned() } else { format!("{count} launches") };
        let _ = write!(text, "\n  {} ({launched})", launch.kernel);
        if launch.places.is_empty() {
            text += "\n    none that is counted (kernels/README.md, \"Counting accesses\")";
        }
        for (shared, name) in [(true, "shared"), (false, "global")] {
            let counts = launch.total(shared);
            if counts.accesses > 0 {
                let words = if shared { shared_text(&counts) } else { global_text(&counts) };
                let _ = write!(text, "\n    {name}  {words}");
            }
        }
        for place in &launch.places {
            let what = match (place.line, place.store) {
                (0, true) => "TMA stores, by rows".to_owned(),
                (0, false) => "TMA loads, by rows".to_owned(),
                (line, store) => format!(
                    "{}:{line} {} of {} bytes, {}",
                    place.file,
                    if store { "store" } else { "load" },
                    place.bytes,
                    if place.shared { "shared" } else { "global" }
                ),
            };
            let words = if place.shared { shared_text(&place.counts) } else { global_text(&place.counts) };
            let _ = write!(text, "\n      {what}: {words}");
        }
    }
    text
}
