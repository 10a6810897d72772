//! Definition of a language model's score in `score`, `eval` and `compare`. A policy is scored as in its
//! training: beta, sum or mean over tokens, and f-divergence come from the `run.json` of its folder. Options
//! override them. A folder without the `run.json` of a DPO or KTO run gets the score of plain DPO.

use std::path::Path;

use clap::Args;
use serde_json::{Map, Value, json};

use super::scored_reference::{ScoredReference, run_file};
use crate::error::refuse_given;
use crate::files::input;
use crate::loss::objective::{Divergence, Loss, LossOptions, LossType, Method, ReduceName, ScopeName};
use crate::model::config::Head;
use crate::terminal::complain;
use crate::{Error, Result};

/// Options of the score of a language model.
#[derive(Args, Clone, Debug, Default, PartialEq)]
pub struct ScoredLossArgs {
    /// Factor on log pi - log ref [language models; default: the value in run.json, else 0.1]
    #[arg(long)]
    pub beta: Option<f64>,
    /// Loss that defines the score, for example sigmoid for sums of log pi - log ref [language models;
    /// default: the loss in run.json, else sigmoid]
    #[arg(long, alias = "loss_type", value_enum)]
    pub loss_type: Option<LossType>,
    /// f-divergence of the score [language models; default: the divergence in run.json, else reverse_kl]
    #[arg(long, alias = "f_divergence_type", value_enum)]
    pub f_divergence_type: Option<Divergence>,
    /// alpha of the alpha-divergence [language models; default: the value in run.json, else 0.5]
    #[arg(long, alias = "f_alpha_divergence_coef")]
    pub f_alpha_divergence_coef: Option<f64>,
    /// Tokens that the log-probability of a sequence covers [language models; default: the scope in run.json,
    /// else response]
    #[arg(long, alias = "logp_scope", value_enum)]
    pub logp_scope: Option<ScopeName>,
    /// Sum or mean over a sequence's tokens [language models; default: the reduction in run.json, else that of
    /// the loss]
    #[arg(long, alias = "logp_reduce", value_enum)]
    pub logp_reduce: Option<ReduceName>,
}

impl ScoredLossArgs {
    /// Returns the names of the options, each with whether it is given.
    pub(super) fn given(&self) -> [(&'static str, bool); 6] {
        [
            ("--beta", self.beta.is_some()),
            ("--loss-type", self.loss_type.is_some()),
            ("--f-divergence-type", self.f_divergence_type.is_some()),
            ("--f-alpha-divergence-coef", self.f_alpha_divergence_coef.is_some()),
            ("--logp-scope", self.logp_scope.is_some()),
            ("--logp-reduce", self.logp_reduce.is_some()),
        ]
    }

    /// Names of the given options.
    fn names(&self) -> String {
        self.given().iter().filter(|(_, given)| *given).map(|(flag, _)| *flag).collect::<Vec<_>>().join(", ")
    }
}

/// Definition of a score, and the origin of its options.
pub(super) struct ScoredLoss {
    /// This loss is never minimised; it only defines the score, by its first curve.
    pub loss: Loss,
    origin: String,
}

impl ScoredLoss {
    /// Returns the score of the model in the folder `model`.
    ///
    /// # Errors
    /// [`Error::Usage`] for options that have no effect or are out of range.
    pub fn of(model: &Path, head: Head, args: &ScoredLossArgs) -> Result<Self> {
        if head == Head::Reward {
            refuse_given(&args.given(), "on a reward model; leave it out")?;
            let loss = LossOptions::default().resolve(Method::Reward, [1.0; 3], false)?;
            return Ok(Self { loss, origin: String::new() });
        }
        if args.loss_type == Some(LossType::Sft) {
            return Err(Error::Usage(
                "--loss-type sft is the likelihood of responses and compares nothing; choose a loss with a score, such as \
                 sigmoid"
                    .into(),
            ));
        }
        let recorded = match args.loss_type {
            // `--loss-type` replaces the recorded loss, so only beta and the token scope of the record apply.
            Some(of) => recorded(model).map(|found| LossOptions {
                beta: found.beta,
                // Losses on labelled rows support only the log-prob of the response tokens.
                logp_scope: found.logp_scope.filter(|_| !of.is_unpaired()),
                label_smoothing: None,
                ..LossOptions::default()
            }),
            None => recorded(model),
        };
        let (names, known) = (args.names(), recorded.is_some());
        let options = with(recorded.unwrap_or_default(), args);
        let method = if options.loss_type.iter().any(|of| of.is_unpaired()) { Method::Kto } else { Method::Dpo };
        let loss = options.resolve(method, [1.0; 3], false).map_err(|e| match (e, args.loss_type) {
            // Recorded options are in range unless run.json was edited.
            (Error::Usage(why), None) if names.is_empty() => {
                Error::Usage(format!("the loss in the run.json of {}: {why}; give --loss-type", model.display()))
            }
            (e, _) => e,
        })?;
        let types = loss.types.iter().map(|(of, _)| of.name()).collect::<Vec<_>>().join(" ");
        let origin = match (known, names.is_empty()) {
            (true, true) => format!("as trained with --loss-type {types} (run.json)"),
            (true, false) => format!("with {names} instead of the values in run.json"),
            (false, true) => "by default".to_owned(),
            (false, false) => format!("with {names}"),
        };
        Ok(Self { loss, origin })
    }

