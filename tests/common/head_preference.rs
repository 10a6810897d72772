//! Test cases of `head_preference` as data: batches of whole groups, their losses, and error
//! bounds. A backend that works in chunks is tested by the same cases with a small chunk size.

use mapl::backend::contract::*;
use mapl::backend::reference::Reference;
use mapl::backend::{Backend, Write};

use super::comparisons::{Preference, Table};
use super::{On, Outputs, Slot, indices, normal, runs_of};

/// A call of `head_preference`. Groups share no tokens, and each has a token that is not the source of any
/// row.
#[derive(Clone)]
pub struct Case {
    pub label: String,
    pub dims: HeadDims,
    pub reduce: Reduce,
    /// Number of rows of each sequence, by group.
    pub groups: Vec<Vec<usize>>,
    /// Number of padding rows after the last group. They form a separate sequence, and their hidden row gets
    /// no gradient.
    pub padding: usize,
    /// Comparisons and losses; `None` if the score gradient is the field `direct` of this case. The fields
    /// `score` and `direct` of the `Preference` are not used.
    pub loss: Option<Preference>,
    /// (seqs)
    pub direct: Option<Vec<f64>>,
    pub frozen: bool,
    /// Whether the call requests the statistics of rows.
    pub with_stats: bool,
    pub write: Write,
    /// (tokens, hidden)
    pub hidden: Vec<f64>,
    /// (vocab, hidden)
    pub head: Vec<f64>,
    /// (rows)
    pub source: Vec<i32>,
    /// (rows)
    pub target: Vec<i32>,
    /// (vocab, hidden) initial content of the head's gradient
    pub dhead: Vec<f64>,
}

impl Case {
    /// Builds a case with logistic losses and a reference. Adjacent sequences of a group form a pair. A group
    /// of at least four sequences also has a four-term comparison and one with detached terms. The first rows
    /// of a group's sequences share one source, like the last token of a prompt.
    pub fn new(label: &str, groups: &[&[usize]], (hidden, vocab): (usize, usize)) -> Self {
        let groups: Vec<Vec<usize>> = groups.iter().map(|group| group.to_vec()).collect();
        let (mut source, mut tokens) = (Vec::new(), 0);
        for group in &groups {
            let prompt = tokens as i32;
            tokens += 2;
            for &rows in group {
                source.extend((0..rows.min(1)).map(|_| prompt));
                source.extend((1..rows).map(|i| (tokens + i - 1) as i32));
                tokens += rows.saturating_sub(1);
            }
        }
        let rows = source.len();
        let seqs = groups.iter().map(Vec::len).sum();
        let dims = HeadDims { tokens, hidden, vocab, rows, softcap: None };
        Self {
            label: label.into(),
            dims,
            reduce: Reduce::Sum,
            padding: 0,
            loss: Some(comparisons(&groups, seqs)),
            direct: None,
            frozen: false,
            with_stats: false,
            write: Write::Overwrite,
            hidden: normal("hidden", tokens * hidden, 1.0),
            head: normal("head", vocab * hidden, 1.0 / (hidden as f64).sqrt()),
            target: indices("target", rows, vocab),
            source,
            dhead: normal("dhead", vocab * hidden, 1.0),
            groups,
        }
    }

    /// Returns a copy that `change` has modified, with `what` added to its label.
    pub fn with(&self, what: &str, change: impl FnOnce(&mut Self)) -> Self {
        let mut case = Self { label: format!("{}, {what}", self.label), ..self.clone() };
        change(&mut case);
        case
    }

    /// Returns a copy whose comparisons `change` has modified.
    pub fn with_loss(&self, what: &str, change: impl FnOnce(&mut Preference)) -> Self {
        self.with(what, |case| change(case.loss.as_mut().expect("the case has comparisons")))
    }

    /// Returns a copy with a padding sequence of `rows` rows and an empty padding sequence.
    pub fn padded(&self, rows: usize) -> Self {
        self.with(&format!("{rows} rows of padding"), |case| {
            let (hidden, token) = (case.dims.hidden, case.dims.tokens);
            case.padding = rows;
            case.dims = HeadDims { tokens: token + 1, rows: case.dims.rows + rows, ..case.dims };
            case.hidden.extend(normal("padding", hidden, 1.0));
            case.source.extend(vec![token as i32; rows]);
            case.target.extend(vec![0; rows]);
            let of_loss = case.loss.iter_mut().flat_map(|p| [&mut p.reference, &mut p.rows]).flatten();
            of_loss.chain(&mut case.direct).for_each(|numbers| numbers.extend([0.0; 2]));
        })
    }

