//! Construction of preference groups. The tests recompute the flags of built rows from their texts, and check
//! rules A and B and the presets. Groups do not depend on threads or on the order of rows, and the two sides
//! of comparisons are balanced.

use std::collections::{BTreeMap, BTreeSet};

use mapl::data::group::{Comparison, Direction, Kind, Message, PreferenceGroup, Prompt, Response, Rule};
use mapl::data::instructions::{self, Analysis, FunctionKind};
use mapl::data::mapl::{Report, build_group, build_groups};
use mapl::data::options::{
    BuildOptions, InterDir, InterInfeasible, InterLoss, InterPrompts, IntraAnchor, IntraResponses, IntraRule, Joiner,
    Objective, Placement, Redraw, Violations,
};
use mapl::rng::Rng;

const WORDS: [&str; 40] = [
    "bread", "garden", "window", "river", "purple", "engine", "letter", "mountain", "silver", "winter", "carrot",
    "station", "pepper", "holiday", "village", "kitchen", "blanket", "thunder", "orchard", "lantern", "NASA", "USB",
    "market", "bottle", "meadow", "pocket", "summer", "hammer", "ribbon", "castle", "the", "and", "with", "of", "is",
    "was", "not", "this", "Ocean", "Island",
];

/// Text of `sentences` sentences in `paragraphs` paragraphs, followed by `bullets` bullet items.
fn text(rng: &mut Rng, sentences: usize, paragraphs: usize, bullets: usize) -> String {
    let sentence = |rng: &mut Rng| {
        let words: Vec<&str> = (0..rng.range(3, 12)).map(|_| *rng.choose(&WORDS).unwrap()).collect();
        words.join(" ") + "."
    };
    let mut blocks: Vec<String> = (0..paragraphs)
        .map(|_| (0..sentences.div_ceil(paragraphs)).map(|_| sentence(rng)).collect::<Vec<_>>().join(" "))
        .collect();
    blocks.extend((0..bullets).map(|_| format!("* {}", sentence(rng))));
    blocks.join("\n\n")
}

/// Ordinary pairs. As in real data, the chosen response is longer in most rows.
fn pairs(count: usize) -> Vec<PreferenceGroup> {
    (0..count)
        .map(|i| {
            let mut rng = Rng::keyed(7, &["pairs", &i.to_string()]);
            let mut response = |longest: usize| {
                let (sentences, paragraphs) = (rng.range(2, longest), rng.range(1, 4));
                let bullets = rng.below(4);
                Response::Text(text(&mut rng, sentences, paragraphs, bullets))
            };
            let (chosen, rejected) = (response(14), response(7));
            let prompt = Prompt::Text(format!("Tell me something about topic {i}."));
            PreferenceGroup::pair(format!("row-{i}"), prompt, chosen, rejected, 0.0)
        })
        .collect()
}

fn with(edit: impl FnOnce(&mut BuildOptions)) -> BuildOptions {
    let mut options = BuildOptions::default();
    edit(&mut options);
    options.check().unwrap();
    options
}

/// Ids, arguments and per-response flags of a prompt's instructions.
fn of_prompt(group: &PreferenceGroup, prompt: usize) -> Vec<(&str, &instructions::Kwargs, &[Option<bool>])> {
    let own = group.instructions.iter().filter(|i| i.prompt == prompt);
    own.map(|i| (i.id.as_str(), &i.kwargs, i.satisfied.as_slice())).collect()
}

fn signed(comparison: &Comparison, sign: i8) -> Vec<(usize, usize)> {
    comparison.terms.iter().filter(|t| t.sign == sign).map(|t| (t.prompt, t.response)).collect()
}

