//! Prompt-blindness probes. The tests check which tokens the probes change and keep, and that intra
//! comparisons are ties without prompts.

use std::path::Path;
use std::sync::Arc;

use mapl::backend::cpu::Cpu;
use mapl::data::group::{Comparison, Kind, Message, PreferenceGroup, Prompt, Response};
use mapl::data::source::SourceRow;
use mapl::data::tokenize::{TokenizeOptions, tokenize_rows};
use mapl::data::tokenized::TokenizedGroup;
use mapl::data::tokenizer::{Tokenizer, train_bpe};
use mapl::eval::blindness::{emptied, shuffled};
use mapl::eval::measure::Quantity;
use mapl::loss::objective::{LossOptions, Method};
use mapl::model::config::ModelConfig;
use mapl::model::store;
use mapl::train::evaluate::Evaluator;
use serde_json::json;

const VOCAB: usize = 300;

fn tokenizer() -> Tokenizer {
    train_bpe((0..40).map(|i| format!("Name bird {i}. The wren sings at night.")), VOCAB).unwrap()
}

/// A pair and an intra comparison of the chosen response, under prompts that start with `prompt`.
fn group(prompt: &str, chosen: &str, rejected: &str) -> PreferenceGroup {
    let text = |s: &str| Response::Text(s.into());
    let mut group =
        PreferenceGroup::pair(prompt.into(), Prompt::Text(prompt.into()), text(chosen), text(rejected), 0.0);
    group.prompts.push(Prompt::Text(format!("{prompt}Be short. ")));
    group.comparisons.push(Comparison::pair(Kind::Intra, (1, 0), (0, 0), 0.0));
    group
}

fn tokenized(groups: Vec<PreferenceGroup>, tokenizer: &Tokenizer) -> Vec<TokenizedGroup> {
    let row = |(i, group)| SourceRow { group, file: Arc::from(Path::new("t.jsonl")), line: i + 1, scores: None };
    let rows = groups.into_iter().enumerate().map(row).collect();
    // The space at the end of a prompt would merge with the first word of a response; probes keep
    // both tokenisations.
    let options = TokenizeOptions { max_boundary_mismatch: 1.0, ..TokenizeOptions::default() };
    tokenize_rows(rows, tokenizer, &options).unwrap().0
}

fn birds(n: usize) -> Vec<PreferenceGroup> {
    // Every prompt occurs twice, so exchanging rows without comparing prompts could give a row its
    // own prompt.
    (0..n)
        .map(|i| group(&format!("Name bird {}. ", i / 2), "The wren sings.", &"At night. ".repeat(1 + i % 3)))
        .collect()
}

/// Response index and response ids of every sequence.
fn responses(group: &TokenizedGroup) -> Vec<(usize, Vec<u32>)> {
    group.sequences.iter().map(|s| (s.response, s.response_ids.clone())).collect()
}

#[test]
fn emptied_prompts_keep_the_responses_and_drop_every_word() {
    let tokenizer = tokenizer();
    let groups = tokenized(birds(4), &tokenizer);
    let probe = emptied(&groups, &tokenizer, 1024).unwrap();
    assert_eq!((probe.origin.as_slice(), probe.left_out), (&[0, 1, 2, 3][..], 0));
    for (before, after) in groups.iter().zip(&probe.groups) {
        assert!(after.prompt_ids.iter().all(|ids| ids == &[tokenizer.require_eos().unwrap()]));
        assert_eq!(after.comparisons.len(), 2);
        let mut kept = responses(after);
        kept.sort();
        let mut all = responses(before);
        all.sort();
        assert_eq!(kept, all);
        // The probe's terms refer to the same responses with the same signs.
        for (a, b) in before.comparisons.iter().zip(&after.comparisons) {
            let of = |g: &TokenizedGroup, c: &mapl::data::tokenized::SequenceComparison| {
                c.terms.iter().map(|t| (responses(g)[t.sequence].clone(), t.sign)).collect::<Vec<_>>()
            };
            assert_eq!(of(before, a), of(after, b));
        }
    }
}

#[test]
fn emptied_conversations_render_as_one_empty_user_message() {
    let dir = tempfile::tempdir().unwrap();
    let template = dir.path().join("t.jinja");
    let source = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}\
                  {% if add_generation_prompt %}<assistant>{% endif %}";
    std::fs::write(&template, source).unwrap();
    let mut tokenizer = tokenizer();
    tokenizer.set_template_file(&template).unwrap();
    let turn = |role: &str, content: &str| Message::new(role, content);
    let talk = vec![turn("system", "Be kind."), turn("user", "Name a bird.")];
    let answer = |content: &str| Response::Message(turn("assistant", content));
    let pair = PreferenceGroup::pair("1".into(), Prompt::Messages(talk), answer("A wren."), answer("An owl."), 0.0);
    let groups = tokenized(vec![pair], &tokenizer);
    let probe = emptied(&groups, &tokenizer, 1024).unwrap();
    assert_eq!(tokenizer.decode(&probe.groups[0].prompt_ids[0]).unwrap(), "<user>\n<assistant>");
}

