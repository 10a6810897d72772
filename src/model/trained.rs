//! Parameters that training changes: those of the adapters if the model has some, else all. Gradients,
//! optimiser state and checkpoints cover them and nothing else.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use super::adapter::AdapterConfig;
use super::adapter::files::AdapterFiles;
use super::decoder::Model;
use super::layout::Slot;
use super::tensors::TensorSpec;
use super::weights::{LoadAs, WeightFiles};
use crate::backend::contract::KnownNorms;
use crate::backend::{Backend, View};
use crate::{Error, Result};

/// Ranges of the trained parameters in their arena.
#[derive(Clone, Copy, Debug)]
pub struct Trained<'a> {
    pub slots: &'a [Slot],
    /// Number of elements of the arena, including gaps.
    pub len: usize,
    /// The first `decayed` elements are subject to weight decay.
    pub decayed: usize,
    /// Number of patch norms of the gradients.
    pub norms: usize,
    /// (hidden): the head of a reward model
    pub score: Option<&'a Range<usize>>,
}

/// Weight files of the trained parameters.
pub(super) enum TrainedFiles {
    Model(WeightFiles),
    Adapter(AdapterFiles),
}

impl TrainedFiles {
    /// Opens the files of a folder, which must hold the same model, or an adapter of the same layers.
    pub fn open<B: Backend>(model: &Model<B>, folder: &Path) -> Result<Self> {
        if model.lora.is_none() {
            return WeightFiles::open(folder, &model.config, LoadAs::Exact).map(Self::Model);
        }
        let config = AdapterConfig::read(folder)?;
        let stored = config.tensors(&model.config).map_err(|why| Error::model(folder, why))?;
        let shapes = |specs: &mut dyn Iterator<Item = &TensorSpec>| -> BTreeMap<String, Vec<usize>> {
            specs.map(|spec| (spec.name.clone(), spec.shape.clone())).collect()
        };
        if shapes(&mut stored.iter()) != shapes(&mut model.trained().slots.iter().map(|slot| &slot.spec)) {
            return Err(Error::model(folder, "holds an adapter whose layers or rank differ from this run's"));
        }
        AdapterFiles::open(folder, &config, &model.config).map(Self::Adapter)
    }

    /// Passes a tensor to `sink(offset, values)` in chunks, as [`WeightFiles::read`] does.
    pub fn read(&self, name: &str, sink: &mut dyn FnMut(usize, &[f32]) -> Result<()>) -> Result<()> {
        match self {
            Self::Model(files) => files.read(name, sink),
            Self::Adapter(files) => files.read(name, sink),
        }
    }
}

impl<B: Backend> Model<B> {
    /// Ranges of the trained parameters. All tensors of an adapter have weight decay, because they are matrices.
    pub fn trained(&self) -> Trained<'_> {
        match &self.lora {
            Some(lora) => {
                let l = &lora.layout;
                Trained { slots: &l.slots, len: l.len, decayed: l.len, norms: 0, score: l.score.as_ref() }
            }
            None => {
                let l = &self.layout;
                Trained { slots: &l.slots, len: l.len, decayed: l.decayed, norms: l.norms, score: l.score.as_ref() }
            }
        }
    }

    /// Arena of the trained parameters, or this rank's slices of them (`Model::trained_part`).
    pub fn trained_weights(&self) -> &B::Act {
        self.lora.as_ref().map_or(&self.weights, |lora| &lora.weights)
    }

    /// Arena of the trained parameters, for writing.
    pub fn trained_weights_mut(&mut self) -> &mut B::Act {
        self.lora.as_mut().map_or(&mut self.weights, |lora| &mut lora.weights)
    }

    /// View of a range of the trained parameters; see [`Model::weight`].
    pub fn trained_weight(&self, range: &Range<usize>) -> View<'_, B::Act> {
        match &self.lora {
            Some(lora) => lora.weight(range),
            None => self.weight(range),
        }
    }

    /// Patch norms of the gradients in `norms`, with the range that they cover; `None` with adapters.
    pub fn known_norms<'a>(&self, norms: &'a B::Acc) -> Option<KnownNorms<'a, B>> {
        self.lora.is_none().then(|| self.layout.known_norms(norms))
    }
}
