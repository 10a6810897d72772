//! Units of a model whose weights are sharded over ranks, with their ranges in the layout, on each rank and in
//! the windows.
//!
//! ```text
//! unit      First: embedding, positions; the head too if it is tied
//!           Layer(i): matrices, norms and biases of a layer
//!           Last: final norm, and the head unless it is tied
//! span      contiguous range of the layout that belongs to one unit; the spans cover the layout
//! part      each rank keeps its slice of every span, in one buffer
//! window    buffer that holds a whole unit while it is used. The layers alternate between two windows, so
//!           that the next layer can arrive during a layer. First and Last share one window, unless the head
//!           is tied: then the final norm and the head need both units at once
//! ```
//!
//! Weights and gradients use the same ranges.

use std::ops::Range;

use super::layout::{ALIGN, Layout};
use super::part::{Part, Piece};
use crate::ranks::collective::shard_of;

/// Part of a model that is gathered, used and freed as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    First,
    Layer(usize),
    Last,
}

/// A range of the layout that belongs to one unit.
#[derive(Clone, Debug)]
pub(crate) struct Span {
    pub unit: Unit,
    pub range: Range<usize>,
    /// Index of the span's first element in the windows.
    pub window: usize,
}

/// Spans, parts and windows of all units, the same on every rank.
#[derive(Clone, Debug)]
pub(crate) struct Units {
    spans: Vec<Span>,
    /// Elements that each rank keeps.
    parts: Vec<Part>,
    /// Number of elements of all windows.
    windows: usize,
    /// Ranges of the layout between tensors, which receive no gradient.
    gaps: Vec<Range<usize>>,
    tied: bool,
}

/// Number of windows for layers.
const LAYER_WINDOWS: usize = 2;

/// Maximum number of windows.
pub(crate) const WINDOWS: usize = LAYER_WINDOWS + 2;

impl Units {
    /// Units of a model, on `size` ranks.
    pub fn new(layout: &Layout, size: usize) -> Self {
        let unit_of = |slot: &super::layout::Slot| match slot.spec.layer {
            Some(layer) => Unit::Layer(layer),
            None if slot.start < layout.matrices.start => Unit::First,
            None => Unit::Last,
        };
        let (mut spans, mut gaps) = (Vec::<Span>::new(), Vec::new());
        for (i, slot) in layout.slots.iter().enumerate() {
            let (unit, range) = (unit_of(slot), slot.range());
            let end = layout.slots.get(i + 1).map_or(layout.len, |next| next.start);
            if range.end < end {
                gaps.push(range.end..end);
            }
            match spans.last_mut() {
                Some(last) if last.unit == unit => last.range.end = end,
                _ => spans.push(Span { unit, range: range.start..end, window: 0 }),
            }
        }
        let tied = layout.tied();
        let len = |unit: Unit| lengths(&spans, unit);
        let layer = (0..layout.layers.len()).map(|i| len(Unit::Layer(i))).max().unwrap_or(0);
        let (layers, first, last) = (LAYER_WINDOWS * layer, len(Unit::First), len(Unit::Last));
        let windows = layers + if tied { first + last } else { first.max(last) };
        for i in 0..spans.len() {
            let start = match spans[i].unit {
                Unit::First => layers,
                Unit::Layer(i) => i % LAYER_WINDOWS * layer,
                Unit::Last => layers + if tied { first } else { 0 },
            };
            // The spans of a unit follow each other in its window.
            spans[i].window = start + lengths(&spans[..i], spans[i].unit);
        }
        let parts = (0..size).map(|rank| part_of(&spans, rank, size)).collect();
        Self { spans, parts, windows, gaps, tied }
    }

    /// Elements that each rank keeps, by rank.
    pub fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// Number of elements of all windows.
    pub fn windows(&self) -> usize {
        self.windows
    }

    /// Index of the window of a unit.
    pub fn window_of(&self, unit: Unit) -> usize {
        match unit {
            Unit::Layer(i) => i % LAYER_WINDOWS,
            Unit::First => LAYER_WINDOWS,
            Unit::Last => LAYER_WINDOWS + usize::from(self.tied),
        }
    }