/// Checks a built row without its source: flags, conflicts, rules, directions, texts.
fn assert_row_is_consistent(group: &PreferenceGroup, options: &BuildOptions) {
    group.validate().unwrap();
    let distinct: BTreeSet<String> = group.prompts.iter().map(|p| serde_json::to_string(p).unwrap()).collect();
    assert_eq!(distinct.len(), group.prompts.len(), "identical prompts must be merged");
    for instruction in &group.instructions {
        let function = instructions::by_id(&instruction.id).unwrap();
        for (response, flag) in group.responses.iter().zip(&instruction.satisfied) {
            assert_eq!(function.check(&instruction.kwargs, &Analysis::new(response.text())), *flag);
        }
        let Prompt::Text(prompt) = &group.prompts[instruction.prompt] else { panic!("text rows only") };
        let said =
            (0..instructions::VARIANTS).any(|v| prompt.contains(&function.phrase(&instruction.kwargs, v).unwrap()));
        assert!(said, "{prompt:?} does not state {instruction:?}");
    }
    for prompt in 0..group.prompts.len() {
        let own = of_prompt(group, prompt);
        assert!(own.len() <= options.k_max);
        for (i, a) in own.iter().enumerate() {
            for b in &own[..i] {
                assert!(!instructions::conflicts(a.0, b.0) && !instructions::clash((a.0, a.1), (b.0, b.1)));
            }
        }
    }
    for comparison in &group.comparisons {
        match comparison.kind {
            Kind::Base => {}
            Kind::Intra => assert_intra_is_consistent(group, comparison, options),
            Kind::Inter => assert_inter_is_consistent(group, comparison, options),
        }
    }
}

fn assert_intra_is_consistent(group: &PreferenceGroup, comparison: &Comparison, options: &BuildOptions) {
    let ((better, y), (worse, also_y)) = (signed(comparison, 1)[0], signed(comparison, -1)[0]);
    assert_eq!(y, also_y);
    assert_eq!(comparison.weight, if y == 1 { options.lambda_resp } else { 1.0 });
    let (w, l) = (of_prompt(group, better), of_prompt(group, worse));
    let met = |list: &[(&str, &instructions::Kwargs, &[Option<bool>])], flag: bool| {
        list.iter().filter(|i| i.2[y] == Some(flag)).count()
    };
    if comparison.rule == Some(Rule::Bare) {
        if y == 0 {
            assert!(better == 0 && !l.is_empty() && met(&l, false) == l.len());
        } else {
            assert!(worse == 0 && !w.is_empty() && met(&w, true) == w.len());
        }
        return;
    }
    let k = w.len();
    assert!(k >= 1 && k == l.len());
    for (a, b) in w.iter().zip(&l) {
        assert_eq!(a.0, b.0, "both prompts need the same functions in the same order");
        assert_eq!(
            a.2[y] == b.2[y],
            a.1 == b.1,
            "equal flags must keep the arguments, different flags must change them"
        );
    }
    let changed = w.iter().zip(&l).filter(|(a, b)| a.1 != b.1).count();
    match options.violations {
        Violations::Uniform => assert!((1..=k).contains(&changed)),
        Violations::One => assert_eq!(changed, 1),
        Violations::All => assert_eq!(changed, k),
    }
    match comparison.rule.unwrap() {
        Rule::A => assert!(met(&w, true) == k && met(&l, false) == changed),
        Rule::B => assert!(met(&l, false) == k && met(&w, true) == changed),
        Rule::Bare => unreachable!(),
    }
}

