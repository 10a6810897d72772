//! Placement of labels for points: names of some points, numbers of the others. Labels neither
//! overlap nor leave the plot; close points with numbers share a label.
//!
//! ```text
//! for each named point: text = its name
//! then group the other points by distance to the first point of each group
//! for each group: text = ranges of its numbers, such as 1–3, 5
//! for each text:
//!     take the first free place right of, left of or around the point: above, below, further above, ...
//!     at first a place that covers no point, then any place that covers no label
//!     leave the label out if no place is free
//! ```

use std::fmt::Write;

/// Distance in x and in y below which points share a label.
const SHARED_DISTANCE: f64 = 12.0;
/// Estimated width of a character, and height of a line.
const CHARACTER_WIDTH: f64 = 7.0;
const LINE_HEIGHT: f64 = 12.0;
/// Maximum number of characters of a label; the table next to the plot lists all numbers.
const MAX_CHARACTERS: usize = 24;

/// Area in which labels may be placed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Frame {
    pub left: f64,
    pub top: f64,
    pub right: f64,
    pub bottom: f64,
}

/// Number of rows above a point, and below it, in which labels are tried.
const ROWS: u32 = 6;
const ROWS_OF_NAMES: u32 = 9;
/// Size of a point's mark, which labels avoid.
const MARK: f64 = 4.0;

/// Point to label.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct LabelledPoint {
    pub number: usize,
    /// Name to show instead of the number.
    pub name: Option<String>,
    pub x: f64,
    pub y: f64,
}

/// Text of a label and the start of its baseline.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Label {
    pub text: String,
    pub left: f64,
    pub base: f64,
}

impl Label {
    /// Label whose text ends at `right`.
    pub(super) fn ending_at(right: f64, base: f64, text: &str) -> Self {
        Self { left: right - width(text), base, text: text.to_owned() }
    }

    pub(super) fn right(&self) -> f64 {
        self.left + width(&self.text)
    }

    /// Whether the label is so far above or below the point that a line should connect them.
    pub(super) fn is_far_from(&self, y: f64) -> bool {
        !(-LINE_HEIGHT - 6.0..=2.0 * LINE_HEIGHT + 2.0).contains(&(self.base - y))
    }

    fn covers(&self, x: f64, y: f64) -> bool {
        self.left - MARK < x && x < self.right() + MARK && self.base - LINE_HEIGHT < y && y < self.base + MARK
    }

    fn is_in(&self, frame: &Frame) -> bool {
        frame.left <= self.left
            && self.right() <= frame.right
            && frame.top + LINE_HEIGHT <= self.base
            && self.base <= frame.bottom
    }

    fn overlaps(&self, other: &Self) -> bool {
        self.left < other.right() && other.left < self.right() && (self.base - other.base).abs() < LINE_HEIGHT
    }
}

fn width(text: &str) -> f64 {
    CHARACTER_WIDTH * text.chars().count() as f64
}

/// Places labels for points and returns each with the position of its point, names first. The labels avoid those
/// in `taken`. A label without room near its points is left out.
pub(super) fn place(points: &[LabelledPoint], taken: &[Label], frame: &Frame) -> Vec<(Label, f64, f64)> {
    let mut groups: Vec<(Vec<usize>, f64, f64)> = Vec::new();
    for point in points.iter().filter(|point| point.name.is_none()) {
        let near = |group: &&mut (Vec<usize>, f64, f64)| {
            (group.1 - point.x).abs() < SHARED_DISTANCE && (group.2 - point.y).abs() < SHARED_DISTANCE
        };
        match groups.iter_mut().find(near) {
            Some(group) => group.0.push(point.number),
            None => groups.push((vec![point.number], point.x, point.y)),
        }
    }
    let named = points.iter().filter_map(|p| Some((p.name.clone()?, p.x, p.y, ROWS_OF_NAMES)));
    let numbered = groups.iter().map(|(numbers, x, y)| (ranges(numbers), *x, *y, ROWS));
    let mut labels: Vec<(Label, f64, f64)> = Vec::new();
    for (text, x, y, rows) in named.chain(numbered) {
        // Right and left of the point and around it, above it first, then below it, further above, and so on.
        let middle = (x - width(&text) / 2.0).min(frame.right - width(&text)).max(frame.left);
        let sides = [x + 6.0, x - 6.0 - width(&text), middle];
        let rows = (0..rows).flat_map(|row| [-5.0 - LINE_HEIGHT * f64::from(row), 13.0 + LINE_HEIGHT * f64::from(row)]);
        let around: Vec<Label> =
            rows.flat_map(|row| sides.map(|left| Label { text: text.clone(), left, base: y + row })).collect();
        let free = |label: &&Label| {
            let mut others = taken.iter().chain(labels.iter().map(|(label, ..)| label));
            label.is_in(frame) && !others.any(|other| other.overlaps(label))
        };
        let clear = |label: &&Label| free(label) && !points.iter().any(|p| label.covers(p.x, p.y));
        let found = around.iter().find(clear).or_else(|| around.iter().find(free)).cloned();
        labels.extend(found.map(|label| (label, x, y)));
    }
    labels
}

