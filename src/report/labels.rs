//! Placement of labels for numbered points. Labels neither overlap nor leave the plot; close points
//! share a label.
//!
//! ```text
//! group points by distance to the first point of each group
//! for each group:
//!     text = ranges of its numbers, such as 1–3, 5
//!     take the first free place right or left of the point: above, below, further above, ...
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

/// Text of a label and the start of its baseline.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Label {
    pub text: String,
    pub left: f64,
    pub base: f64,
}

impl Label {
    fn right(&self) -> f64 {
        self.left + CHARACTER_WIDTH * self.text.chars().count() as f64
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

/// Labels of points (number, x, y), in the order of the groups. A label without room near its
/// points is left out.
pub(super) fn place(points: &[(usize, f64, f64)], frame: &Frame) -> Vec<Label> {
    let mut groups: Vec<(Vec<usize>, f64, f64)> = Vec::new();
    for &(number, x, y) in points {
        let near = |group: &&mut (Vec<usize>, f64, f64)| {
            (group.1 - x).abs() < SHARED_DISTANCE && (group.2 - y).abs() < SHARED_DISTANCE
        };
        match groups.iter_mut().find(near) {
            Some(group) => group.0.push(number),
            None => groups.push((vec![number], x, y)),
        }
    }
    let mut labels: Vec<Label> = Vec::new();
    for (numbers, x, y) in groups {
        let text = ranges(&numbers);
        let width = CHARACTER_WIDTH * text.chars().count() as f64;
        // Right and left of the point, above it first, then further up and to_y.
        let sides = [x + 6.0, x - 6.0 - width];
        let rows = (0..4).flat_map(|step| [-5.0 - LINE_HEIGHT * f64::from(step), 13.0 + LINE_HEIGHT * f64::from(step)]);
        let mut around = rows.flat_map(|row| sides.map(|left| Label { text: text.clone(), left, base: y + row }));
        let free = |label: &Label| label.is_in(frame) && !labels.iter().any(|other| other.overlaps(label));
        labels.extend(around.find(free));
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

    #[test]
    fn close_points_share_a_label_and_labels_do_not_overlap() {
        // Two clusters, one of them at the upper right corner, and a single point next to a
        // cluster.
        let points: Vec<(usize, f64, f64)> = (1..=6)
            .map(|n| (n, 100.0 + n as f64, 50.0))
            .chain((7..=9).map(|n| (n, 199.0, 1.0 + n as f64)))
            .chain([(10, 120.0, 50.0), (11, 100.0, 52.0)])
            .collect();
        let labels = place(&points, &FRAME);
        let texts: Vec<&str> = labels.iter().map(|label| label.text.as_str()).collect();
        assert_eq!(texts, ["1–6, 11", "7–9", "10"]);
        for (at, label) in labels.iter().enumerate() {
            assert!(label.is_in(&FRAME), "{label:?}");
            assert!(labels[..at].iter().all(|other| !other.overlaps(label)), "{label:?}");
        }
    }

    #[test]
    fn a_label_without_room_is_left_out() {
        let narrow = Frame { right: 12.0, ..FRAME };
        assert_eq!(place(&[(1234, 6.0, 50.0)], &narrow), []);
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
