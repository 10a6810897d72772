//! Maps the names of tensors in weight files to the names of the configuration, as transformers does.
//! Wrappers put `module.` or `_orig_mod.` into every name; a base model is saved without the prefix `model.`
//! (or the family's). A tied embedding table may be stored as `lm_head.weight` only.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::family_names::TensorNames;
use crate::{Error, Result};

/// Name components that wrappers insert: DistributedDataParallel and torch.compile.
const WRAPPERS: [&str; 2] = ["module", "_orig_mod"];
pub(super) const LM_HEAD: &str = "lm_head.weight";
pub(super) const SCORE: &str = "score.weight";
/// Names of reward heads of other trainers: OpenRLHF's `--value_head_prefix`, whose default once was
/// `value_head`; the value heads of TRL and LLaMA-Factory; names of further trainers. LLaMA-Factory's head has a
/// bias.
pub(super) const OTHER_HEADS: [&str; 5] =
    ["value_head.weight", "v_head.summary.weight", "v_head.weight", "reward_head.weight", "score_head.weight"];

/// A stored tensor.
#[derive(Clone, Debug)]
pub(super) struct Stored {
    /// Name in the file.
    pub name: String,
    pub shard: usize,
}

/// Returns the stored tensors by the names of the configuration, if it knows them, and notes on renamed ones.
/// Two tensors with one name are an error.
pub(super) fn resolve(
    folder: &Path,
    found: BTreeMap<String, usize>,
    expected: &BTreeSet<&str>,
    names: &TensorNames,
) -> Result<(BTreeMap<String, Stored>, Vec<String>)> {
    let mut tensors: BTreeMap<String, Stored> = BTreeMap::new();
    let mut renamed: Vec<(String, String)> = Vec::new();
    for (name, shard) in found {
        let own = own_name(&name, expected, names);
        if own != name && names.old_head != Some(name.as_str()) {
            renamed.push((name.clone(), own.clone()));
        }
        if let Some(other) = tensors.insert(own.clone(), Stored { name: name.clone(), shard }) {
            let why = format!(
                "holds the tensors {:?} and {name:?}, which are both {own:?}; remove one of them, or save the model \
                 again without its wrapper",
                other.name
            );
            return Err(Error::model(folder, why));
        }
    }
    let note = |(from, to): &(String, String)| match renamed.len() {
        1 => format!("the tensor {from:?} is read as {to:?}"),
        n => format!("{n} tensors have other names than in transformers; {from:?} is read as {to:?}"),
    };
    Ok((tensors, renamed.first().map(note).into_iter().collect()))
}

/// Name of a tensor without the components that wrappers insert.
pub(super) fn without_wrappers(name: &str) -> String {
    let parts: Vec<&str> = name.split('.').filter(|part| !WRAPPERS.contains(part)).collect();
    parts.join(".")
}

/// Name of a tensor without the components that wrappers insert. If this name is not expected, the prefix of the
/// base model is added or removed to get a name that is.
fn own_name(name: &str, expected: &BTreeSet<&str>, names: &TensorNames) -> String {
    let own = without_wrappers(name);
    if names.old_head == Some(own.as_str()) {
        return LM_HEAD.to_owned();
    }
    if expected.contains(own.as_str()) {
        return own;
    }
    if let Some(rest) = own.strip_prefix(names.base)
        && expected.contains(rest)
    {
        return rest.to_owned();
    }
    let with_base = format!("{}{own}", names.base);
    if expected.contains(with_base.as_str()) { with_base } else { own }
}

/// True for a tensor with the shape of a reward head and a name other than `score.weight`.
pub(super) fn is_other_head(name: &str, shape: &[usize], hidden: usize) -> bool {
    name != SCORE && name.ends_with(".weight") && shape == [1, hidden]
}

#[cfg(test)]
mod tests {
    use super::super::family_names::{LLAMA_NAMES, NEOX_NAMES};
    use super::*;

    #[test]
    fn names_lose_wrappers_and_gain_or_lose_the_base_prefix() {
        let expected = BTreeSet::from(["model.norm.weight", "model.embed_tokens.weight", SCORE]);
        let own = |name| own_name(name, &expected, &LLAMA_NAMES);
        for name in
            ["norm.weight", "module.model.norm.weight", "_orig_mod.module.norm.weight", "model._orig_mod.norm.weight"]
        {
            assert_eq!(own(name), "model.norm.weight");
        }
        assert_eq!(own("model.model.norm.weight"), "model.norm.weight");
        assert_eq!(own("module.model.score.weight"), SCORE);
        assert_eq!(own("module.extra.bias"), "extra.bias");
        let expected = BTreeSet::from(["gpt_neox.embed_in.weight", LM_HEAD]);
        let own = |name| own_name(name, &expected, &NEOX_NAMES);
        assert_eq!(
            (own("embed_in.weight").as_str(), own("embed_out.weight").as_str()),
            ("gpt_neox.embed_in.weight", LM_HEAD)
        );
    }

    #[test]
    fn two_tensors_with_one_name_are_refused() {
        let expected = BTreeSet::from(["model.norm.weight"]);
        let found = |names: &[&str]| names.iter().map(|name| ((*name).to_owned(), 0)).collect();
        let (tensors, notes) = resolve(Path::new("m"), found(&["norm.weight"]), &expected, &LLAMA_NAMES).unwrap();
        assert_eq!((tensors["model.norm.weight"].name.as_str(), notes.len()), ("norm.weight", 1));
        let why =
            resolve(Path::new("m"), found(&["norm.weight", "model.norm.weight"]), &expected, &LLAMA_NAMES).unwrap_err();
        assert!(
            why.to_string().contains("\"norm.weight\"") && why.to_string().contains("\"model.norm.weight\""),
            "{why}"
        );
    }
}
