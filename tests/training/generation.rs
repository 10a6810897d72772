//! Generation: greedy tokens of transformers on every family, logits of single steps against whole
//! forwards, and the independence of a text from everything but its prompt, seed and settings.

use std::collections::BTreeMap;

use common::golden;
use mapl::backend::Backend;
use mapl::backend::cpu::Cpu;
use mapl::backend::kernels::Kernels;
use mapl::backend::kernels::emulator::Schedule;
use mapl::backend::reference::Reference;
use mapl::generate::{Engine, Finish, Generated, Limits, Prompt, Sampler, Sampling};
use mapl::model::config::ModelConfig;
use mapl::model::decoder::Model;
use mapl::model::store::load;
use mapl::model::weights::LoadAs;
use mapl::rng::Rng;
use serde::Deserialize;

const EOS: u32 = 2;

/// A text of `tests/golden/generate.json`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Text {
    prompt: Vec<u32>,
    repetition_penalty: f64,
    tokens: Vec<u32>,
    /// Smallest difference between the two largest logits of a step, over all steps of the text.
    gap: f64,
}

fn texts() -> BTreeMap<String, Vec<Text>> {
    serde_json::from_slice(&std::fs::read(golden::path("generate.json")).unwrap()).unwrap()
}

fn model<B: Backend>(backend: &B, name: &str) -> Model<B> {
    let folder = golden::model_folder(name);
    load(backend, &folder, ModelConfig::read(&folder).unwrap(), LoadAs::Exact, 0).unwrap().model
}

fn limits(new_tokens: usize, rows: usize) -> Limits {
    Limits { new_tokens, rows, ends: vec![EOS], seed: 5 }
}

fn prompts(ids: &[Vec<u32>], samples: usize) -> Vec<Prompt> {
    ids.iter().map(|ids| Prompt { ids: ids.clone(), samples }).collect()
}

fn random_ids(label: &str, lengths: &[usize]) -> Vec<Vec<u32>> {
    let mut rng = Rng::keyed(3, &[label]);
    lengths.iter().map(|&len| (0..len).map(|_| rng.range(3, 158) as u32).collect()).collect()
}

fn run(sampler: Sampler, limits: Limits, prompts: &[Prompt]) -> Vec<Vec<Generated>> {
    let backend = Cpu::new();
    let mut model = model(&backend, "qwen3");
    Engine::new(&backend, &mut model, sampler, limits).unwrap().run(prompts, None).unwrap()
}

fn greedy_tokens_equal_transformers<B: Backend>(backend: &B, most: usize) {
    let all = texts();
    assert_eq!(all.len(), 24);
    for (name, texts) in all {
        let mut model = model(backend, &name);
        let mut penalties: Vec<f64> = texts.iter().map(|text| text.repetition_penalty).collect();
        penalties.sort_by(f64::total_cmp);
        penalties.dedup();
        assert!(penalties.len() == 3 && texts.iter().all(|text| text.gap > 1e-4));
        for penalty in penalties {
            let same: Vec<&Text> = texts.iter().filter(|text| text.repetition_penalty == penalty).take(most).collect();
            let ids: Vec<Vec<u32>> = same.iter().map(|text| text.prompt.clone()).collect();
            let sampler = Sampler { repetition_penalty: penalty, ..Sampler::greedy() };
            let mut engine = Engine::new(backend, &mut model, sampler, limits(24, 3)).unwrap();
            let got = engine.run(&prompts(&ids, 1), None).unwrap();
            for (text, got) in same.iter().zip(&got) {
                let label = format!("{name} on {}, {} tokens, penalty {penalty}", B::NAME, text.prompt.len());
                assert_eq!(got[0].tokens, text.tokens, "{label}");
                let ended = text.tokens.last() == Some(&EOS);
                assert_eq!(got[0].finish, if ended { Finish::Stop } else { Finish::Length }, "{label}");
            }
        }
    }
}

#[test]
fn greedy_tokens_equal_those_of_transformers() {
    greedy_tokens_equal_transformers(&Cpu::new(), usize::MAX);
}

#[test]
fn greedy_tokens_of_the_reference_equal_those_of_transformers() {
    greedy_tokens_equal_transformers(&Reference, 2);
}