    /// Number of sequences, padding included.
    pub fn seqs(&self) -> usize {
        self.seq_rows().len()
    }

    /// Number of rows of each sequence, padding included.
    fn seq_rows(&self) -> Vec<usize> {
        let padding = if self.padding > 0 { vec![self.padding, 0] } else { Vec::new() };
        self.groups.iter().flatten().copied().chain(padding).collect()
    }

    fn seq_offsets(&self) -> Vec<i32> {
        let ends = self.seq_rows().into_iter().scan(0, |end, rows| {
            *end += rows as i32;
            Some(*end)
        });
        std::iter::once(0).chain(ends).collect()
    }

    /// Returns the end row and end sequence (exclusive) of each group, and of the padding.
    pub fn ends(&self) -> Vec<GroupEnd> {
        let mut end = GroupEnd::default();
        let mut ends: Vec<GroupEnd> = Vec::new();
        for group in &self.groups {
            end = GroupEnd { row: end.row + group.iter().sum::<usize>(), seq: end.seq + group.len() };
            ends.push(end);
        }
        if self.padding > 0 {
            ends.push(GroupEnd { row: end.row + self.padding, seq: end.seq + 2 });
        }
        ends
    }

    /// Grouping key of each row: its source, or -1 for padding.
    fn keys(&self) -> Vec<i32> {
        let real = self.dims.rows - self.padding;
        self.source.iter().enumerate().map(|(r, &source)| if r < real { source } else { -1 }).collect()
    }

    /// Returns the groups of a chunk as a separate case over all tokens. Padding rows become
    /// ordinary rows.
    pub fn part(&self, chunk: &Chunk) -> Self {
        let (rows, seqs) = (chunk.rows.clone(), chunk.seqs.clone());
        let first = seqs.start as i32;
        let inside = |p: &Preference, c: usize| p.terms[c].first().is_some_and(|&(s, _)| seqs.contains(&(s as usize)));
        let loss = self.loss.as_ref().map(|p| {
            let kept: Vec<usize> = (0..p.terms.len()).filter(|&c| inside(p, c)).collect();
            let pick = |values: &[f64]| kept.iter().map(|&c| values[c]).collect::<Vec<f64>>();
            Preference {
                terms: kept.iter().map(|&c| p.terms[c].iter().map(|&(s, sign)| (s - first, sign)).collect()).collect(),
                kind: kept.iter().map(|&c| p.kind[c]).collect(),
                scale: pick(&p.scale),
                margin: pick(&p.margin),
                weight: pick(&p.weight),
                clip: kept.iter().flat_map(|&c| p.clip[2 * c..2 * c + 2].to_vec()).collect(),
                reference: p.reference.as_ref().map(|r| r[seqs.clone()].to_vec()),
                rows: p.rows.as_ref().map(|r| r[seqs.clone()].to_vec()),
                ..p.clone()
            }
        });
        Self {
            label: format!("{}, rows {rows:?}", self.label),
            dims: HeadDims { rows: rows.len(), ..self.dims },
            groups: vec![self.seq_rows()[seqs.clone()].to_vec()],
            padding: 0,
            loss,
            direct: self.direct.as_ref().map(|d| d[seqs].to_vec()),
            source: self.source[rows.clone()].to_vec(),
            target: self.target[rows].to_vec(),
            ..self.clone()
        }
    }

