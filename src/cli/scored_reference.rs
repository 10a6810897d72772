//! Reference for the scores of a language model in `score`, `eval` and `compare`. The scores of a DPO policy
//! are relative to its reference; without it they are plain log-probs, which say little about the policy.
//! `--ref-model` names a folder or `none`; by default the reference is the one recorded in the `run.json` of
//! the policy's folder, if its files have not changed since the run.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use crate::files::input;
use crate::model::adapter::base::AdapterFolder;
use crate::train::manifest::{self, hashes, model_and_base_files};
use crate::{Error, Result};

/// Origin of the reference, or the reason why there is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ScoredReference {
    /// Named by `--ref-model`.
    Given(PathBuf),
    /// Recorded in `run.json`.
    Recorded(PathBuf),
    /// `--ref-model none`.
    Declined,
    /// The folder does not belong to a DPO or KTO run.
    Unrecorded,
    /// The policy was trained without a reference.
    TrainedWithout,
    /// The recorded reference no longer exists.
    Gone(PathBuf),
    /// The files of the recorded reference have changed since the run.
    Changed(PathBuf),
}

impl ScoredReference {
    /// Reference of the language model in `model`; `given` is the value of `--ref-model`.
    /// `base` is the folder of an adapter's base, if the user names it.
    pub fn of(model: &Path, given: Option<&Path>, base: Option<&Path>) -> Result<Self> {
        match given {
            Some(path) if path.as_os_str() == "none" => return Ok(Self::Declined),
            Some(path) => return Ok(Self::Given(path.to_path_buf())),
            None => {}
        }
        let Some(run_path) = run_file(model) else { return Ok(Self::Unrecorded) };
        let text = input::read(&run_path, input::MAX_CONFIG).map_err(input::model_error(&run_path))?;
        let run: Value = serde_json::from_slice(&text).map_err(|e| {
            let why = format!("is damaged, so the reference is not known: {e}; give --ref-model FOLDER or none");
            Error::model(&run_path, why)
        })?;
        match run["method"].as_str() {
            Some("dpo" | "kto") => {}
            Some(_) => return Ok(Self::Unrecorded),
            None => {
                let why = "is damaged: \"method\" is missing, so the reference model is unknown; give --ref-model FOLDER or \
                           --ref-model none";
                return Err(Error::model(&run_path, why));
            }
        }
        let recorded = match run["config"].get("ref_model") {
            Some(Value::Null) => return Ok(Self::TrainedWithout),
            Some(Value::String(recorded)) => PathBuf::from(recorded),
            _ => {
                let why = "is damaged, so the reference is not known: \"config\" has no folder or null as \
                           \"ref_model\"; give --ref-model FOLDER or none";
                return Err(Error::model(&run_path, why));
            }
        };
        // A relative path is relative to the folder in which the run was started. After a move of the whole
        // tree, it may be relative to the current folder.
        let there = run["environment"]["folder"].as_str().map(|folder| Path::new(folder).join(&recorded));
        // If an adapter was trained without a separate reference, its base is the reference, and the base may
        // have moved.
        let own = run["adapter"].is_object() && run["config"]["ref_model"] == run["config"]["model"];
        let adapter = AdapterFolder::find(model, base).ok().flatten().filter(|_| own);
        let places = there.into_iter().chain([recorded.clone()]).chain(adapter.map(|adapter| adapter.base));
        let existing: Vec<PathBuf> = places.filter(|path| path.is_dir()).collect();
        let Some(first) = existing.first().cloned() else { return Ok(Self::Gone(recorded)) };
        let same = existing.into_iter().find(|folder| {
            let recorded = recorded_base(model);
            unchanged(folder, base.or(recorded.as_deref()), &run["files"]["reference"])
        });
        // The recorded name is preferred if it leads to the same folder, because it is shorter.
        let name = |found: PathBuf| if super::output::same_file(&found, &recorded) { recorded.clone() } else { found };
        Ok(same.map_or_else(|| Self::Changed(name(first)), |folder| Self::Recorded(name(folder))))
    }

    /// Folder of the reference, if there is one to score with.
    pub fn folder(&self) -> Option<&Path> {
        match self {
            Self::Given(folder) | Self::Recorded(folder) => Some(folder),
            _ => None,
        }
    }

    /// Whether the recorded reference is missing or changed, so that scores are not the implicit reward.
    pub fn is_warning(&self) -> bool {
        matches!(self, Self::Gone(_) | Self::Changed(_))
    }