/// Text of ascending numbers, such as `1–3, 5`.
fn ranges(numbers: &[usize]) -> String {
    let mut out = String::new();
    let mut rest = numbers;
    while let Some(&first) = rest.first() {
        let run = rest.iter().enumerate().take_while(|(at, number)| **number == first + at).count();
        let last = rest[run - 1];
        rest = &rest[run..];
        let mut part = if out.is_empty() { String::new() } else { ", ".to_owned() };
        let _ = match run {
            1 => write!(part, "{first}"),
            2 => write!(part, "{first}, {last}"),
            _ => write!(part, "{first}–{last}"),
        };
        if out.chars().count() + part.chars().count() > MAX_CHARACTERS {
            out.push_str(", …");
            break;
        }
        out += &part;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const FRAME: Frame = Frame { left: 0.0, top: 0.0, right: 200.0, bottom: 100.0 };

    fn numbered(number: usize, x: f64, y: f64) -> LabelledPoint {
        LabelledPoint { number, name: None, x, y }
    }

    /// Texts of the labels, after a check that they are in the frame and do not overlap.
    fn texts(labels: &[(Label, f64, f64)]) -> Vec<&str> {
        for (at, (label, ..)) in labels.iter().enumerate() {
            assert!(label.is_in(&FRAME), "{label:?}");
            assert!(labels[..at].iter().all(|(other, ..)| !other.overlaps(label)), "{label:?}");
        }
        labels.iter().map(|(label, ..)| label.text.as_str()).collect()
    }

    #[test]
    fn close_points_share_a_label_and_labels_do_not_overlap() {
        // Two clusters, one of them at the upper right corner, and a single point next to a
        // cluster.
        let points: Vec<LabelledPoint> = (1..=6)
            .map(|n| numbered(n, 100.0 + n as f64, 50.0))
            .chain((7..=9).map(|n| numbered(n, 199.0, 1.0 + n as f64)))
            .chain([numbered(10, 120.0, 50.0), numbered(11, 100.0, 52.0)])
            .collect();
        assert_eq!(texts(&place(&points, &[], &FRAME)), ["1–6, 11", "7–9", "10"]);
    }

    #[test]
    fn names_come_first_and_avoid_points_and_other_labels() {
        // Three named points within a few units, among numbered points.
        let names = ["linear_fwd", "linear_bwd_weight", "attention_fwd"];
        let mut points: Vec<LabelledPoint> = (1..=4).map(|n| numbered(n, 90.0 + 6.0 * n as f64, 44.0)).collect();
        points.extend(names.iter().enumerate().map(|(at, name)| LabelledPoint {
            name: Some((*name).to_owned()),
            ..numbered(5 + at, 100.0 + 2.0 * at as f64, 50.0)
        }));
        let taken = Label { text: "GEMM".into(), left: 106.0, base: 45.0 };
        let labels = place(&points, std::slice::from_ref(&taken), &FRAME);
        assert_eq!(texts(&labels)[..3], names);
        for (label, ..) in &labels[..3] {
            assert!(!label.overlaps(&taken), "{label:?}");
            assert!(!points.iter().any(|p| label.covers(p.x, p.y)), "{label:?} covers a point");
        }
        assert!(labels.iter().any(|(label, _, y)| label.is_far_from(*y)) && !labels[0].0.is_far_from(labels[0].2));
    }

    #[test]
    fn a_label_without_room_is_left_out() {
        let narrow = Frame { right: 12.0, ..FRAME };
        assert_eq!(place(&[numbered(1234, 6.0, 50.0)], &[], &narrow), []);
    }

    #[test]
    fn numbers_become_ranges_of_limited_length() {
        assert_eq!(ranges(&[1, 2, 3, 5, 8, 9]), "1–3, 5, 8, 9");
        let odd: Vec<usize> = (0..40).map(|n| 2 * n + 1).collect();
        let text = ranges(&odd);
        assert!(
            text.starts_with("1, 3, 5") && text.ends_with(", …") && text.chars().count() <= MAX_CHARACTERS + 3,
            "{text}"
        );
    }
}
