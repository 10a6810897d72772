//! Resolves command-line flags to complete options: preset, then explicit values, then checks.

use super::*;

/// Explicitly given weights, in the order base, intra, inter; `None` keeps the preset of the
/// objective.
pub type ExplicitWeights = [Option<f64>; 3];

impl BuildArgs {
    /// Returns complete options: the preset of the objective (`default` if none was given),
    /// overlaid with every given flag. `weights` are the explicitly given kind weights; a kind of
    /// weight 0 is not built.
    ///
    /// # Errors
    /// [`Error::Usage`] for a value out of range, an unknown function, or a flag that has no effect.
    pub fn resolve(&self, default: Objective, weights: ExplicitWeights) -> Result<BuildOptions> {
        let objective = self.objective.unwrap_or(default);
        let mut o = BuildOptions::preset(objective);
        let preset = objective.kind_weights();
        let weight = |i: usize| weights[i].unwrap_or(preset[i]);
        o.build_intra = objective.builds() && weight(1) > 0.0;
        o.build_inter = objective.builds() && weight(2) > 0.0;

        macro_rules! overlay {
            ($($field:ident),*) => { $(if let Some(value) = self.$field { o.$field = value; })* };
        }
        overlay!(intra_rule, violations, k_min, k_max, intra_responses, lambda_resp, intra_anchor, n_intra, n_inter);
        overlay!(inter_loss, inter_dir, inter_prompts, inter_infeasible, redraw, build_attempts, gamma);
        overlay!(placement, joiner, turn, avoid_existing, data_seed);
        // If only one bound is given, the preset's other bound moves with it, so `--k-max 1` or
        // `--k-min 7` is enough.
        match (self.k_min, self.k_max) {
            (Some(low), None) => o.k_max = o.k_max.max(low),
            (None, Some(high)) => o.k_min = o.k_min.min(high.max(1)),
            (Some(_), Some(_)) | (None, None) => {}
        }
        self.resolve_functions(&mut o)?;
        for (flag, given) in [("intra-weight", weights[1]), ("inter-weight", weights[2])] {
            refuse_if(objective == Objective::Base && given.is_some(), flag, || {
                "under --objective base, which trains only base comparisons".into()
            })?;
        }
        self.check_effects(&o)?;
        o.check()?;
        Ok(o)
    }

    fn resolve_functions(&self, o: &mut BuildOptions) -> Result<()> {
        let ids = |names: &[String], flag: &str| -> Result<Vec<String>> {
            let chosen = names.iter().map(|n| function_id(n.trim(), flag)).collect::<Result<Vec<_>>>()?;
            let in_order = instructions::all().iter().map(|f| f.id).filter(|id| chosen.contains(id));
            Ok(in_order.map(str::to_owned).collect())
        };
        if let Some(names) = &self.functions {
            o.functions = ids(names, "--functions")?;
        }
        if let Some(names) = &self.holdout_functions {
            o.holdout_functions = ids(names, "--holdout-functions")?;
            if let Some(id) = o.holdout_functions.iter().find(|id| !o.functions.contains(id)) {
                return Err(Error::Usage(format!(
                    "--holdout-functions {id} has no effect: --functions does not contain it; leave it out"
                )));
            }
            o.functions.retain(|id| !o.holdout_functions.contains(id));
        }
        Ok(())
    }

    /// Rejects flags that have no effect.
    fn check_effects(&self, o: &BuildOptions) -> Result<()> {
        let name = o.objective.to_possible_value().map_or_else(String::new, |v| v.get_name().to_owned());
        let weights = if o.objective.builds() { " with these weights" } else { "" };
        let kinds = [
            (self.common_flags(), o.build_intra || o.build_inter, "comparisons"),
            (self.intra_flags(), o.build_intra, "intra comparisons"),
            (self.inter_flags(), o.build_inter, "inter comparisons"),
        ];
        for (flags, built, what) in kinds {
            for (flag, given) in flags {
                let cause = || format!("under --objective {name}{weights}, which builds no {what}");
                refuse_if(given && !built, flag, cause)?;
            }
        }
        let bare = o.build_intra && o.intra_anchor == IntraAnchor::Bare;
        refuse_if(bare && self.intra_rule.is_some(), "intra-rule", || "with --intra-anchor bare".into())?;
        refuse_if(bare && self.violations.is_some(), "violations", || "with --intra-anchor bare".into())?;
        refuse_if(o.intra_responses == IntraResponses::Chosen && self.lambda_resp.is_some(), "lambda-resp", || {
            "with --intra-responses chosen".into()
        })?;
        refuse_if(o.inter_loss != InterLoss::PairMargin && self.gamma.is_some(), "gamma", || {
            "without --inter-loss pair-margin".into()
        })?;
        // Without intra comparisons of instructed prompts, `--inter-prompts` decides only whether both
        // directions use the same functions.
        let unshared = bare || !o.build_intra;
        refuse_if(unshared && o.inter_dir != InterDir::Both && self.inter_prompts.is_some(), "inter-prompts", || {
            let cause = if bare { "with --intra-anchor bare" } else { "without intra comparisons" };
            format!("{cause} and with one direction (--objective {name})")
        })?;
        refuse_if(unshared && self.build_attempts.is_some(), "build-attempts", || {
            format!("under --objective {name}, which builds no pair of instructed prompts")
        })?;
        refuse_if(o.placement == Placement::System && self.turn.is_some(), "turn", || "with --placement system".into())
    }