    /// Rejects a reference if the score does not use one. Without a reference, replaces the f-divergence of the
    /// score by the plain log-probability.
    pub fn settle(mut self, reference: &ScoredReference) -> Result<Self> {
        let frozen = reference.folder().is_some();
        if frozen && self.loss.is_reference_free() {
            return Err(Error::Usage(format!(
                "--ref-model has no effect: the policy was trained with --loss-type {}, which scores without a reference; \
                 leave it out, or give --loss-type sigmoid for the log-ratio",
                self.loss.types[0].0.name()
            )));
        }
        if !frozen && self.loss.drops_divergence() {
            self.origin += " and without the divergence from the reference";
        }
        Ok(self)
    }

    /// Returns the formula of the score as text.
    pub fn text(&self, reference: &ScoredReference) -> String {
        self.loss.score_text(reference.folder().is_some())
    }

    /// One line about the reference and the score.
    pub fn line(&self, reference: &ScoredReference) -> String {
        reference.line(&format!("{}, {}", self.text(reference), self.origin))
    }

    /// Writes `beta` and `score` into a result; both are null for a reward model.
    pub fn record(&self, reference: Option<&ScoredReference>, into: &mut Map<String, Value>) {
        let scale = self.loss.scale[0];
        into.insert("beta".into(), json!(reference.map(|_| scale)));
        into.insert("score".into(), json!(reference.map(|reference| self.text(reference))));
    }
}

/// Returns the recorded options, overridden by the given options.
fn with(recorded: LossOptions, args: &ScoredLossArgs) -> LossOptions {
    let alpha = |d: Option<Divergence>| d == Some(Divergence::AlphaDivergence);
    let divergence = args.f_divergence_type.or(recorded.f_divergence_type);
    let coefficient = args.f_alpha_divergence_coef.or(recorded.f_alpha_divergence_coef.filter(|_| alpha(divergence)));
    let kinds = |own: Option<f64>| own.filter(|_| args.beta.is_none());
    LossOptions {
        beta: args.beta.or(recorded.beta),
        beta_intra: kinds(recorded.beta_intra),
        beta_inter: kinds(recorded.beta_inter),
        loss_type: args.loss_type.map_or(recorded.loss_type, |of| vec![of]),
        label_smoothing: match args.loss_type {
            // The exo_pair loss needs label smoothing above 0, but its score does not depend on the value.
            Some(LossType::ExoPair) => Some(1e-3),
            _ => recorded.label_smoothing,
        },
        f_divergence_type: divergence,
        f_alpha_divergence_coef: coefficient,
        logp_scope: args.logp_scope.or(recorded.logp_scope),
        logp_reduce: args.logp_reduce.or(recorded.logp_reduce),
        ld_alpha: recorded.ld_alpha,
        ..LossOptions::default()
    }
}

/// Returns the loss options that affect the score from the DPO or KTO run that wrote a folder; `None` for
/// other folders.
fn recorded(model: &Path) -> Option<LossOptions> {
    let path = run_file(model)?;
    let run = input::read(&path, input::MAX_CONFIG).ok().and_then(|text| serde_json::from_slice::<Value>(&text).ok());
    let config =
        run.as_ref().filter(|run| run["method"] == "dpo" || run["method"] == "kto").map(|run| &run["config"])?;
    let mut kept = Map::new();
    let names = ["beta", "beta_intra", "beta_inter", "label_smoothing", "f_divergence_type", "logp_scope", "ld_alpha"];
    for name in names {
        kept.insert(name.into(), config[name].clone());
    }
    let types = match &config["loss_type"] {
        Value::Array(list) => list.clone(),
        Value::Null => Vec::new(),
        one => vec![one.clone()],
    };
    // The loss `sft`, the likelihood of responses, defines no score.
    if !types.is_empty() && types.iter().all(|of| of == "sft") {
        return None;
    }
    let is = |name: &str| types.iter().any(|of| of == name);
    if is("orpo") {
        kept.retain(|name, _| !name.starts_with("beta_"));
    }
    let types_are_unpaired = is("kto") || is("apo_zero_unpaired");
    if config["label_smoothing"] == 0.0 || types_are_unpaired {
        kept.remove("label_smoothing");
    }
    if config["f_divergence_type"] == "alpha_divergence" {
        kept.insert("f_alpha_divergence_coef".into(), config["f_alpha_divergence_coef"].clone());
    }
    // run.json records the reduction in use, which may be the default. A recorded sum is passed on only for
    // `ipo` as the single loss, whose default is the mean.
    if config["logp_reduce"] == "mean" || (types.len() == 1 && is("ipo") && config["f_divergence_type"].is_null()) {
        kept.insert("logp_reduce".into(), config["logp_reduce"].clone());
    }
    kept.insert("loss_type".into(), json!(types));
    match serde_json::from_value(Value::Object(kept)) {
        Ok(options) => Some(options),
        Err(e) => {
            complain(&format!(
                "warning: the loss recorded in {} cannot be used ({e}), so the score of plain DPO is used; \
                 --loss-type and --beta select a different score",
                path.display()
            ));
            None
        }
    }
}