#[test]
fn shuffled_prompts_differ_from_the_original_and_depend_on_the_seed() {
    let tokenizer = tokenizer();
    let groups = tokenized(birds(12), &tokenizer);
    let probe = shuffled(&groups, 5, 1024);
    assert_eq!((probe.groups.len(), probe.left_out), (12, 0));
    let mut used = Vec::new();
    for (before, after) in groups.iter().zip(&probe.groups) {
        assert_eq!((after.comparisons.len(), after.comparisons[0].kind), (1, Kind::Base));
        assert_ne!(after.prompt_ids[0], before.prompt_ids[0]);
        assert_eq!(after.sequences[0].response_ids, before.sequences[0].response_ids);
        used.push(after.prompt_ids[0].clone());
    }
    // Each of the six prompts is used for the two rows of one other prompt.
    let mut original: Vec<_> = groups.iter().map(|g| g.prompt_ids[0].clone()).collect();
    original.sort();
    used.sort();
    assert_eq!(used, original);
    assert_eq!(shuffled(&groups, 5, 1024), probe);
    assert!((6..12).any(|seed| shuffled(&groups, seed, 1024) != probe));
    // A single distinct prompt cannot be exchanged.
    assert!(shuffled(&groups[..2], 5, 1024).groups.is_empty());
}

#[test]
fn pairs_that_do_not_fit_are_left_out_and_counted() {
    let tokenizer = tokenizer();
    let long = format!("Name bird 7, {}please. ", "the wren that sings at night, ".repeat(9));
    let mut rows = birds(2);
    rows.push(group(&long, "A wren.", "An owl."));
    let groups = tokenized(rows, &tokenizer);
    let response = |g: &TokenizedGroup| g.sequences.iter().map(|s| s.response_ids.len()).max().unwrap();
    // The limit fits the long row itself, but is one token short for its prompt with the second
    // row's longer response.
    let limit = groups[2].prompt_ids[0].len() + response(&groups[1]) - 1;
    assert!(response(&groups[0]) < response(&groups[1]));
    let probe = shuffled(&groups, 1, limit);
    assert_eq!((probe.left_out, probe.origin.as_slice()), (1, &[0, 2][..]));
}

/// With a real model: the two sequences of an intra comparison are computed separately and have
/// bitwise equal scores.
#[test]
fn without_prompts_every_intra_comparison_is_a_tie() {
    let tokenizer = tokenizer();
    let groups = tokenized(birds(8), &tokenizer);
    let cpu = Cpu::new();
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": VOCAB, "hidden_size": 16,
        "intermediate_size": 20, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "hidden_act": "silu", "max_position_embeddings": 128, "rms_norm_eps": 1e-5, "initializer_range": 0.3,
        "tie_word_embeddings": false, "rope_theta": 100.0,
    });
    let config = ModelConfig::from_json(config.as_object().unwrap().clone(), Path::new("config.json")).unwrap();
    let mut model = store::random(&cpu, config, 1).unwrap();
    let loss = LossOptions::default().resolve(Method::Dpo, [1.0; 3], false).unwrap();
    let mut evaluator = Evaluator::new(&cpu, &model, None).unwrap();
    let mut score =
        |groups: &[TokenizedGroup]| evaluator.run(&cpu, (&mut model, None), &loss, groups, |_| ()).unwrap().0;

    let probe = emptied(&groups, &tokenizer, 128).unwrap();
    let scores = score(&probe.groups);
    let intra = probe.measure(Quantity::IntraEmptyPrompt, Kind::Intra, &scores).tally();
    assert_eq!((intra.count, intra.ties, intra.accuracy_half()), (8, 8, 0.5));
    let semantic = probe.measure(Quantity::SemanticEmptyPrompt, Kind::Base, &scores);
    assert_eq!((semantic.tally().count, semantic.tally().ties), (8, 0));
    // With prompts nothing ties, so the probe causes the ties above.
    let with = score(&groups);
    assert!(with.iter().all(|g| g.logits.iter().all(|z| *z != 0.0)));
    // Rows with equal responses have equal scores without their prompts, and different scores with
    // them.
    let logit = |i: usize| semantic.observations[i].logit;
    assert!(logit(0) == logit(3) && logit(0) != logit(1) && with[0].logits[0] != with[3].logits[0]);
}