fn assert_inter_is_consistent(group: &PreferenceGroup, comparison: &Comparison, options: &BuildOptions) {
    let (winner, loser) = match comparison.direction.unwrap() {
        Direction::Up => (0, 1),
        Direction::Down => (1, 0),
    };
    let prompt = comparison.terms[0].prompt;
    let own = of_prompt(group, prompt);
    assert!(!own.is_empty() && own.iter().all(|i| i.2[winner] == Some(true) && i.2[loser] == Some(false)));
    match options.inter_loss {
        InterLoss::Margin | InterLoss::Group | InterLoss::PopDetached => {
            assert_eq!(signed(comparison, 1), [(prompt, winner), (0, loser)]);
            assert_eq!(signed(comparison, -1), [(prompt, loser), (0, winner)]);
            assert_eq!(comparison.margin, 0.0);
        }
        InterLoss::Pair | InterLoss::PairMargin => {
            assert_eq!(signed(comparison, 1), [(prompt, winner)]);
            assert_eq!(signed(comparison, -1), [(prompt, loser)]);
            let gamma = if options.inter_loss == InterLoss::PairMargin { options.gamma } else { 0.0 };
            assert_eq!(comparison.margin, gamma * own.len() as f64);
        }
    }
}

fn count(group: &PreferenceGroup, kind: Kind) -> usize {
    group.comparisons.iter().filter(|c| c.kind == kind).count()
}

#[test]
fn every_row_is_consistent_under_every_option() {
    let rows = pairs(40);
    let all: Vec<String> = instructions::all().iter().map(|f| f.id.to_owned()).collect();
    let cases = [
        with(|_| ()),
        with(|o| o.intra_rule = IntraRule::A),
        with(|o| o.intra_rule = IntraRule::B),
        with(|o| o.violations = Violations::One),
        with(|o| o.violations = Violations::All),
        with(|o| o.inter_prompts = InterPrompts::Separate),
        with(|o| o.inter_dir = InterDir::Up),
        with(|o| o.inter_dir = InterDir::Down),
        with(|o| (o.n_intra, o.n_inter) = (3, 2)),
        with(|o| (o.k_min, o.k_max) = (1, 1)),
        with(|o| (o.k_min, o.k_max, o.inter_infeasible) = (9, 9, InterInfeasible::Fewer)),
        with(|o| (o.k_min, o.k_max, o.inter_infeasible) = (5, 5, InterInfeasible::Skip)),
        with(|o| o.inter_loss = InterLoss::Pair),
        with(|o| (o.inter_loss, o.gamma) = (InterLoss::PairMargin, 0.3)),
        with(|o| o.lambda_resp = 0.5),
        with(|o| o.intra_responses = IntraResponses::Rejected),
        with(|o| o.placement = Placement::Prefix),
        with(|o| o.joiner = Joiner::List),
        with(|o| o.build_inter = false),
        with(|o| o.build_intra = false),
        with(|o| (o.functions, o.intra_anchor) = (all.clone(), IntraAnchor::Bare)),
        with(|o| (o.functions, o.inter_prompts) = (all.clone(), InterPrompts::Separate)),
        BuildOptions::preset(Objective::Rc),
        BuildOptions::preset(Objective::Iopo),
        BuildOptions::preset(Objective::Rpo),
    ];
    for options in cases {
        let (groups, report) = build_groups(&rows, &options, 0);
        assert_eq!(groups.len(), rows.len());
        for (row, group) in rows.iter().zip(&groups) {
            assert_row_is_consistent(group, &options);
            assert_eq!(group.comparisons[0], row.comparisons[0], "the base comparison is kept");
            assert_eq!(count(group, Kind::Base), 1);
        }
        let built = |kind: Kind| groups.iter().map(|g| count(g, kind)).sum::<usize>() as u64;
        for kind in Kind::ALL {
            assert_eq!(report.comparisons[kind.index()], built(kind));
        }
        let wanted = |asked: bool, draws: usize| if asked { (draws * rows.len()) as u64 } else { 0 };
        let sides = if options.intra_responses == IntraResponses::Both { 2 } else { 1 };
        let directions = if options.inter_dir == InterDir::Both { 2 } else { 1 };
        let dropped = |kind: &str| report.dropped.get(kind).map_or(0, |reasons| reasons.values().sum::<u64>());
        assert_eq!(built(Kind::Intra) + dropped("intra"), wanted(options.build_intra, options.n_intra * sides));
        assert_eq!(built(Kind::Inter) + dropped("inter"), wanted(options.build_inter, options.n_inter * directions));
        if options.k_max <= 5 && options.inter_infeasible == InterInfeasible::Resample {
            assert!(dropped("intra") + dropped("inter") <= rows.len() as u64 / 10, "{report}");
        }
    }
}

