//! Responses of a model to rows.

use crate::generate::{Finish, Generated};
use crate::terminal::{agreeing, counted};

/// A response with its tokens.
#[derive(Clone)]
pub(super) struct Answer {
    pub response: String,
    pub generated: Generated,
}

/// Responses to rows, by row and sample.
pub(super) struct Answers {
    pub of_rows: Vec<Vec<Answer>>,
    pub seconds: f64,
}

impl Answers {
    /// Mean number of generated tokens, and the share of responses that ended before the limit of
    /// new tokens.
    pub fn figures(&self) -> [f64; 2] {
        let (count, tokens, cut) = self.counts();
        [tokens, count - cut].map(|part| part as f64 / count.max(1) as f64)
    }

    /// Returns the number of responses, of generated tokens, and of responses that the limit of new tokens
    /// cut off.
    fn counts(&self) -> (usize, usize, usize) {
        let all = || self.of_rows.iter().flatten().map(|answer| &answer.generated);
        let cut = all().filter(|generated| generated.finish == Finish::Length).count();
        (all().count(), all().map(|generated| generated.tokens.len()).sum(), cut)
    }

    /// Counts and time on one line. `place` names the file or model of the responses.
    pub fn summary(&self, place: &str) -> String {
        let ((count, tokens, cut), seconds) = (self.counts(), self.seconds);
        let (responses, tokens) = (counted(count, "response"), counted(tokens, "token"));
        let ends = agreeing(cut, "ends", "end");
        format!("{responses} in {place}: {tokens} in {seconds:.1} s; {cut} {ends} at the limit of new tokens")
    }
}