/// The kernels on the emulator, in f32, generate the first tokens of transformers' texts. One prompt enters
/// while another row is running.
#[test]
fn kernels_generate_the_first_tokens_of_transformers() {
    let Some(device) = common::emulator(Schedule::Rising, 2) else { return };
    let backend = Kernels::<_, f32>::new(device);
    for name in ["qwen3", "olmo3", "gemma2"] {
        let texts = &texts()[name];
        let mut model = model(&backend, name);
        let ids: Vec<Vec<u32>> = texts[..3].iter().map(|text| text.prompt.clone()).collect();
        let mut engine = Engine::new(&backend, &mut model, Sampler::greedy(), limits(5, 2)).unwrap();
        let got = engine.run(&prompts(&ids, 1), None).unwrap();
        for (text, got) in texts.iter().zip(&got) {
            assert_eq!(got[0].tokens, text.tokens[..5], "{name}");
        }
    }
}

/// Greedy generation of one token after every prefix of a text, without a cache from earlier steps, gives
/// the text again: no step depends on how its cache was filled.
#[test]
fn a_text_from_its_cache_equals_the_text_from_whole_prompts() {
    let ids = random_ids("whole", &[30]);
    let text = run(Sampler::greedy(), Limits { ends: vec![], ..limits(30, 1) }, &prompts(&ids, 1));
    let tokens = &text[0][0].tokens;
    assert_eq!(tokens.len(), 30);
    let prefixes: Vec<Vec<u32>> = (0..30).map(|n| [&ids[0][..], &tokens[..n]].concat()).collect();
    let single = run(Sampler::greedy(), Limits { ends: vec![], ..limits(1, 7) }, &prompts(&prefixes, 1));
    let single: Vec<u32> = single.iter().map(|samples| samples[0].tokens[0]).collect();
    assert_eq!(&single, tokens);
}

fn sampling() -> Sampler {
    let sampling = Sampling { temperature: 1.3, top_k: Some(40), top_p: Some(0.95), min_p: Some(0.01) };
    Sampler { sampling: Some(sampling), repetition_penalty: 1.1 }
}

#[test]
fn a_text_depends_on_its_prompt_seed_and_settings_only() {
    let ids = random_ids("independent", &[4, 9, 1, 30, 17, 6, 60]);
    let all = run(sampling(), limits(20, 4), &prompts(&ids, 3));
    assert!(all.iter().flatten().any(|one| one.tokens.len() == 20));
    let distinct: std::collections::BTreeSet<_> = all.iter().flatten().map(|one| &one.tokens).collect();
    assert!(distinct.len() > 18, "samples differ: {}", distinct.len());
    // The number of rows at a time and the number of threads do not matter.
    for rows in [1, 2, 100] {
        assert_eq!(run(sampling(), limits(20, rows), &prompts(&ids, 3)), all, "{rows} rows");
    }
    for threads in [1, 3] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        assert_eq!(pool.install(|| run(sampling(), limits(20, 4), &prompts(&ids, 3))), all, "{threads} threads");
    }
    // The order, other prompts and further samples do not matter.
    let reversed: Vec<Vec<u32>> = ids.iter().rev().cloned().collect();
    let mut turned = run(sampling(), limits(20, 4), &prompts(&reversed, 3));
    turned.reverse();
    assert_eq!(turned, all);
    let alone = run(sampling(), limits(20, 4), &prompts(&ids[3..4], 1));
    assert_eq!(alone[0][0], all[3][0]);
    // A different seed changes the texts. A lower limit of new tokens only cuts the texts off.
    assert_ne!(run(sampling(), Limits { seed: 6, ..limits(20, 4) }, &prompts(&ids, 3)), all);
    let short = run(sampling(), limits(5, 4), &prompts(&ids, 3));
    for (short, long) in short.iter().flatten().zip(all.iter().flatten()) {
        assert_eq!(short.tokens, long.tokens[..short.tokens.len()]);
    }
}

#[test]
fn samples_of_one_prompt_use_one_sample_of_room_at_least() {
    // Generates 40 samples of a long prompt with one row and with 16 rows at a time, and samples that end
    // with their first token.
    let ids = random_ids("room", &[90]);
    let one = run(sampling(), limits(12, 1), &prompts(&ids, 40));
    assert_eq!(one[0].len(), 40);
    assert_eq!(run(sampling(), limits(12, 16), &prompts(&ids, 40)), one);
    let ends: Vec<u32> = (0..160).collect();
    let ended = run(sampling(), Limits { ends, ..limits(12, 4) }, &prompts(&ids, 40));
    assert!(ended[0].iter().all(|one| one.tokens.len() == 1 && one.finish == Finish::Stop));
    assert_eq!(run(sampling(), limits(12, 4), &prompts(&ids, 0)), [vec![]]);
}