#[test]
fn a_shared_group_has_five_prompts_and_eight_sequences() {
    let rows = pairs(60);
    // With few instructions two contrast prompts may be equal and are merged. One change among
    // three or more instructions gives distinct prompts.
    let options = with(|o| (o.violations, o.k_min) = (Violations::One, 3));
    let (groups, _) = build_groups(&rows, &options, 0);
    let full = groups.iter().filter(|g| g.comparisons.len() == 5).collect::<Vec<_>>();
    assert!(full.iter().filter(|g| g.prompts.len() == 5 && g.sequences().len() == 8).count() >= 55);
    let separate = |dir| with(|o| (o.inter_prompts, o.inter_dir) = (InterPrompts::Separate, dir));
    for (options, comparisons, sequences) in
        [(separate(InterDir::Both), 5, 10), (separate(InterDir::Up), 4, 8), (separate(InterDir::Down), 4, 8)]
    {
        let (groups, _) = build_groups(&rows, &options, 0);
        let full: Vec<_> = groups.iter().filter(|g| g.comparisons.len() == comparisons).collect();
        assert!(full.len() >= 55 && full.iter().filter(|g| g.sequences().len() == sequences).count() >= 55);
    }
}

#[test]
fn presets_give_their_terms() {
    let rows = pairs(20);
    let (rc, _) = build_groups(&rows, &BuildOptions::preset(Objective::Rc), 0);
    for group in &rc {
        assert_eq!((count(group, Kind::Base), count(group, Kind::Intra), count(group, Kind::Inter)), (1, 2, 0));
        assert!(group.instructions.iter().all(|i| i.id == "length_constraints:number_words"));
        let [c, r] = [&group.comparisons[1], &group.comparisons[2]];
        assert_eq!((signed(c, 1), signed(c, -1)[0].1), (vec![(0, 0)], 0));
        assert_eq!((signed(r, 1)[0].1, signed(r, -1)), (1, vec![(0, 1)]));
    }
    let (iopo, _) = build_groups(&rows, &BuildOptions::preset(Objective::Iopo), 0);
    let (rpo, _) = build_groups(&rows, &BuildOptions::preset(Objective::Rpo), 0);
    for (four, two) in iopo.iter().zip(&rpo) {
        assert_eq!((count(four, Kind::Intra), count(four, Kind::Inter)), (0, 1));
        let (four, pair) = (&four.comparisons[1], &two.comparisons[1]);
        // The four terms of IOPO, with D the score of a prompt and a response:
        // D(x1,y1) + D(x2,y2) - D(x1,y2) - D(x2,y1), where (x1,y1,x2,y2) = (x_up, chosen, x, rejected).
        assert_eq!((signed(four, 1), signed(four, -1)), (vec![(1, 0), (0, 1)], vec![(1, 1), (0, 0)]));
        assert_eq!((signed(pair, 1), signed(pair, -1)), (vec![(1, 0)], vec![(1, 1)]));
        let differing = two.instructions.iter().filter(|i| i.prompt == 1).count();
        assert_eq!(pair.margin, 0.05 * differing as f64);
    }
    let weights = [Objective::Mapl, Objective::Rc, Objective::Iopo, Objective::Rpo].map(Objective::kind_weights);
    assert_eq!(weights, [[1.0; 3], [1.0, 2.0, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, 1.0]]);
    assert_eq!([Objective::Rows, Objective::Base].map(Objective::kind_weights), [[1.0; 3], [1.0, 0.0, 0.0]]);
    let (same, _) = build_groups(&rows, &BuildOptions::preset(Objective::Rows), 0);
    assert_eq!(same, rows);
}

