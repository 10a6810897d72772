//! Flags of TRL 1.16 (DPO, KTO, reward and SFT arguments with those of transformers, model and script
//! arguments) and of its launcher that the training commands do not have under the same name, with the
//! meaning of each value here. Flags that the parser knows are never looked up, so a row of the table has no
//! effect once its flag is added to the parser.

use std::cmp::Ordering;

use serde_json::Value;

/// Number of values that follow a flag of TRL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Takes {
    /// No value, or `true` or `false`; `--no-FLAG` means `false`.
    Switch,
    One,
    /// One or more values.
    List,
}

/// Meaning of the values of a TRL flag in mapl.
#[derive(Clone, Copy, Debug)]
pub(super) enum Meaning {
    /// Every value is accepted, and none changes a result of the run.
    Idle,
    /// These values request the behaviour that mapl always has; others are rejected.
    Only(&'static [&'static str]),
    /// Values for which the function is true request the behaviour that mapl always has; others are rejected.
    If(fn(&str) -> bool),
    /// Each of these values is replaced by flags of mapl; others are rejected.
    As(&'static [(&'static str, &'static [&'static str])]),
    /// Every value is rejected.
    Never,
}

/// A flag of TRL in kebab case, without dashes.
pub(super) struct Foreign {
    pub name: &'static str,
    pub takes: Takes,
    pub meaning: Meaning,
    /// Why the flag has no effect, or why other values are rejected and what to use instead.
    pub why: &'static str,
}

use Meaning::{As, Idle, If, Never, Only};
use Takes::{List, One, Switch};

const OFF: Meaning = Only(&["false", "none"]);
const ON: Meaning = Only(&["true"]);
const UNSET: Meaning = Only(&["none", ""]);