/// The model has 128 positions, so its texts end there.
#[test]
fn texts_end_where_the_positions_end() {
    let ids = random_ids("positions", &[120, 127, 3]);
    let got = run(Sampler::greedy(), Limits { ends: vec![], ..limits(20, 4) }, &prompts(&ids, 1));
    let lengths: Vec<usize> = got.iter().map(|samples| samples[0].tokens.len()).collect();
    assert_eq!(lengths, [8, 1, 20]);
    assert!(got.iter().all(|samples| samples[0].finish == Finish::Length));
    let backend = Cpu::new();
    let mut model = model(&backend, "qwen3");
    let mut engine = Engine::new(&backend, &mut model, Sampler::greedy(), limits(2, 1)).unwrap();
    for (ids, part) in [(random_ids("long", &[128]), "128 tokens"), (vec![vec![]], "0 tokens")] {
        let why = engine.run(&prompts(&ids, 1), None).unwrap_err().to_string();
        assert!(why.contains(part), "{why}");
    }
}

#[test]
fn a_stop_ends_a_text_with_the_token_that_completes_it() {
    let ids = random_ids("stop", &[10, 20]);
    let free = run(Sampler::greedy(), Limits { ends: vec![], ..limits(16, 4) }, &prompts(&ids, 1));
    let pair = free[1][0].tokens[4..6].to_vec();
    let backend = Cpu::new();
    let mut model = model(&backend, "qwen3");
    let mut engine =
        Engine::new(&backend, &mut model, Sampler::greedy(), Limits { ends: vec![], ..limits(16, 4) }).unwrap();
    let stop = |prompt: usize, tokens: &[u32]| Ok(prompt == 1 && tokens.ends_with(&pair));
    let got = engine.run(&prompts(&ids, 1), Some(&stop)).unwrap();
    assert_eq!(got[0], free[0]);
    let first = free[1][0].tokens.windows(2).position(|two| two == pair).unwrap() + 2;
    assert_eq!(got[1][0], Generated { tokens: free[1][0].tokens[..first].to_vec(), finish: Finish::Stop });
}

#[test]
fn reward_models_generate_nothing() {
    let backend = Cpu::new();
    let mut model = model(&backend, "qwen3-reward");
    let mut engine = Engine::new(&backend, &mut model, Sampler::greedy(), limits(2, 1)).unwrap();
    let why = engine.run(&prompts(&random_ids("reward", &[4]), 1), None).unwrap_err().to_string();
    assert!(why.contains("reward model"), "{why}");
}

/// Prompts with a common prefix compute it once, and get the same texts as separate prompts.
#[test]
fn prompts_share_what_they_start_with_and_keep_their_texts() {
    let start = random_ids("start", &[40]).remove(0);
    let ends = random_ids("ends", &[1, 3, 9, 5, 2]);
    let mut ids: Vec<Vec<u32>> = ends.iter().map(|end| [&start[..], end].concat()).collect();
    // Adds the common start itself, a part of it, a prompt with a different beginning, and the second prompt
    // again.
    ids.extend([start.clone(), start[..25].to_vec(), random_ids("other", &[30]).remove(0), ids[1].clone()]);
    let alone: Vec<Vec<Generated>> =
        ids.iter().map(|ids| run(sampling(), limits(9, 1), &prompts(std::slice::from_ref(ids), 2)).remove(0)).collect();
    let backend = Cpu::new();
    let mut model = model(&backend, "qwen3");
    for rows in [2, 5, 64] {
        let mut engine = Engine::new(&backend, &mut model, sampling(), limits(9, rows)).unwrap();
        assert_eq!(engine.run(&prompts(&ids, 2), None).unwrap(), alone, "{rows} rows");
        let (run, shared) = engine.prompt_tokens();
        assert_eq!(run + shared, ids.iter().map(Vec::len).sum::<usize>());
        // With room for all, the start of 40 tokens runs once: 4 of the first 5 prompts share it, the
        // start shares 39, its part 24, and the equal prompt all but its last token.
        let most = 4 * 40 + 39 + 24 + ids[1].len() - 1;
        assert!(
            if rows == 64 { shared == most } else { shared <= most && (rows == 2 || shared > 0) },
            "{rows}: {shared}"
        );
    }
}