    /// Returns one line about the reference and the scores, which `score` describes.
    pub fn line(&self, score: &str) -> String {
        let lost = |folder: &Path, what: &str| {
            format!(
                "warning: the reference {} of this DPO policy {what}: scores are {score}, not the implicit reward; give the \
                 reference with --ref-model, or --ref-model none if this is what you want",
                folder.display()
            )
        };
        match self {
            Self::Given(folder) => format!("reference: {} (--ref-model); scores are {score}", folder.display()),
            Self::Recorded(folder) => {
                format!("reference: {} (run.json of the policy); scores are {score}", folder.display())
            }
            Self::Declined => format!("no reference (--ref-model none); scores are {score}"),
            Self::Unrecorded => format!("no reference; scores are {score}; --ref-model names a reference"),
            Self::TrainedWithout => format!("no reference, as in this policy's training; scores are {score}"),
            Self::Gone(folder) => lost(folder, "is gone"),
            Self::Changed(folder) => lost(folder, "has changed since the run"),
        }
    }

    /// Value of `reference_from` in a result.
    fn origin(&self) -> &'static str {
        match self {
            Self::Given(_) => "--ref-model",
            Self::Recorded(_) => "run.json",
            Self::Declined => "--ref-model none",
            Self::Unrecorded => "not recorded",
            Self::TrainedWithout => "trained without",
            Self::Gone(_) => "gone",
            Self::Changed(_) => "changed",
        }
    }

    /// Writes `reference` and `reference_from`, each with `suffix`, into a result; null for a reward
    /// model.
    pub fn record(reference: Option<&Self>, suffix: &str, into: &mut Map<String, Value>) {
        into.insert(format!("reference{suffix}"), json!(reference.and_then(Self::folder)));
        into.insert(format!("reference_from{suffix}"), json!(reference.map(Self::origin)));
    }

    /// Reads the reference, and the line that describes it, from a result of `eval --output`; `None` for a
    /// reward model or a result that does not record the reference.
    pub fn read(result: &Path) -> Result<Option<(Self, String)>> {
        let text = input::read(result, input::MAX_RECORD).map_err(input::data_error(result))?;
        let value: Value = serde_json::from_slice(&text).unwrap_or_default();
        let folder = value["reference"].as_str().map(PathBuf::from);
        let unnamed = PathBuf::from("model");
        let found = match (value["reference_from"].as_str(), folder) {
            (Some("run.json"), Some(folder)) => Some(Self::Recorded(folder)),
            (_, Some(folder)) => Some(Self::Given(folder)),
            (Some("--ref-model none"), None) => Some(Self::Declined),
            (Some("not recorded"), None) => Some(Self::Unrecorded),
            (Some("trained without"), None) => Some(Self::TrainedWithout),
            (Some("gone"), None) => Some(Self::Gone(unnamed)),
            (Some("changed"), None) => Some(Self::Changed(unnamed)),
            _ => None,
        };
        // Earlier versions always used sums of log-probs, and did not record the score.
        let beta = value["beta"].as_f64().map_or("beta".to_owned(), |beta| beta.to_string());
        Ok(found.map(|reference| {
            let earlier = match reference.folder() {
                Some(_) => format!("the implicit reward, {beta} (log pi - log ref)"),
                None => format!("{beta} log pi, the plain log-probability of a response"),
            };
            let line = reference.line(value["score"].as_str().unwrap_or(&earlier));
            (reference, line)
        }))
    }
}

/// Returns the `--base-model` folder recorded by the run that wrote `model`. A relative path is relative to
/// the folder of that run or to the current folder.
pub(super) fn recorded_base(model: &Path) -> Option<PathBuf> {
    let text = input::read(&run_file(model)?, input::MAX_CONFIG).ok()?;
    let run: Value = serde_json::from_slice(&text).ok()?;
    let recorded = PathBuf::from(run["config"]["base_model"].as_str()?);
    let there = run["environment"]["folder"].as_str().map(|folder| Path::new(folder).join(&recorded));
    there.into_iter().chain([recorded]).find(|path| path.is_dir())
}

/// Returns the path of the `run.json` of the run that wrote a model folder. It lies in the folder or, for a
/// checkpoint, in its parent.
pub(super) fn run_file(model: &Path) -> Option<PathBuf> {
    let own = model.join(manifest::FILE);
    if input::is_named(&own) {
        return Some(own);
    }
    let real = model.canonicalize().ok()?;
    let checkpoint = real.file_name()?.to_string_lossy().starts_with("checkpoint-");
    Some(real.parent()?.join(manifest::FILE)).filter(|above| checkpoint && input::is_named(above))
}

/// Whether the model files in a folder have exactly the recorded names and hashes, or no hashes are recorded.
fn unchanged(folder: &Path, base: Option<&Path>, recorded: &Value) -> bool {
    let named = |files: &Value| -> Vec<(String, String)> {
        let entry = |file: &Value| {
            let name = Path::new(file["path"].as_str()?).file_name()?.to_string_lossy().into_owned();
            Some((name, file["blake3"].as_str()?.to_owned()))
        };
        files.as_array().into_iter().flatten().filter_map(entry).collect()
    };
    let recorded = named(recorded);
    recorded.is_empty() || recorded == named(&hashes(&model_and_base_files(folder, base)))
}
