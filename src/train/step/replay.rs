//! Replay of a micro-batch as a CUDA graph. The first batch of a shape and phase runs eagerly, so that
//! every buffer exists; the second is captured; later ones are replays.

use super::Trainer;
use crate::Result;
use crate::backend::{Backend, Write};

/// Position of a micro-batch in gradient accumulation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Phase {
    /// The first micro-batch overwrites gradients, the others add to them.
    pub write: Write,
    /// The last micro-batch completes the gradients, so their norms are computed with it.
    pub last: bool,
}

/// Graph capture of one shape and phase.
pub(super) enum GraphState<B: Backend> {
    /// The ops have run once eagerly, so every buffer that they need is allocated.
    WarmedUp,
    Captured(B::Graph),
    /// The device cannot capture graphs.
    Unsupported,
}

impl<B: Backend> Trainer<'_, B> {
    /// Computes the uploaded micro-batch, by graph replay if its shape allows. The first batch of a
    /// shape runs eagerly, the second is captured, later ones are replays.
    pub(super) fn compute_or_replay(&mut self, level: Option<usize>, phase: Phase) -> Result<()> {
        let Some(level) = level else { return self.compute(phase, &mut Vec::new()) };
        match self.graphs.get(&(level, phase)) {
            Some(GraphState::Captured(graph)) => {
                if self.backend.replay(graph)? {
                    return Ok(());
                }
                // A buffer has been freed since the capture, for instance by an evaluation.
                self.graphs.insert((level, phase), GraphState::WarmedUp);
                self.compute(phase, &mut Vec::new())
            }
            Some(GraphState::WarmedUp) => {
                let backend = self.backend;
                let Some(graph) = backend.record(&mut || self.compute(phase, &mut Vec::new()))? else {
                    self.graphs.insert((level, phase), GraphState::Unsupported);
                    return self.compute(phase, &mut Vec::new());
                };
                backend.replay(&graph)?;
                self.graphs.insert((level, phase), GraphState::Captured(graph));
                Ok(())
            }
            Some(GraphState::Unsupported) => self.compute(phase, &mut Vec::new()),
            None => {
                self.graphs.insert((level, phase), GraphState::WarmedUp);
                self.compute(phase, &mut Vec::new())
            }
        }
    }
}