#[test]
fn margin_group_and_pop_detached_give_equal_rows() {
    let rows = pairs(20);
    let bytes = |loss| {
        let (groups, _) = build_groups(&rows, &with(|o| o.inter_loss = loss), 0);
        serde_json::to_string(&groups).unwrap()
    };
    let margin = bytes(InterLoss::Margin);
    assert_eq!(margin, bytes(InterLoss::Group));
    assert_eq!(margin, bytes(InterLoss::PopDetached));
    assert_ne!(margin, bytes(InterLoss::Pair));
}

#[test]
fn construction_depends_only_on_seed_row_and_epoch() {
    let rows = pairs(30);
    let options = BuildOptions::default();
    let bytes = |threads: usize, rows: &[PreferenceGroup], options: &BuildOptions, epoch: u64| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let (groups, report) = pool.install(|| build_groups(rows, options, epoch));
        (groups.iter().map(|g| serde_json::to_string(g).unwrap()).collect::<Vec<_>>(), report)
    };
    let (one, report) = bytes(1, &rows, &options, 0);
    assert_eq!((one.clone(), report), bytes(4, &rows, &options, 0));
    assert_eq!(one, bytes(2, &rows, &options, 3).0, "groups must not depend on the epoch unless they are redrawn");
    let reversed: Vec<_> = rows.iter().rev().cloned().collect();
    assert_eq!(one, bytes(3, &reversed, &options, 0).0.into_iter().rev().collect::<Vec<_>>());
    let redraw = with(|o| o.redraw = Redraw::Epoch);
    let (first, second) = (bytes(2, &rows, &redraw, 0).0, bytes(2, &rows, &redraw, 1).0);
    assert!(first.iter().zip(&second).all(|(a, b)| a != b));
    let seed = with(|o| o.data_seed = 43);
    assert!(one.iter().zip(&bytes(2, &rows, &seed, 0).0).all(|(a, b)| a != b));
}

#[test]
fn prompts_do_not_reveal_the_preferred_side() {
    for options in [
        BuildOptions::default(),
        with(|o| o.intra_rule = IntraRule::A),
        with(|o| o.inter_prompts = InterPrompts::Separate),
        with(|o| o.inter_dir = InterDir::Up),
        with(|o| o.build_inter = false),
    ] {
        assert_sides_balance(&options);
    }
}

/// Checks shares of about 3,000 comparisons, which have a standard deviation of one percentage
/// point.
fn assert_sides_balance(options: &BuildOptions) {
    let (groups, report) = build_groups(&pairs(1500), options, 0);
    let near_half = |what: &str, share: f64| assert!((share - 0.5).abs() < 0.04, "{what}: {share} {options:?}");
    for (what, side) in ["better", "worse"].into_iter().zip(report.intra_relations) {
        near_half(what, side.share().unwrap());
    }
    if options.inter_dir == InterDir::Both {
        for (what, side) in ["chosen", "rejected"].into_iter().zip(report.satisfied) {
            near_half(what, side.share().unwrap());
        }
    }
    // Chosen responses are longer, so direction up has more "at least" relations: the balance above
    // is not trivial.
    if options.build_inter {
        let up = report.inter_relations[0].share().unwrap();
        assert!(up > 0.6, "{up}");
    }
    let half = |a: usize, b: usize| if a == b { 0.5 } else { f64::from(u8::from(a > b)) };
    let (mut longer, mut comparisons) = (0.0, 0.0);
    // Per function with a numeric argument: how often the better prompt has the smaller number, and
    // the number of changed arguments.
    let mut numbers: BTreeMap<&str, (f64, f64)> = BTreeMap::new();
    for group in &groups {
        for comparison in group.comparisons.iter().filter(|c| c.kind == Kind::Intra) {
            let [w, l] = [1, -1].map(|sign| signed(comparison, sign)[0].0);
            let length = |p: usize| serde_json::to_string(&group.prompts[p]).unwrap().len();
            longer += half(length(w), length(l));
            comparisons += 1.0;
            for (a, b) in of_prompt(group, w).into_iter().zip(of_prompt(group, l)) {
                let number = |kwargs: &instructions::Kwargs| kwargs.values().find_map(serde_json::Value::as_u64);
                if let (Some(m), Some(n)) = (number(a.1), number(b.1))
                    && a.1 != b.1
                {
                    let id = instructions::by_id(a.0).unwrap().id;
                    let sums = numbers.entry(id).or_default();
                    sums.0 += half(n as usize, m as usize);
                    sums.1 += 1.0;
                }
            }
        }
    }
    near_half("the longer prompt is better", longer / comparisons);
    for (id, (smaller, changed)) in numbers.into_iter().filter(|(_, (_, changed))| *changed >= 200.0) {
        // The tolerance is four standard deviations of the share.
        let slack = 2.0 / f64::sqrt(changed);
        assert!((smaller / changed - 0.5).abs() < slack, "{id}: the smaller number is better: {smaller} of {changed}");
    }
}