    /// Flags that affect every built comparison, and whether they were given.
    fn common_flags(&self) -> Vec<(&'static str, bool)> {
        vec![
            ("k-min", self.k_min.is_some()),
            ("k-max", self.k_max.is_some()),
            ("redraw", self.redraw.is_some()),
            ("inter-infeasible", self.inter_infeasible.is_some()),
            ("placement", self.placement.is_some()),
            ("joiner", self.joiner.is_some()),
            ("turn", self.turn.is_some()),
            ("functions", self.functions.is_some()),
            ("holdout-functions", self.holdout_functions.is_some()),
            ("avoid-existing", self.avoid_existing.is_some()),
        ]
    }

    fn intra_flags(&self) -> Vec<(&'static str, bool)> {
        vec![
            ("intra-rule", self.intra_rule.is_some()),
            ("violations", self.violations.is_some()),
            ("intra-responses", self.intra_responses.is_some()),
            ("lambda-resp", self.lambda_resp.is_some()),
            ("intra-anchor", self.intra_anchor.is_some()),
            ("n-intra", self.n_intra.is_some()),
        ]
    }

    fn inter_flags(&self) -> Vec<(&'static str, bool)> {
        vec![
            ("inter-loss", self.inter_loss.is_some()),
            ("inter-dir", self.inter_dir.is_some()),
            ("inter-prompts", self.inter_prompts.is_some()),
            ("n-inter", self.n_inter.is_some()),
            ("gamma", self.gamma.is_some()),
        ]
    }
}

fn refuse_if(condition: bool, flag: &str, cause: impl FnOnce() -> String) -> Result<()> {
    if !condition {
        return Ok(());
    }
    Err(Error::Usage(format!("--{flag} has no effect {}; leave it out or change the other option", cause())))
}