/// A reason, and the flags to which it applies.
type Rows = (&'static str, &'static [(&'static str, Takes, Meaning)]);

const TABLE: &[Rows] = &[
    // Precision and device.
    ("use --dtype", &[("bf16", Switch, As(&[("true", &["--dtype=bf16"]), ("false", &["--dtype=f32"])]))]),
    ("use --device", &[("use-cpu", Switch, CPU), ("no-cuda", Switch, CPU)]),
    ("fp16 is not supported; use --dtype bf16", &[("fp16", Switch, OFF), ("fp16-full-eval", Switch, OFF)]),
    ("evaluation uses the precision of the whole run; see --dtype", &[("bf16-full-eval", Switch, OFF)]),
    ("GEMMs in f32 keep its precision; see --dtype", &[("tf32", Switch, Idle)]),
    (
        "steps run on compiled kernels; see --cuda-graph",
        &[
            ("torch-compile", Switch, Idle),
            ("torch-compile-backend", One, Idle),
            ("torch-compile-mode", One, Idle),
            ("jit-mode-eval", Switch, Idle),
        ],
    ),
    (
        "logits are never stored in any mode",
        &[("use-liger-kernel", Switch, Idle), ("use-liger", Switch, Idle), ("liger-kernel-config", One, Idle)],
    ),
    ("attention has one implementation per device, which is exact", &[("attn-implementation", One, Idle)]),
    (
        "--gradient-checkpointing keeps the input of every layer in device memory and has no further options",
        &[
            ("gradient-checkpointing-kwargs", One, If(checkpointing)),
            ("activation-checkpointing-kwargs", One, If(checkpointing)),
        ],
    ),
    (
        "activations stay on the device; --gradient-checkpointing needs less memory",
        &[("activation-offloading", Switch, Idle)],
    ),
    ("buffers are allocated once", &[("torch-empty-cache-steps", One, Idle)]),
    (
        "a batch that does not fit is an error that names the largest batch that fits; lower \
         --per-device-train-batch-size",
        &[("auto-find-batch-size", Switch, OFF)],
    ),
    ("generation is not part of training", &[("use-cache", Switch, Idle)]),
    // Several devices.
    (
        "a run has one device",
        &[
            ("average-tokens-across-devices", Switch, Idle),
            ("ddp-find-unused-parameters", Switch, Idle),
            ("ddp-bucket-cap-mb", One, Idle),
            ("ddp-broadcast-buffers", Switch, Idle),
            ("ddp-static-graph", Switch, Idle),
            ("ddp-backend", One, Idle),
            ("ddp-timeout", One, Idle),
            ("log-on-each-node", Switch, Idle),
            ("save-on-each-node", Switch, Idle),
            ("log-level-replica", One, Idle),
            ("ignore-bias-buffers", Switch, Idle),
            ("local-rank", One, Only(&["-1", "0"])),
            ("num-processes", One, Only(&["1"])),
            ("num-machines", One, Only(&["1"])),
            ("accelerate-config", One, Only(&["single_gpu"])),
            ("parallelism-config", One, UNSET),
        ],
    ),
    (
        "weights are sharded by --shard-weights, over ranks of a launcher (docs/ranks.md)",
        &[
            ("fsdp", One, OFF),
            ("fsdp-config", One, UNSET),
            ("deepspeed", One, UNSET),
            ("accelerator-config", One, UNSET),
        ],
    ),
    // Optimiser and regularisation.
    (
        "AdamW is the only optimiser; leave it out",
        &[
            ("optim", One, Only(&["adamw_torch", "adamw_torch_fused", "adamw_apex_fused", "adamw_hf", "adamw"])),
            ("optim-args", One, UNSET),
            ("optim-target-modules", One, UNSET),
        ],
    ),
    ("dropout is not supported", &[("disable-dropout", Switch, ON)]),
    (
        "next-token targets are not smoothed; DPO and reward runs have --label-smoothing",
        &[("label-smoothing-factor", One, Only(&["0"]))],
    ),
    ("no noise is added to embeddings", &[("neftune-noise-alpha", One, Only(&["none", "0"]))]),
    ("mixtures of experts are not supported", &[("router-aux-loss-coef", One, Only(&["none", "0"]))]),
    ("every run is deterministic", &[("full-determinism", Switch, Idle)]),
    // Adapters and quantisation.
    (
        "adapters are LoRA on linear layers, and a reward head is always saved; use --lora-target-modules",
        &[
            ("lora-target-parameters", List, Never),
            ("lora-modules-to-save", List, Only(&["score"])),
            ("use-dora", Switch, OFF),
            ("model-adapter-name", One, Never),
            ("ref-adapter-name", One, Never),
        ],
    ),
    (
        "the command decides the task, sequence classification in reward runs and language modelling in others",
        &[("lora-task-type", One, Only(&["CAUSAL_LM", "SEQ_CLS"]))],
    ),
    (
        "quantised training is not implemented",
        &[
            ("load-in-4bit", Switch, OFF),
            ("load-in-8bit", Switch, OFF),
            ("bnb-4bit-quant-type", One, Only(&["nf4"])),
            ("use-bnb-nested-quant", Switch, OFF),
            ("bnb-4bit-quant-storage", One, UNSET),
        ],
    ),
    // Loss.
    (
        "the reference stays frozen",
        &[
            ("sync-ref-model", Switch, OFF),
            ("ref-model-mixup-alpha", One, Only(&["0.6"])),
            ("ref-model-sync-steps", One, Only(&["512"])),
        ],
    ),
    ("use --ref-model none", &[("reference-free", Switch, OFF)]),
    // Model.
    ("no code of a model folder is run", &[("trust-remote-code", Switch, Idle)]),
    ("use --dtype and --model", &[("model-init-kwargs", One, If(loading))]),
    (
        "a folder holds one revision; `hf download --revision` fetches another",
        &[("model-revision", One, Only(&["main"]))],
    ),
    (
        "the EOS token is the tokenizer's; set eos_token in the model folder's tokenizer_config.json",
        &[("eos-token", One, UNSET)],
    ),
    // Data.
    (
        "data are read from files; use --train-file and --eval-file",
        &[
            ("dataset-name", One, Never),
            ("dataset-config", One, Never),
            ("dataset-train-split", One, Never),
            ("dataset-test-split", One, Never),
            ("datasets", List, UNSET),
            ("test-split-size", One, UNSET),
            ("dataset-streaming", Switch, OFF),
            ("streaming", Switch, OFF),
        ],
    ),
    (
        "rows are read by the run itself, in parallel",
        &[
            ("dataset-num-proc", One, Idle),
            ("dataloader-num-workers", One, Idle),
            ("dataloader-pin-memory", Switch, Idle),
            ("dataloader-persistent-workers", Switch, Idle),
            ("dataloader-prefetch-factor", One, Idle),
            ("dataloader-multiprocessing-context", One, Idle),
            ("dataloader-in-order", Switch, Idle),
        ],
    ),
    ("the last, incomplete batch of an epoch is used for training too", &[("dataloader-drop-last", Switch, OFF)]),
    ("keys that no reader uses are listed; see --drop-columns", &[("remove-unused-columns", Switch, Idle)]),
    (
        "names of columns are set by --column-map",
        &[("label-names", List, UNSET), ("dataset-text-field", One, Only(&["text"]))],
    ),
    ("rows are always prepared", &[("dataset-kwargs", One, If(prepared))]),
    ("use --no-shuffle for the order of the file", &[("shuffle-dataset", Switch, Idle)]),
    (
        "rows are shuffled, or in the order of the file with --no-shuffle",
        &[
            ("train-sampling-strategy", One, As(&[("random", &[]), ("sequential", &["--no-shuffle"])])),
            ("group-by-length", Switch, OFF),
            ("length-column-name", One, Only(&["length"])),
        ],
    ),
    (
        "a batch is a number of rows, packed without padding; raise --per-device-train-batch-size instead",
        &[("packing", Switch, OFF), ("eval-packing", Switch, OFF), ("packing-strategy", One, Only(&["bfd"]))],
    ),
    ("sequences are packed without padding", &[("padding-free", Switch, Idle), ("pad-to-multiple-of", One, Idle)]),
    (
        "use --on-too-long",
        &[("truncation-mode", One, As(&[("keep_start", &["--on-too-long=truncate-completion-right"])]))],
    ),
    (
        "the limit is on the whole sequence; use --max-length and --on-too-long",
        &[("max-prompt-length", One, UNSET), ("max-completion-length", One, UNSET), ("max-target-length", One, UNSET)],
    ),
    (
        "the loss covers responses only; prompts never contribute to it",
        &[("completion-only-loss", Switch, Only(&["true", "none"]))],
    ),
    ("the loss covers the assistant's turns only", &[("assistant-only-loss", Switch, Idle)]),
    // Logging.
    ("every update is in metrics.jsonl, and the first is always printed", &[("logging-first-step", Switch, Idle)]),
    ("a loss that is not finite is shown as it is", &[("logging-nan-inf-filter", Switch, Idle)]),
    (
        "the number of tokens is always counted",
        &[("include-num-input-tokens-seen", Switch, Idle), ("include-tokens-per-second", Switch, Idle)],
    ),
    ("--quiet prints errors, warnings and the result only", &[("log-level", One, Idle)]),
    ("the variable CI hides the progress bar", &[("disable-tqdm", Switch, Idle)]),
    (
        "--output-dir names the run, and metrics and event files are written there",
        &[("run-name", One, Idle), ("project", One, Idle), ("logging-dir", One, UNSET)],
    ),
    (
        "mapl uploads to no service; for local event files, use --report-to tensorboard",
        &[
            ("trackio-space-id", One, UNSET),
            ("trackio-bucket-id", One, UNSET),
            ("trackio-static-space-id", One, Only(&["none", "", "false"])),
        ],
    ),
    ("no operation is instrumented; use --profile", &[("debug", List, UNSET), ("skip-memory-metrics", Switch, ON)]),
    // Evaluation.
    (
        "evaluation batches are packed to a separate token budget",
        &[
            ("per-device-eval-batch-size", One, Idle),
            ("eval-accumulation-steps", One, Idle),
            ("eval-do-concat-batches", Switch, Idle),
            ("eval-use-gather-object", Switch, Idle),
            ("batch-eval-metrics", Switch, Idle),
        ],
    ),
    (
        "an evaluation file is also evaluated at the start",
        &[("eval-on-start", Switch, Idle), ("eval-delay", One, Only(&["0"]))],
    ),
    (
        "evaluations report every metric",
        &[("prediction-loss-only", Switch, Idle), ("include-for-metrics", List, UNSET)],
    ),
    ("--eval-file decides whether a run evaluates", &[("do-eval", Switch, Idle)]),
    ("the command trains", &[("do-train", Switch, Idle)]),
    ("use `mapl score` and `mapl eval`", &[("do-predict", Switch, OFF)]),
    // Checkpoints.
    ("every checkpoint can be resumed", &[("save-only-model", Switch, OFF)]),
    ("weights are saved as safetensors", &[("save-safetensors", Switch, ON)]),
    ("SIGTERM saves a checkpoint", &[("enable-jit-checkpoint", Switch, Idle)]),
    (
        "a resumed run continues exactly where it stopped",
        &[("ignore-data-skip", Switch, OFF), ("restore-callback-states-from-checkpoint", Switch, Idle)],
    ),
    (
        "nothing is uploaded; the output folder loads in transformers",
        &[
            ("push-to-hub", Switch, OFF),
            ("hub-model-id", One, UNSET),
            ("hub-token", One, UNSET),
            ("hub-private-repo", Switch, OFF),
            ("hub-strategy", One, Only(&["every_save"])),
            ("hub-always-push", Switch, OFF),
            ("hub-revision", One, UNSET),
        ],
    ),
];

const CPU: Meaning = As(&[("true", &["--device=cpu"]), ("false", &[])]);

/// Values of one of mapl's flags that TRL supports but mapl does not. `refused` is the reason for the error; if
/// it is `None`, the flag is ignored.
pub(super) struct ForeignValue {
    pub flag: &'static str,
    values: &'static [&'static str],
    pub refused: Option<&'static str>,
}

const VALUES: &[ForeignValue] = &[
    ForeignValue { flag: "max-steps", values: &["-1"], refused: None },
    ForeignValue { flag: "dtype", values: &["auto"], refused: None },
    ForeignValue {
        flag: "dtype",
        values: &["float16", "fp16", "half"],
        refused: Some("fp16 is not supported; use bf16"),
    },
    ForeignValue {
        flag: "report-to",
        values: &[
            "wandb",
            "trackio",
            "mlflow",
            "comet_ml",
            "swanlab",
            "clearml",
            "neptune",
            "azure_ml",
            "codecarbon",
            "dagshub",
            "dvclive",
            "flyte",
            "kubeflow",
            "ray",
        ],
        refused: Some("mapl uploads to no service; use tensorboard, whose event files most services import, or none"),
    },
    ForeignValue {
        flag: "lr-scheduler-type",
        values: &["reduce_lr_on_plateau", "greedy"],
        refused: Some("a schedule does not depend on metrics here; use linear or cosine"),
    },
    ForeignValue {
        flag: "lr-scheduler-type",
        values: &["cosine_warmup_with_min_lr"],
        refused: Some("use cosine_with_min_lr, with a warm-up from 0"),
    },
    ForeignValue {
        flag: "save-strategy",
        values: &["best"],
        refused: Some("use steps or epoch with --load-best-model-at-end, and --save-total-limit 1"),
    },
];

/// Whether `--gradient-checkpointing-kwargs` is a JSON object with only `use_reentrant`, which changes no
/// result, and default values of other keys.
fn checkpointing(text: &str) -> bool {
    object(text).is_some_and(|object| {
        object.iter().all(|(key, value)| match key.as_str() {
            "use_reentrant" => value.is_boolean(),
            "every_n_layers" => value == 1,
            "offload" => value == false,
            _ => false,
        })
    })
}

/// Whether `--model-init-kwargs` is `none` or a JSON object in which no key changes a result.
fn loading(text: &str) -> bool {
    let idle = ["attn_implementation", "device_map", "low_cpu_mem_usage", "use_cache"];
    text == "none" || object(text).is_some_and(|object| object.keys().all(|key| idle.contains(&key.as_str())))
}

fn prepared(text: &str) -> bool {
    let only = |object: &serde_json::Map<String, Value>| {
        object.iter().all(|(key, value)| key == "skip_prepare_dataset" && value == false)
    };
    text == "none" || object(text).is_some_and(|object| only(&object))
}

fn object(text: &str) -> Option<serde_json::Map<String, Value>> {
    // Python's spelling of booleans and quotes is accepted too.
    let json = text.replace("True", "true").replace("False", "false").replace('\'', "\"");
    serde_json::from_str(&json).ok()
}

/// Every flag of the table.
pub(super) fn all() -> impl Iterator<Item = Foreign> {
    TABLE
        .iter()
        .flat_map(|(why, rows)| rows.iter().map(|&(name, takes, meaning)| Foreign { name, takes, meaning, why }))
}

/// A flag by its name in kebab case, without dashes.
pub(super) fn find(name: &str) -> Option<Foreign> {
    all().find(|flag| flag.name == name)
}

/// Whether TRL supports values of this mapl flag that mapl does not support.
pub(super) fn has_foreign_values(flag: &str) -> bool {
    VALUES.iter().any(|known| known.flag == flag)
}

/// Returns the table entry for `value` of mapl's flag `flag`, if only TRL supports this value.
pub(super) fn foreign_value(flag: &str, value: &str) -> Option<&'static ForeignValue> {
    let value = value.to_lowercase();
    VALUES.iter().find(|known| known.flag == flag && known.values.contains(&value.as_str()))
}

/// Replacement of a TRL flag together with its value.
#[derive(Debug, PartialEq)]
pub(super) enum Becomes {
    /// Flags of mapl; empty if the value requests the behaviour that mapl always has.
    Words(&'static [&'static str]),
    /// No flag; the value requests something that has no effect here.
    Idle,
    Refused,
}

impl Foreign {
    /// Returns the replacement of the flag with `value`, which is `true` or `false` for a switch.
    pub(super) fn of(&self, value: &str) -> Becomes {
        let accepted = |known: bool| if known { Becomes::Words(&[]) } else { Becomes::Refused };
        match self.meaning {
            Never => Becomes::Refused,
            Idle => Becomes::Idle,
            If(asks) => accepted(asks(value) || value.eq_ignore_ascii_case("none")),
            Only(values) => accepted(values.iter().any(|known| same(known, value))),
            As(values) => match values.iter().find(|(known, _)| same(known, value)) {
                Some((_, words)) => Becomes::Words(words),
                None => Becomes::Refused,
            },
        }
    }
}

/// Whether two values are equal, ignoring case, or are equal as numbers.
fn same(known: &str, value: &str) -> bool {
    let value = if value.eq_ignore_ascii_case("null") { "none" } else { value };
    let numbers = (known.parse::<f64>(), value.parse::<f64>());
    known.eq_ignore_ascii_case(value) || matches!(numbers, (Ok(a), Ok(b)) if a.partial_cmp(&b) == Some(Ordering::Equal))
}