#[test]
fn conversations_are_built_and_infeasible_rows_keep_their_base() {
    let message = |role: &str, content: &str| Message::new(role, content);
    let Response::Text(long) = pairs(1)[0].responses[0].clone() else { unreachable!() };
    let talk = Prompt::Messages(vec![message("user", "Hi."), message("assistant", "Yes?"), message("user", "Talk.")]);
    let answer = |content: &str| Response::Message(message("assistant", content));
    let row = PreferenceGroup::pair("c".into(), talk, answer(&long), answer("Only a short answer here."), 0.25);
    let (group, report) = build_group(&row, &BuildOptions::default(), 0);
    group.validate().unwrap();
    assert_eq!((report.rows, report.extended, count(&group, Kind::Inter)), (1, 1, 2));
    assert_eq!(group.comparisons[0].margin, 0.25);
    for prompt in &group.prompts[1..] {
        let Prompt::Messages(messages) = prompt else { panic!("stays a conversation") };
        assert!(messages[0].content == "Hi." && messages[2].content.starts_with("Talk. "));
    }
    // Without a user turn, or with two empty responses, only the base comparison remains.
    let silent = Prompt::Messages(vec![message("assistant", "Yes?")]);
    let row = PreferenceGroup::pair("s".into(), silent, answer(&long), answer("Short."), 0.0);
    let (group, report) = build_group(&row, &BuildOptions::default(), 0);
    assert_eq!((group, report.dropped["intra"]["no user turn"]), (row, 2));
    let plain = |text: &str| Response::Text(text.into());
    let empty = PreferenceGroup::pair("e".into(), Prompt::Text("x".into()), plain(""), plain(""), 0.0);
    let (group, report) = build_group(&empty, &BuildOptions::default(), 0);
    assert_eq!((report.comparisons[2], report.groups), (0, 1));
    assert_row_is_consistent(&group, &BuildOptions::default());
    let system = with(|o| o.placement = Placement::System);
    let (group, report) = build_group(&pairs(1)[0], &system, 0);
    assert_eq!((group, report.dropped["inter"]["no system message in plain text"]), (pairs(1)[0].clone(), 2));
}

#[test]
fn built_rows_are_kept_and_base_drops_other_comparisons() {
    let rows = pairs(5);
    let (built, _) = build_groups(&rows, &BuildOptions::default(), 0);
    let (again, report) = build_groups(&built, &BuildOptions::default(), 0);
    assert_eq!((&again, report.dropped["row"]["row already built"]), (&built, 5));
    let base = BuildOptions::preset(Objective::Base);
    let (only, _) = build_groups(&built, &base, 0);
    assert!(only.iter().all(|g| g.comparisons.len() == 1 && g.comparisons[0].kind == Kind::Base));
    let mut without = built[0].clone();
    without.comparisons.retain(|c| c.kind != Kind::Base);
    let (kept, report) = build_groups(&[without], &base, 0);
    assert_eq!((kept.len(), report.rows, report.groups), (0, 1, 0));
}