    /// Computes the error bounds of this case from its f64 results. Asserts that no loss is near a
    /// kink and no logit near 0, where the count of correct comparisons is discontinuous.
    pub fn errors(&self) -> HeadPreferenceErrors {
        let outputs = self.run(&On::new(&Reference, Precision::F64)).0;
        let largest = |name: &str| output(&outputs, name).iter().fold(0.0f64, |a, x| a.max(x.abs()));
        let mut errors = HeadPreferenceErrors {
            dims: self.dims,
            longest: self.seq_rows().into_iter().max().unwrap_or(0),
            comparisons: 0,
            scale: 0.0,
            logits: 1.0,
            loss_slope: 0.0,
            slope: self.direct.iter().flatten().fold(0.0f64, |a, x| a.max(x.abs())),
            curvature: 0.0,
        };
        let Some(p) = &self.loss else { return errors };
        let max = |values: &[f64]| values.iter().fold(0.0f64, |a, x| a.max(x.abs()));
        let (scale, weight, kind) = (max(&p.scale), max(&p.weight), max(&p.kind_scale));
        let logits = output(&outputs, "logit");
        for (logit, margin) in logits.iter().zip(&p.margin) {
            assert!(logit.abs() > 1e-3, "{}: logit {logit} is too close to 0", self.label);
            let z = logit - margin;
            assert!(
                !p.curves.contains(&Curve::Hinge.into()) || (z - 1.0).abs() > 1e-2,
                "{}: hinge argument {z} is too close to 1",
                self.label
            );
        }
        let reference = p.reference.as_deref().map_or(0.0, max);
        errors.comparisons = p.terms.len();
        errors.scale = scale;
        errors.logits = max(logits).max(scale * (largest("score") + reference)).max(1.0);
        // Bounds of the first and second derivative of the curve with respect to its argument. The centring
        // term squares the sum of two scores; its bounds are in `centre`.
        let least = p.scale.iter().fold(f64::INFINITY, |a, x| a.min(x.abs()));
        let far = max(logits) + max(&p.margin) + 0.5;
        let bounds = |part: &WeightedCurve| match part.curve {
            Curve::Sigmoid { .. } | Curve::Aot { .. } | Curve::AotUnpaired { .. } => (1.0, 0.25),
            Curve::Robust { smoothing } => (1.0 / (1.0 - 2.0 * smoothing), 0.25 / (1.0 - 2.0 * smoothing)),
            Curve::Hinge => (1.0, 0.0),
            Curve::Ipo | Curve::SppoHard => (2.0 * far / least.powi(2), 2.0 / least.powi(2)),
            Curve::Exo { smoothing } => (0.25 * (0.5 - smoothing.ln()), 0.5 - 0.1 * smoothing.ln()),
            Curve::DiscoPop { temperature } => (2.0 + 1.0 / temperature, (2.0 + 1.0 / temperature).powi(2)),
            Curve::ApoZero | Curve::ApoDown | Curve::NcaPair | Curve::BcoPair => (1.0, 0.5),
            Curve::Kto | Curve::ApoZeroUnpaired => (0.25, 0.1),
            Curve::Own(own) => panic!("bounds of {} are not known", own.name),
        };
        let sum = |(a, b): (f64, f64), part: &WeightedCurve| {
            let (first, second) = bounds(part);
            (a + part.weight * first, b + part.weight * second)
        };
        let (first, second) = p.curves.iter().fold((0.0, 0.0), sum);
        let centre = if p.center == 0.0 { (0.0, 0.0) } else { (8.0 * errors.logits * p.center, 8.0 * p.center) };
        // Each sequence of a case is in at most four comparisons.
        let uses = 4.0 * kind * weight * scale.max(1.0);
        errors.loss_slope = weight * (first + centre.0 / least);
        errors.slope = errors.slope.max(largest("dscore"));
        errors.curvature = uses * (second + centre.1 / least);
        errors
    }

    /// Runs the op. Returns its outputs and whether the backend fuses it.
    pub fn run<B: Backend>(&self, on: &On<B>) -> (Outputs, bool) {
        let mut o = Operands::of(on, self);
        let args = o.arguments(self);
        let fused = on.backend.fuses_head_preference(&args);
        on.backend.head_preference(args).unwrap();
        (o.outputs(on, self), fused)
    }

