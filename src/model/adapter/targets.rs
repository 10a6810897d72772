//! Modules of a model that an adapter changes, with their ranks and factors, by PEFT's rules.

use regex::Regex;

use super::config::{AdapterConfig, CONFIG_FILE, Targets};
use crate::model::config::{Head, ModelConfig};
use crate::model::tensors::{Order, Role, TensorSpec};

/// A module with a low-rank product.
#[derive(Clone, Debug, PartialEq)]
pub struct AdaptedModule {
    /// Name of its weight, `MODULE.weight`: (outputs, inputs), (inputs, outputs) if the family stores
    /// columns, or (vocab, hidden) for an embedding.
    pub tensor: TensorSpec,
    /// Rows of A and columns of B.
    pub rank: usize,
    /// Factor of the product B A.
    pub scale: f64,
}

impl AdaptedModule {
    /// Name of the module, as PEFT matches it.
    pub fn name(&self) -> &str {
        module_name(&self.tensor)
    }

    /// Whether the module is the embedding table, which looks rows up instead of multiplying.
    pub fn is_embedding(&self) -> bool {
        matches!(self.tensor.role, Role::Embedding | Role::Positions)
    }

    /// Whether the product B A is added to the transpose of the stored tensor.
    pub fn is_transposed(&self) -> bool {
        self.is_embedding() || self.tensor.order == Order::Columns
    }

    /// Names and shapes of A and B in the adapter's file. A is (rank, inputs) and B (outputs, rank); for an
    /// embedding A is (rank, vocab) and B (hidden, rank).
    pub fn parts(&self) -> [(String, Vec<usize>); 2] {
        let (rows, columns) = (self.tensor.shape[0], self.tensor.shape[1]);
        let name = |part: &str| format!("{PREFIX}{}.{part}", self.name());
        let (outputs, inputs) = if self.is_transposed() { (columns, rows) } else { (rows, columns) };
        match self.is_embedding() {
            false => {
                [(name("lora_A.weight"), vec![self.rank, inputs]), (name("lora_B.weight"), vec![outputs, self.rank])]
            }
            true => [
                (name("lora_embedding_A"), vec![self.rank, inputs]),
                (name("lora_embedding_B"), vec![outputs, self.rank]),
            ],
        }
    }
}

/// Start of every name in an adapter's file.
pub const PREFIX: &str = "base_model.model.";

/// Name of the module that holds a weight.
pub(super) fn module_name(tensor: &TensorSpec) -> &str {
    tensor.name.strip_suffix(".weight").unwrap_or(&tensor.name)
}

/// Whether LoRA can adapt a tensor: weights of linear layers, and the embedding table.
fn is_adaptable(tensor: &TensorSpec) -> bool {
    tensor.shape.len() == 2 && tensor.name.ends_with(".weight")
}

/// A compiled rule that selects modules by name.
enum Rule {
    Names(Vec<String>),
    Pattern(Regex),
    AllLinear,
}

impl Rule {
    fn of(targets: &Targets) -> Result<Self, String> {
        Ok(match targets {
            Targets::Names(names) => Rule::Names(names.clone()),
            Targets::AllLinear => Rule::AllLinear,
            Targets::Pattern(pattern) => Rule::Pattern(compiled(&format!("^(?:{pattern})$"), pattern)?),
        })
    }

    fn matches(&self, name: &str, role: Role) -> bool {
        match self {
            Rule::Names(names) => names.iter().any(|end| ends_with(name, end)),
            Rule::Pattern(pattern) => pattern.is_match(name),
            Rule::AllLinear => !matches!(role, Role::Embedding | Role::Positions | Role::LmHead | Role::Score),
        }
    }
}

