//! `mapl bench --plan`: what a step costs at least on a card that need not be here.

use clap::Args;

use crate::model::presets;
use crate::study::plan::{Card, StepPlan, Workload};
use crate::train::console::say;
use crate::{Error, Result};

/// Arguments of `bench --plan`.
#[derive(Args, Clone, Debug)]
pub struct StepPlanArgs {
    /// Print the floor of every op of a step and the tiles of every launch, from sizes alone
    #[arg(long)]
    plan: bool,
    /// Model sizes; `mapl env` lists them
    #[arg(long, default_value = "qwen2.5-0.5b", requires = "plan")]
    preset: String,
    /// Card whose rates are known (h200), or a name for the rates given below
    #[arg(long, default_value = "h200", requires = "plan")]
    card: String,
    /// Multiprocessors of the card
    #[arg(long, requires_all = ["plan", "copy", "product", "peak"])]
    processors: Option<usize>,
    /// TB/s of a copy on the card, read and written
    #[arg(long, requires = "plan")]
    copy: Option<f64>,
    /// TFLOP/s of the best bf16 product on the card
    #[arg(long, requires = "plan")]
    product: Option<f64>,
    /// TFLOP/s of the card's data sheet, dense bf16, for the share of it
    #[arg(long, requires = "plan")]
    peak: Option<f64>,
    /// Pairs of a step
    #[arg(long, default_value_t = 16, requires = "plan")]
    pairs: usize,
    /// Tokens of a prompt
    #[arg(long, default_value_t = 512, requires = "plan")]
    prompt: usize,
    /// Tokens of a response
    #[arg(long, default_value_t = 256, requires = "plan")]
    response: usize,
    /// Plan a reward step instead of DPO with its reference
    #[arg(long, requires = "plan")]
    reward: bool,
    /// Print JSON
    #[arg(long, requires = "plan")]
    json: bool,
}

impl StepPlanArgs {
    /// Whether a plan is asked for.
    pub fn wanted(&self) -> bool {
        self.plan
    }

    /// Prints the plan.
    pub fn print(&self) -> Result<()> {
        let workload = Workload { pairs: self.pairs, prompt: self.prompt, response: self.response, dpo: !self.reward };
        let plan = StepPlan::new(&presets::config(&self.preset)?, &workload, &card(self)?)?;
        match self.json {
            true => {
                let text =
                    serde_json::to_string_pretty(&plan).map_err(|e| Error::Runtime(format!("cannot print: {e}")))?;
                say(&text);
            }
            false => say(&plan.text()),
        }
        Ok(())
    }
}

/// The card's rates: given ones win over known ones.
fn card(args: &StepPlanArgs) -> Result<Card> {
    for (flag, value) in [("--copy", args.copy), ("--product", args.product), ("--peak", args.peak)] {
        if value.is_some_and(|v| !(v.is_finite() && v > 0.0)) {
            return Err(Error::Usage(format!("{flag}: a finite number above 0 is needed")));
        }
    }
    if args.processors == Some(0) {
        return Err(Error::Usage("--processors 0: at least 1 is needed".into()));
    }
    let tera = |value: f64| value * 1e12;
    if let (Some(processors), Some(copy), Some(product), Some(peak)) =
        (args.processors, args.copy, args.product, args.peak)
    {
        return Ok(Card {
            name: args.card.clone(),
            processors,
            copy: tera(copy),
            product: tera(product),
            peak: tera(peak),
        });
    }
    let known = Card::named(&args.card)?;
    Ok(Card {
        copy: args.copy.map_or(known.copy, tera),
        product: args.product.map_or(known.product, tera),
        peak: args.peak.map_or(known.peak, tera),
        ..known
    })
}