    /// Runs the separate ops that the fused op replaces.
    pub fn run_separate_ops<B: Backend>(&self, on: &On<B>) -> Outputs {
        let (d, seqs, reduce, b) = (self.dims, self.seqs(), self.reduce, on.backend);
        let mut o = Operands::of(on, self);
        b.head_logprob_fwd(HeadLogprobFwd {
            dims: d,
            hidden: o.hidden.view(),
            head: o.head.view(),
            source: o.source.view(),
            target: o.target.view(),
            logp: o.logp.view_mut(),
            lse: o.lse.view_mut(),
            stats: self.with_stats.then(|| o.stats.view_mut()),
        })
        .unwrap();
        b.segment_sum_fwd(SegmentSumFwd {
            rows: d.rows,
            seqs,
            reduce,
            values: o.logp.view(),
            offsets: o.seq_offsets.view(),
            tail: None,
            sums: o.score.view_mut(),
        })
        .unwrap();
        if let (Some(p), Some(table)) = (&self.loss, &o.table) {
            b.preference_fwd(PreferenceFwd {
                seqs,
                comparisons: p.terms.len(),
                curves: &p.curves,
                link: p.link,
                center: p.center,
                score: o.score.view(),
                reference: o.reference.as_ref().map(|r| r.view()),
                inverse_rows: o.inverse_rows.as_ref().map(|r| r.view()),
                table: table.view(),
                pair_weights: None,
                direct: o.direct.as_ref().map(|d| d.view()),
                loss: o.loss.view_mut(),
                logit: o.logit.view_mut(),
                dscore: o.dscore.view_mut(),
                sums: o.sums.view_mut(),
            })
            .unwrap();
        }
        let given = if self.loss.is_none() { o.direct.as_ref() } else { None };
        b.segment_sum_bwd(SegmentSumBwd {
            rows: d.rows,
            seqs,
            reduce,
            dsums: given.unwrap_or(&o.dscore).view(),
            offsets: o.seq_offsets.view(),
            tail: None,
            dvalues: o.dlogp.view_mut(),
        })
        .unwrap();
        let [order, offsets, keys] = o.runs.each_ref().map(|x| x.view());
        b.head_logprob_bwd(HeadLogprobBwd {
            dims: d,
            hidden: o.hidden.view(),
            head: o.head.view(),
            source: o.source.view(),
            target: o.target.view(),
            runs: Runs { order, offsets, keys },
            lse: o.lse.view(),
            dlogp: o.dlogp.view(),
            dhidden: o.dhidden.view_mut(),
            dhead: (!self.frozen).then(|| o.dhead.view_mut()),
            dhead_write: self.write,
        })
        .unwrap();
        o.outputs(on, self)
    }
}

/// Returns the values of an output.
pub fn output<'a>(outputs: &'a Outputs, name: &str) -> &'a [f64] {
    outputs.iter().find(|(n, _)| *n == name).map_or(&[], |(_, values)| values)
}

/// Builds the comparisons within groups; see [`Case::new`].
fn comparisons(groups: &[Vec<usize>], seqs: usize) -> Preference {
    let (mut terms, mut kind) = (Vec::new(), Vec::new());
    let mut first = 0i32;
    for group in groups {
        let n = group.len() as i32;
        for s in 0..(n - 1).max(0) {
            terms.push(vec![(first + s, 1), (first + s + 1, -1)]);
            kind.push(i32::from(s > 0));
        }
        if n >= 4 {
            terms.push(vec![(first, 1), (first + 3, 1), (first + 1, -1), (first + 2, -1)]);
            terms.push(vec![(first + 2, 1), (first + 3, -1), (first, 2), (first + 1, -2)]);
            kind.extend([2, 2]);
        }
        first += n;
    }
    let count = terms.len();
    Preference {
        curves: vec![Curve::Sigmoid { smoothing: 0.0 }.into()],
        link: Link::Identity,
        center: 0.0,
        score: Vec::new(),
        reference: Some(normal("reference", seqs, 2.0)),
        rows: None,
        pair_weights: None,
        direct: None,
        scale: (0..count).map(|c| [0.3, 0.2, 0.4][c % 3]).collect(),
        margin: (0..count).map(|c| [0.0, 0.25, -0.5][c % 3]).collect(),
        weight: (0..count).map(|c| [1.0, 0.5, 1.5, 0.75][c % 4]).collect(),
        clip: (0..2 * count).map(|i| if i % 2 == 0 { -0.5 } else { 0.75 }).collect(),
        kind_scale: vec![0.5, 1.0, 0.25],
        terms,
        kind,
    }
}

/// The operands of a case on a backend.
struct Operands<B: Backend> {
    hidden: Slot<B::Act>,
    head: Slot<B::Act>,
    source: Slot<B::Idx>,
    target: Slot<B::Idx>,
    runs: [Slot<B::Idx>; 3],
    seq_offsets: Slot<B::Idx>,
    ends: Vec<GroupEnd>,
    table: Option<Table<B>>,
    reference: Option<Slot<B::Acc>>,
    inverse_rows: Option<Slot<B::Acc>>,
    direct: Option<Slot<B::Acc>>,
    logp: Slot<B::Acc>,
    lse: Slot<B::Acc>,
    stats: Slot<B::Acc>,
    dlogp: Slot<B::Acc>,
    score: Slot<B::Acc>,
    dscore: Slot<B::Acc>,
    loss: Slot<B::Acc>,
    logit: Slot<B::Acc>,
    sums: Slot<B::Acc>,
    dhidden: Slot<B::Act>,
    dhead: Slot<B::Acc>,
}