#[test]
fn functions_mentioned_in_a_prompt_are_avoided() {
    let mut row = pairs(1).remove(0);
    row.prompts[0] = Prompt::Text("Write three sentences, 50 words in all, no letter e.".into());
    let forbidden =
        ["length_constraints:number_sentences", "length_constraints:number_words", "keywords:letter_frequency"];
    let uses = |avoid: bool| {
        (0..40).any(|seed| {
            let options = with(|o| (o.avoid_existing, o.data_seed) = (avoid, seed));
            build_group(&row, &options, 0).0.instructions.iter().any(|i| forbidden.contains(&i.id.as_str()))
        })
    };
    assert!(!uses(true) && uses(false));
    let (_, report) = build_group(&row, &BuildOptions::default(), 0);
    assert_eq!(report.functions["length_constraints:number_words"].mentioned, 1);
}

#[test]
fn held_out_functions_never_occur() {
    let held = "keywords:existence";
    let options = with(|o| o.functions.retain(|id| id != held));
    let (groups, _) = build_groups(&pairs(50), &options, 0);
    assert!(groups.iter().all(|g| g.instructions.iter().all(|i| i.id != held)));
}

#[test]
fn reports_add_up_and_print_as_one_aligned_table() {
    let rows = pairs(30);
    let options = BuildOptions::default();
    let (_, total) = build_groups(&rows, &options, 0);
    let mut sum = Report::default();
    for row in rows.iter().rev() {
        sum.merge(&build_group(row, &options, 0).1);
    }
    assert_eq!(sum, total);
    assert_eq!(total.rules.iter().sum::<u64>(), total.comparisons[1]);
    assert_eq!(total.directions.iter().sum::<u64>(), total.comparisons[2]);
    assert_eq!(total.changed.values().sum::<u64>(), total.comparisons[1]);
    assert!(total.rules[0] > 10 && total.rules[1] > 10);
    let table = total.to_string();
    let lines: Vec<&str> = table.lines().collect();
    let end = |line: &str, cell: &str| line.find(cell).unwrap() + cell.len();
    assert!(lines[1].starts_with("rows read") && lines[1].trim_end().ends_with("30"));
    assert_eq!(end(lines[0], "total"), lines[1].len());
    assert!(table.contains("keywords:existence") && table.contains("\"at least\", better prompts"), "{table}");
    assert!(table.contains("\nup, down: ") && table.contains("\ninfeasible: "), "{table}");
    let json = serde_json::to_value(&total).unwrap();
    assert_eq!(json["comparisons"][0], 30);
}

#[test]
fn at_least_functions_are_feasible_in_one_inter_direction() {
    let plain = |text: &str| Response::Text(text.into());
    let row = PreferenceGroup::pair(
        "p".into(),
        Prompt::Text("Go.".into()),
        plain("Dear [name], see [date] and [place]."),
        plain("Dear [name], hello."),
        0.0,
    );
    let only = |dir| {
        let options = with(|o| {
            o.functions = vec!["detectable_content:number_placeholders".into()];
            (o.k_min, o.k_max, o.inter_dir) = (1, 1, dir);
        });
        build_group(&row, &options, 0).0
    };
    assert_eq!(count(&only(InterDir::Up), Kind::Inter), 1);
    assert_eq!(count(&only(InterDir::Down), Kind::Inter), 0);
    assert_eq!(count(&only(InterDir::Both), Kind::Inter), 0);
    // Intra comparisons do not need the inter prompts.
    assert_eq!(count(&only(InterDir::Both), Kind::Intra), 2);
    assert!(instructions::all().iter().any(|f| f.kind == FunctionKind::AtLeast));
}
