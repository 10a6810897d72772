//! Reward benchmarks that need no judge: their rows, and their figures from the scores of a model.
//!
//! | benchmark | row | right if |
//! |---|---|---|
//! | RM-Bench (arXiv 2410.16184) | three chosen and three rejected responses, in the styles concise, detailed, formatted | chosen scores above rejected; hard: the rejected one has the richer style, normal: the same, easy: a plainer one |
//! | RMB (arXiv 2410.09893) | a pair, or the best of several and a list of losers | the best scores above every loser |
//! | RewardBench 2 (arXiv 2506.01937) | one chosen response and a list of rejected ones | the chosen one has the largest score; its credit is shared by all with that score |
//! | RewardBench 2, ties | several correct and several incorrect responses | see [`figures`] |
//! | IF-RewardBench (thu-coai/IF-RewardBench) | responses and a graph of preferences between them | accuracy and Kendall's tau-b over the edges of a graph |
//!
//! - `rows`: reads rows and recognises their benchmark
//! - [`figures`]: the figures as the benchmarks define them
//! - [`summary`]: the figures with bootstrap intervals, as tables and JSON, and the scored rows

pub mod figures;
pub(crate) mod rows;
pub mod summary;

use crate::data::source::SourceRow;

/// A benchmark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Benchmark {
    /// RM-Bench.
    RmBench,
    /// RMB.
    Rmb,
    /// RewardBench 2.
    RewardBench2,
    /// IF-RewardBench.
    IfRewardBench,
}

impl Benchmark {
    /// All benchmarks.
    pub const ALL: [Self; 4] = [Self::RmBench, Self::Rmb, Self::RewardBench2, Self::IfRewardBench];

    /// Name on the command line and in files.
    pub fn name(self) -> &'static str {
        match self {
            Self::RmBench => "rm-bench",
            Self::Rmb => "rmb",
            Self::RewardBench2 => "reward-bench-2",
            Self::IfRewardBench => "if-reward-bench",
        }
    }
}

/// A row of a benchmark: its responses in the order of the row, chosen ones first.
#[derive(Clone, Debug)]
pub struct Item {
    /// One prompt, and comparisons that use every response that is scored.
    pub row: SourceRow,
    /// Kind of the row, with the facts that its figures need.
    pub shape: Shape,
}

/// Kind of a row, which says what its responses are.
#[derive(Clone, Debug, PartialEq)]
pub enum Shape {
    /// Three styles of chosen, then three of rejected responses.
    Styles {
        /// Domain of the row.
        domain: String,
    },
    /// The best response, then the losers; `pair` for the pairwise set, which has one loser.
    Best {
        /// True for a row of the pairwise set.
        pair: bool,
        /// Goal of the row.
        goal: String,
        /// Category of the row.
        category: String,
    },
    /// The chosen response, then the rejected ones.
    Chosen {
        /// Subset of the row.
        subset: String,
    },
    /// `correct` correct responses, then incorrect ones. A tied prompt has several correct responses; the
    /// reference prompt with the same number has one.
    Ties {
        /// True for a tied prompt, false for a reference prompt.
        tied: bool,
        /// Number N of the prompt in the row id `tied:N` or `ref:N`.
        prompt: i64,
        /// Number of correct responses.
        correct: usize,
    },
    /// Edges from the preferred response to the other one.
    Graph {
        /// Instruction type of the row.
        kind: String,
        /// Model that wrote the responses.
        generator: Option<String>,
        /// Turn of the conversation that the responses answer; 5 for all later turns.
        turn: usize,
        /// Number of constraints.
        constraints: usize,
        /// Pairs of better and worse responses.
        edges: Vec<(usize, usize)>,
    },
}

/// A row with the scores of its responses. A response that no edge uses has the score NaN.
#[derive(Clone, Debug)]
pub struct Judged<'a> {
    /// The row.
    pub item: &'a Item,
    /// Scores of the responses in order.
    pub scores: Vec<f64>,
}