/// Whether a name is `end`, or ends with a dot and `end`.
fn ends_with(name: &str, end: &str) -> bool {
    name.strip_suffix(end).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

fn compiled(expression: &str, written: &str) -> Result<Regex, String> {
    Regex::new(expression).map_err(|_| {
        format!(
            "the expression {written:?} of {CONFIG_FILE} cannot be evaluated here; list the modules by name instead, as \
             in [\"q_proj\", \"v_proj\"]"
        )
    })
}

/// Values by regular expression. The value of the first expression that matches the end of a name counts.
struct Patterns<T>(Vec<(Regex, T)>);

impl<T: Copy> Patterns<T> {
    fn of(patterns: &[(String, T)]) -> Result<Self, String> {
        let one = |(key, value): &(String, T)| Ok((compiled(&format!(r"^(?:.*\.)?(?:{key})$"), key)?, *value));
        patterns.iter().map(one).collect::<Result<_, String>>().map(Self)
    }

    fn value(&self, name: &str, default: T) -> T {
        self.0.iter().find(|(pattern, _)| pattern.is_match(name)).map_or(default, |(_, value)| *value)
    }
}

impl AdapterConfig {
    /// Modules of a model that the adapter changes by a low-rank product, in the order of
    /// [`ModelConfig::tensors`].
    ///
    /// # Errors
    /// The reason if an expression cannot be evaluated, a name matches no module, or a layer does not
    /// exist.
    pub fn modules(&self, model: &ModelConfig) -> Result<Vec<AdaptedModule>, String> {
        let rule = Rule::of(&self.target_modules)?;
        let excluded = self.exclude_modules.as_ref().map(Rule::of).transpose()?;
        let (ranks, alphas) = (Patterns::of(&self.rank_pattern)?, Patterns::of(&self.alpha_pattern)?);
        let layers = self.layer_rules(model)?;
        let mut found = Vec::new();
        for tensor in model.tensors().into_iter().filter(is_adaptable) {
            let name = module_name(&tensor);
            let targeted = rule.matches(name, tensor.role) && layers.as_ref().is_none_or(|rules| rules.contain(name));
            if !targeted
                || excluded.as_ref().is_some_and(|rule| rule.matches(name, tensor.role))
                || self.saves_whole(name)
            {
                continue;
            }
            let rank = ranks.value(name, self.r);
            let alpha = alphas.value(name, self.lora_alpha);
            let scale = if self.use_rslora { alpha / (rank as f64).sqrt() } else { alpha / rank as f64 };
            found.push(AdaptedModule { tensor, rank, scale });
        }
        if found.is_empty() {
            let known: Vec<String> = adaptable_names(model);
            return Err(format!(
                "no module of {} matches the target modules {}; it has {}",
                model.architecture(),
                self.target_modules.shown(),
                known.join(", ")
            ));
        }
        Ok(found)
    }

    /// Names of `target_modules` that match no module of a model. PEFT ignores them.
    pub fn unmatched(&self, model: &ModelConfig) -> Vec<String> {
        let Targets::Names(names) = &self.target_modules else { return Vec::new() };
        let tensors = model.tensors();
        let matches = |end: &str| tensors.iter().any(|t| is_adaptable(t) && ends_with(module_name(t), end));
        names.iter().filter(|name| !matches(name)).cloned().collect()
    }

    /// Whether a module is stored whole, and so has no low-rank product.
    pub(super) fn saves_whole(&self, name: &str) -> bool {
        // PEFT wraps every module that ends with such a name.
        self.modules_to_save.iter().any(|saved| name.ends_with(saved.as_str()))
    }

    fn layer_rules(&self, model: &ModelConfig) -> Result<Option<LayerRules>, String> {
        let Some(layers) = &self.layers_to_transform else { return Ok(None) };
        if let Some(layer) = layers.iter().find(|&&layer| layer >= model.layers) {
            return Err(format!("\"layers_to_transform\" names layer {layer}, but the model has {}", model.layers));
        }
        let expressions = match self.layers_pattern.is_empty() {
            true => vec![compiled(r"^.*?\.[^.]*\.(\d+)\.", "layers_pattern")?],
            false => self
                .layers_pattern
                .iter()
                .map(|pattern| compiled(&format!(r"^(?:|.*?\.)(?:{pattern})\.(\d+)\."), pattern))
                .collect::<Result<_, _>>()?,
        };
        Ok(Some(LayerRules { layers: layers.clone(), expressions }))
    }
}

/// Layers that have adapters.
struct LayerRules {
    layers: Vec<usize>,
    /// Each captures the layer number in the name of a module.
    expressions: Vec<Regex>,
}

impl LayerRules {
    fn contain(&self, name: &str) -> bool {
        let number = self.expressions.iter().find_map(|e| e.captures(name)?.get(1)?.as_str().parse::<usize>().ok());
        number.is_some_and(|number| self.layers.contains(&number))
    }
}

impl Targets {
    fn shown(&self) -> String {
        match self {
            Targets::Names(names) => names.join(", "),
            Targets::Pattern(pattern) => format!("{pattern:?}"),
            Targets::AllLinear => "all-linear".to_owned(),
        }
    }
}

/// Last component of the name of every module that LoRA can adapt, without duplicates.
pub fn adaptable_names(model: &ModelConfig) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for tensor in model.tensors().iter().filter(|t| is_adaptable(t) && t.role != Role::Score) {
        let name = module_name(tensor).rsplit('.').next().unwrap_or_default().to_owned();
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

/// Whether the head of a model and its embedding table are one tensor.
pub(super) fn ties(model: &ModelConfig) -> bool {
    model.tied && model.head == Head::LanguageModel
}
