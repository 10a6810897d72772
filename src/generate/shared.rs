//! Generation on several ranks. Each rank generates for a slice of the prompts, and all ranks receive all
//! responses. The draws of a sample are keyed by its prompt and its index, and no text depends on the prompts
//! that run alongside it, so the responses are the same as on one rank.

use super::run::{Engine, Finish, Generated, Prompt, Stop};
use crate::backend::Backend;
use crate::ranks::collective::slice_of;
use crate::ranks::world;
use crate::{Error, Result};

/// Responses of a shared run.
pub(crate) struct Answered {
    /// Samples of every prompt.
    pub samples: Vec<Vec<Generated>>,
    /// Number of prompt tokens that were run, and of those that an earlier prompt shares, over all ranks.
    pub prompt_tokens: (usize, usize),
}

/// Runs `engine` on this rank's prompts. Returns `None` on every rank if the run of any rank failed while
/// `interrupted` returned true on that rank.
pub(crate) fn run<B: Backend>(
    engine: &mut Engine<'_, B>,
    prompts: &[Prompt],
    stop: Option<Stop<'_>>,
    interrupted: impl Fn() -> bool,
) -> Result<Option<Answered>> {
    let ranks = world::collective();
    let own = slice_of(prompts.len(), ranks.rank(), ranks.size());
    let first = own.start;
    let stop_own = |prompt: usize, tokens: &[u32]| stop.map_or(Ok(false), |stop| stop(first + prompt, tokens));
    let samples = match engine.run(&prompts[own], stop.is_some().then_some(&stop_own)) {
        Ok(samples) => Some(samples),
        Err(_) if interrupted() => None,
        Err(e) => return Err(e),
    };
    let prompt_tokens = engine.prompt_tokens();
    if ranks.is_alone() {
        return Ok(samples.map(|samples| Answered { samples, prompt_tokens }));
    }
    let words = samples.map_or_else(Vec::new, |samples| encode(&samples, prompt_tokens));
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    let mut all = Answered { samples: Vec::new(), prompt_tokens: (0, 0) };
    for (rank, bytes) in ranks.all_gather(&bytes)?.iter().enumerate() {
        let words: Vec<u64> = bytes.as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word)).collect();
        if words.is_empty() {
            return Ok(None);
        }
        let (mut samples, (run, shared)) = decode(&words)
            .ok_or_else(|| Error::Runtime(format!("rank {rank} sent responses that cannot be decoded")))?;
        all.samples.append(&mut samples);
        all.prompt_tokens = (all.prompt_tokens.0 + run, all.prompt_tokens.1 + shared);
    }
    Ok(Some(all))
}

/// Encodes responses as numbers: the counts of prompt tokens, then for each prompt its number of samples and
/// the samples. A sample is 1 for [`Finish::Stop`] or 0 for [`Finish::Length`], its number of tokens, and its
/// tokens.
fn encode(samples: &[Vec<Generated>], (run, shared): (usize, usize)) -> Vec<u64> {
    let mut words = vec![run as u64, shared as u64];
    for of_prompt in samples {
        words.push(of_prompt.len() as u64);
        for Generated { tokens, finish } in of_prompt {
            words.push(u64::from(*finish == Finish::Stop));
            words.push(tokens.len() as u64);
            words.extend(tokens.iter().map(|&token| u64::from(token)));
        }
    }
    words
}

type Decoded = (Vec<Vec<Generated>>, (usize, usize));

/// Decodes the numbers of [`encode`].
fn decode(words: &[u64]) -> Option<Decoded> {
    let (counts, mut rest) = words.split_first_chunk::<2>()?;
    let mut samples = Vec::new();
    while let Some((&number, after)) = rest.split_first() {
        rest = after;
        let mut of_prompt = Vec::new();
        for _ in 0..number {
            let (&[stopped, length], after) = rest.split_first_chunk::<2>()?;
            let (tokens, after) = after.split_at_checked(length as usize)?;
            rest = after;
            let tokens = tokens.iter().map(|&token| token as u32).collect();
            of_prompt.push(Generated { tokens, finish: if stopped == 1 { Finish::Stop } else { Finish::Length } });
        }
        samples.push(of_prompt);
    }
    Some((samples, (counts[0] as usize, counts[1] as usize)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_pass_between_ranks_unchanged() {
        let one = |tokens: &[u32], finish| Generated { tokens: tokens.to_vec(), finish };
        let samples = vec![
            vec![one(&[7, 8], Finish::Stop), one(&[], Finish::Length)],
            vec![],
            vec![one(&[u32::MAX], Finish::Length)],
        ];
        assert_eq!(decode(&encode(&samples, (5, 2))), Some((samples, (5, 2))));
        assert_eq!(decode(&encode(&[], (0, 0))), Some((Vec::new(), (0, 0))));
        assert_eq!(decode(&[1, 2, 1, 0, 9]), None);
    }
}