impl<B: Backend> Operands<B> {
    fn of(on: &On<B>, case: &Case) -> Self {
        let (d, seqs, runs) = (case.dims, case.seqs(), runs_of(&case.keys()));
        let comparisons = case.loss.as_ref().map_or(0, |p| p.terms.len());
        Self {
            hidden: on.act(&case.hidden),
            head: on.act(&case.head),
            source: on.idx(&case.source),
            target: on.idx(&case.target),
            runs: [&runs.order, &runs.offsets, &runs.keys].map(|table| on.idx(table)),
            seq_offsets: on.idx(&case.seq_offsets()),
            ends: case.ends(),
            table: case.loss.as_ref().map(|p| Table::of(on, p, seqs)),
            reference: case.loss.as_ref().and_then(|p| p.reference.as_ref()).map(|r| on.acc(r)),
            inverse_rows: case
                .loss
                .as_ref()
                .and_then(|p| p.rows.as_ref())
                .map(|rows| on.acc(&rows.iter().map(|rows| 1.0 / rows).collect::<Vec<_>>())),
            direct: case.direct.as_ref().map(|d| on.acc(d)),
            logp: on.acc_out(d.rows),
            lse: on.acc_out(d.rows),
            stats: on.acc_out(if case.with_stats { ROW_STATS * d.rows } else { 0 }),
            dlogp: on.acc_out(d.rows),
            score: on.acc_out(seqs),
            dscore: on.acc_out(seqs),
            loss: on.acc_out(comparisons),
            logit: on.acc_out(comparisons),
            sums: on.acc_out(KINDS * SUM_FIELDS),
            dhidden: on.act_out(d.tokens * d.hidden),
            dhead: on.acc(&case.dhead),
        }
    }

    fn arguments<'a>(&'a mut self, case: &'a Case) -> HeadPreference<'a, B> {
        let [order, offsets, keys] = self.runs.each_ref().map(|x| x.view());
        let comparison = match (&case.loss, &self.table) {
            (Some(p), Some(table)) => Some(ComparisonLoss {
                comparisons: p.terms.len(),
                curves: &p.curves,
                link: p.link,
                center: p.center,
                reference: self.reference.as_ref().map(|r| r.view()),
                inverse_rows: self.inverse_rows.as_ref().map(|r| r.view()),
                table: table.view(),
                pair_weights: None,
                loss: self.loss.view_mut(),
                logit: self.logit.view_mut(),
                sums: self.sums.view_mut(),
            }),
            _ => None,
        };
        HeadPreference {
            dims: case.dims,
            seqs: case.seqs(),
            reduce: case.reduce,
            groups: &self.ends,
            hidden: self.hidden.view(),
            head: self.head.view(),
            source: self.source.view(),
            target: self.target.view(),
            runs: Runs { order, offsets, keys },
            seq_offsets: self.seq_offsets.view(),
            tail: None,
            comparison,
            direct: self.direct.as_ref().map(|d| d.view()),
            logp: self.logp.view_mut(),
            lse: self.lse.view_mut(),
            stats: case.with_stats.then(|| self.stats.view_mut()),
            dlogp: self.dlogp.view_mut(),
            score: self.score.view_mut(),
            dscore: self.dscore.view_mut(),
            dhidden: self.dhidden.view_mut(),
            dhead: (!case.frozen).then(|| self.dhead.view_mut()),
            dhead_write: case.write,
        }
    }

    /// Returns all outputs, including outputs that the call does not write.
    fn outputs(&self, on: &On<B>, case: &Case) -> Outputs {
        let acc = [
            ("logp", &self.logp),
            ("lse", &self.lse),
            ("stats", &self.stats),
            ("score", &self.score),
            ("loss", &self.loss),
            ("logit", &self.logit),
            ("sums", &self.sums),
            ("dscore", &self.dscore),
            ("dlogp", &self.dlogp),
        ];
        let mut outputs: Outputs = acc.into_iter().map(|(name, slot)| (name, on.read_acc(slot))).collect();
        outputs.push(("dhidden", on.read_act(&self.dhidden)));
        outputs.push((if case.frozen { "frozen dhead" } else { "dhead" }, on.read_acc(&self.dhead)));
        outputs
    }
}