    /// Unit of a range of the layout, and the range's first element in the windows. Panics if the range is in
    /// several units, which is a bug.
    pub fn place(&self, range: &Range<usize>) -> (Unit, usize) {
        let after = self.spans.partition_point(|span| span.range.start <= range.start);
        let span = &self.spans[after.saturating_sub(1)];
        assert!(range.end <= span.range.end, "{range:?} is not within {span:?}");
        (span.unit, span.window + range.start - span.range.start)
    }

    /// The spans of a unit.
    pub fn spans(&self, unit: Unit) -> impl Iterator<Item = &Span> {
        self.spans.iter().filter(move |span| span.unit == unit)
    }

    /// Ranges of a span's slices in the windows, by rank.
    pub fn slices(&self, span: &Span) -> Vec<Range<usize>> {
        let of = |rank| shard_of(span.range.len(), rank, self.parts.len());
        (0..self.parts.len()).map(of).map(|slice| span.window + slice.start..span.window + slice.end).collect()
    }

    /// Index in a rank's buffer of the first element of its slice of a span.
    pub fn own_start(&self, span: &Span, rank: usize) -> usize {
        self.parts[rank].within(&span.range).next().map_or(0, |overlap| overlap.at)
    }

    /// Ranges of the windows between the tensors of a unit.
    pub fn gaps(&self, unit: Unit) -> impl Iterator<Item = Range<usize>> {
        let placed = self.gaps.iter().map(|gap| (gap.len(), self.place(gap)));
        placed.filter(move |(_, (of, _))| *of == unit).map(|(len, (_, start))| start..start + len)
    }
}

/// Number of elements of the spans of a unit.
fn lengths(spans: &[Span], unit: Unit) -> usize {
    spans.iter().filter(|span| span.unit == unit).map(|span| span.range.len()).sum()
}

/// Slices of a rank in one buffer, aligned as tensors are.
fn part_of(spans: &[Span], rank: usize, size: usize) -> Part {
    let (mut pieces, mut len) = (Vec::new(), 0_usize);
    for Span { range, .. } in spans {
        let slice = shard_of(range.len(), rank, size);
        if !slice.is_empty() {
            let at = len.next_multiple_of(ALIGN);
            len = at + slice.len();
            pieces.push(Piece { range: range.start + slice.start..range.start + slice.end, at });
        }
    }
    Part::of_pieces(pieces, len)
}

#[cfg(test)]
mod tests {
    use super::super::config::{Head, ModelConfig};
    use super::super::presets;
    use super::*;

    #[test]
    fn spans_cover_the_layout_and_units_do_not_share_a_place_at_one_time() {
        for (preset, head) in [("llama-tiny", Head::LanguageModel), ("llama-tiny", Head::Reward)] {
            for tied in [true, false] {
                let config = ModelConfig { head, tied, ..presets::config(preset).unwrap() };
                let layout = Layout::new(&config);
                for size in [1, 2, 3, 7] {
                    let units = Units::new(&layout, size);
                    let mut next = 0;
                    for span in &units.spans {
                        assert_eq!(span.range.start, next);
                        next = span.range.end;
                        assert!(span.window + span.range.len() <= units.windows());
                        assert!(span.range.start % ALIGN == 0 && span.window % ALIGN == 0);
                    }
                    assert_eq!(next, layout.len);
                    // Every element is on one rank.
                    let held: usize = units.parts().iter().flat_map(Part::pieces).map(|p| p.range.len()).sum();
                    assert_eq!(held, layout.len);
                    // Tensors that are needed at the same time must not overlap in the windows. These are the
                    // tensors of a layer, and the final norm with the head.
                    let place = |range: &Range<usize>| units.place(range).1..units.place(range).1 + range.len();
                    let head = layout.lm_head.as_ref().or(layout.score.as_ref()).unwrap();
                    let mut together = vec![vec![place(&layout.final_norm), place(head)]];
                    for layer in &layout.layers {
                        let of = [&layer.input_norm, &layer.qkv, &layer.output, &layer.post_norm, &layer.down];
                        together.push(of.map(place).to_vec());
                    }
                    for mut places in together {
                        places.sort_by_key(|place| place.start);
                        assert!(places.windows(2).all(|pair| pair[0].end <= pair[1].start), "{places:?}");
                    }
                    let windows: Vec<usize> = (0..2).map(|i| place(&layout.layers[i].qkv).start).collect();
                    assert!(windows[0] != windows[1], "the next layer arrives during a layer");
                }
            }
        }
    }
}