impl BuildOptions {
    /// Checks value ranges.
    ///
    /// # Errors
    /// [`Error::Usage`] naming the option and the value.
    pub fn check(&self) -> Result<()> {
        let usage = |why: String| Err(Error::Usage(why));
        if self.k_min == 0 {
            return usage("--k-min 0 is too small: a prompt needs at least one instruction; use 1 or more".into());
        }
        if self.k_min > self.k_max {
            return usage(format!(
                "--k-min {} is larger than --k-max {}; lower it or raise --k-max",
                self.k_min, self.k_max
            ));
        }
        for (flag, value) in
            [("n-intra", self.n_intra), ("n-inter", self.n_inter), ("build-attempts", self.build_attempts)]
        {
            if value == 0 {
                return usage(format!(
                    "--{flag} 0 is too small: use 1 or more; to switch a kind off, set its weight to 0"
                ));
            }
        }
        for (flag, value) in [("lambda-resp", self.lambda_resp), ("gamma", self.gamma)] {
            if !(value.is_finite() && value >= 0.0) {
                return usage(format!("--{flag} {value} must be finite and not negative"));
            }
        }
        for id in self.functions.iter().chain(&self.holdout_functions) {
            function_id(id, "--functions")?;
        }
        if self.objective.builds() && (self.functions.is_empty() || self.k_min > self.functions.len()) {
            return usage(format!(
                "--k-min {} asks for more instructions than the {} functions left; lower it or name more functions",
                self.k_min,
                self.functions.len()
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        build: BuildArgs,
    }

    fn resolve(line: &str) -> Result<BuildOptions> {
        let words = std::iter::once("test").chain(line.split_whitespace());
        Command::try_parse_from(words).unwrap().build.resolve(Objective::Mapl, [None; 3])
    }

    fn refusal(line: &str) -> String {
        match resolve(line) {
            Err(Error::Usage(why)) => why,
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn defaults_are_the_14_functions_of_mapl() {
        let o = resolve("").unwrap();
        assert_eq!(o, BuildOptions::default());
        assert_eq!(o.functions.len(), 14);
        assert_eq!((o.k_min, o.k_max, o.data_seed), (2, 5, 42));
        let json = serde_json::to_string(&o).unwrap();
        assert!(json.contains("\"intra_rule\":\"mixed\"") && json.contains("\"inter_loss\":\"margin\""), "{json}");
        assert_eq!(serde_json::from_str::<BuildOptions>(&json).unwrap(), o);
    }

    #[test]
    fn presets_fill_what_the_user_left_open() {
        let rc = resolve("--objective rc").unwrap();
        assert_eq!((rc.intra_anchor, rc.k_min, rc.k_max), (IntraAnchor::Bare, 1, 1));
        assert_eq!(rc.functions, ["length_constraints:number_words"]);
        assert_eq!((rc.build_intra, rc.build_inter), (true, false));
        assert_eq!(Objective::Rc.kind_weights(), [1.0, 2.0, 0.0]);
        let iopo = resolve("--objective iopo").unwrap();
        assert_eq!((iopo.inter_loss, iopo.inter_dir), (InterLoss::Margin, InterDir::Up));
        assert_eq!((iopo.build_intra, iopo.build_inter), (false, true));
        let rpo = resolve("--objective rpo --gamma 0.2").unwrap();
        assert_eq!((rpo.inter_loss, rpo.inter_dir, rpo.gamma), (InterLoss::PairMargin, InterDir::Up, 0.2));
        let down = resolve("--objective iopo --inter-dir down").unwrap();
        assert_eq!(down.inter_dir, InterDir::Down);
        assert_eq!(resolve("--objective rc --k-max 3").unwrap().k_max, 3);
        assert_eq!(resolve("--k_max 1").unwrap().k_min, 1);
    }

    #[test]
    fn explicit_weights_decide_what_is_built() {
        let args = Command::try_parse_from(["test", "--objective", "iopo", "--n-intra", "2"]).unwrap().build;
        assert!(args.resolve(Objective::Mapl, [None; 3]).is_err());
        assert!(args.resolve(Objective::Mapl, [None, Some(1.0), None]).unwrap().build_intra);
        let mapl = BuildArgs::default().resolve(Objective::Mapl, [None, None, Some(0.0)]).unwrap();
        assert_eq!((mapl.build_intra, mapl.build_inter), (true, false));
        for weights in [[None, Some(2.0), None], [None, None, Some(1.0)]] {
            let refused = BuildArgs::default().resolve(Objective::Base, weights);
            assert!(matches!(refused, Err(Error::Usage(why)) if why.contains("-weight") && why.contains("base")));
        }
        assert!(BuildArgs::default().resolve(Objective::Base, [Some(2.0), None, None]).is_ok());
    }

    #[test]
    fn a_flag_without_effect_is_refused_with_both_names() {
        for (line, names) in [
            ("--objective rc --inter-loss pair", ["--inter-loss", "rc"]),
            ("--objective rpo --intra-rule a", ["--intra-rule", "rpo"]),
            ("--objective base --k-min 1", ["--k-min", "base"]),
            ("--objective rows --functions title", ["--functions", "rows"]),
            ("--gamma 0.1", ["--gamma", "pair-margin"]),
            ("--objective iopo --inter-prompts separate", ["--inter-prompts", "iopo"]),
            ("--intra-anchor bare --violations one", ["--violations", "bare"]),
            ("--intra-responses chosen --lambda-resp 2", ["--lambda-resp", "chosen"]),
            ("--objective rpo --build-attempts 3", ["--build-attempts", "rpo"]),
            ("--placement system --turn first", ["--turn", "system"]),
            ("--functions number_words,existence --holdout-functions title", ["--holdout-functions", "--functions"]),
        ] {
            let why = refusal(line);
            assert!(names.iter().all(|n| why.contains(n)), "{line}: {why}");
        }
    }

    #[test]
    fn values_out_of_range_are_refused() {
        assert!(refusal("--k-min 3 --k-max 2").contains("larger"));
        assert!(refusal("--k-min 0").contains("at least one"));
        assert!(refusal("--lambda-resp=-1").contains("not negative"));
        assert!(refusal("--lambda-resp NaN").contains("finite"));
        assert!(refusal("--functions colour").contains("keywords:existence"));
        assert!(refusal("--functions number_words --k-min 2").contains("more instructions"));
        assert!(refusal("--n-inter 0").contains("--n-inter"));
        assert!(refusal("--build-attempts 0").contains("--build-attempts"));
    }

    #[test]
    fn snake_case_flags_and_short_ids_are_accepted() {
        let o = resolve(
            "--intra_rule a-chosen-b-rejected --inter_infeasible fewer --functions number_words,title --k_min 1",
        );
        let o = o.unwrap();
        assert_eq!((o.intra_rule, o.inter_infeasible), (IntraRule::AChosenBRejected, InterInfeasible::Fewer));
        assert_eq!(o.functions, ["length_constraints:number_words", "detectable_format:title"]);
        let all: &[&str] = &[
            "k_max=3",
            "intra_responses=both",
            "lambda_resp=1",
            "intra_anchor=none",
            "n_intra=1",
            "n_inter=1",
            "inter_loss=pair-margin",
            "inter_dir=up",
            "inter_prompts=separate",
            "build_attempts=3",
            "gamma=0.1",
            "holdout_functions=number_words",
            "avoid_existing=false",
            "data_seed=9",
            "redraw=epoch",
            "joiner=list",
        ];
        let line: Vec<_> = all.iter().map(|flag| format!("--{flag}")).collect();
        let o = resolve(&line.join(" ")).unwrap();
        assert_eq!((o.avoid_existing, o.data_seed, o.functions.len()), (false, 9, 13));
    }
}
