//! Reference cache: stored log-probs equal an online pass bit for bit. A damaged, stale or foreign
//! file never supplies a value. Concurrent writers keep each other's entries.

use std::path::{Path, PathBuf};

use common::fixtures::{group, groups, random_model, tiny_config};
use mapl::backend::Backend;
use mapl::backend::contract::Reduce;
use mapl::backend::cpu::Cpu;
use mapl::backend::reference::Reference;
use mapl::data::group::Kind;
use mapl::data::pack::LogpScope;
use mapl::data::tokenized::TokenizedGroup;
use mapl::loss::objective::{Loss, LossOptions, Method, ReduceName, ScopeName};
use mapl::model::config::{ModelConfig, StoredDtype};
use mapl::model::decoder::Model;
use mapl::model::store;
use mapl::model::weights::{LoadAs, write_model};
use mapl::optim::adamw::AdamWSettings;
use mapl::train::evaluate::Evaluator;
use mapl::train::frozen::file::{CacheFile, Entries, Found};
use mapl::train::frozen::key::sequence_key;
use mapl::train::frozen::{CacheOptions, FrozenCache};
use mapl::train::step::Trainer;

/// A temporary folder with a saved reference model.
struct Place {
    dir: tempfile::TempDir,
    config: ModelConfig,
}

impl Place {
    fn new(seed: u64) -> Self {
        let place = Self { dir: tempfile::tempdir().unwrap(), config: tiny_config("qwen2", false) };
        std::fs::create_dir(place.model()).unwrap();
        store::save(&Cpu::new(), &place.fresh(&Cpu::new(), seed), &place.model()).unwrap();
        place
    }

    fn fresh<B: Backend>(&self, backend: &B, seed: u64) -> Model<B> {
        random_model(backend, &self.config, seed)
    }

    fn model(&self) -> PathBuf {
        self.dir.path().join("model")
    }

    fn cache_dir(&self) -> PathBuf {
        self.dir.path().join("cache")
    }

    fn loaded<B: Backend>(&self, backend: &B) -> Model<B> {
        store::load(backend, &self.model(), self.config.clone(), LoadAs::Exact, 0).unwrap().model
    }

    fn open_with<B: Backend>(&self, backend: &B, loss: &Loss, dir: &Path, batch_groups: usize) -> FrozenCache {
        let options = CacheOptions { dir: dir.to_path_buf(), batch_groups, quiet: true };
        FrozenCache::open(backend, &self.model(), self.config.clone(), loss, options).unwrap()
    }

    fn open(&self) -> FrozenCache {
        self.open_with(&Cpu::new(), &dpo(), &self.cache_dir(), 2)
    }
}

fn dpo() -> Loss {
    LossOptions::default().resolve(Method::Dpo, [1.0; 3], false).unwrap()
}

fn scores(cache: &FrozenCache, groups: &[TokenizedGroup]) -> Vec<u64> {
    let mut scores = Vec::new();
    groups.iter().for_each(|group| cache.append_scores(group, &mut scores).unwrap());
    scores.iter().map(|x| x.to_bits()).collect()
}

/// Scores of the saved model as an online reference, run along with a policy.
fn online<B: Backend>(backend: &B, place: &Place, loss: &Loss, groups: &[TokenizedGroup]) -> Vec<u64> {
    let (mut policy, mut reference) = (place.fresh(backend, 99), place.loaded(backend));
    let mut evaluator = Evaluator::new(backend, &policy, Some(&reference)).unwrap();
    let models = (&mut policy, Some(&mut reference));
    let (scores, _) = evaluator.run(backend, models, loss, groups, |_| ()).unwrap();
    scores.iter().flat_map(|s| s.reference.clone().unwrap()).map(f64::to_bits).collect()
}

/// The fixture's groups, and a group that repeats a sequence of another group.
fn data() -> Vec<TokenizedGroup> {
    let mut all = groups();
    all.push(group("again", &[&[2, 4, 4]], &[&[16, 17, 1], &[5]], &[(Kind::Base, &[(0, 0, 1), (0, 1, -1)])]));
    all
}
/// Distinct sequences of [`data`].
const SEQUENCES: usize = 14;

fn stored_equals_online<B: Backend>(backend: &B) {
    let (place, data) = (Place::new(1), data());
    let mut seen = Vec::new();
    for scope in [ScopeName::Response, ScopeName::PromptAndResponse] {
        for reduce in [ReduceName::Sum, ReduceName::Mean] {
            let options = LossOptions { logp_scope: Some(scope), logp_reduce: Some(reduce), ..LossOptions::default() };
            let loss = options.resolve(Method::Dpo, [1.0; 3], false).unwrap();
            let expected = online(backend, &place, &loss, &data);
            for batch in [1, 3, 8] {
                let dir = tempfile::tempdir().unwrap();
                let mut first = place.open_with(backend, &loss, dir.path(), batch);
                let done = first.complete(backend, &[&data[..1], &data[1..]]).unwrap();
                assert_eq!((done.known, done.computed, done.warning()), (0, SEQUENCES, None));
                assert!(scores(&first, &data) == expected, "{} {scope:?} {reduce:?} batch {batch}", B::NAME);
                let mut second = place.open_with(backend, &loss, dir.path(), batch);
                assert_eq!(second.refusal(), None);
                let done = second.complete(backend, &[&data]).unwrap();
                assert_eq!((done.known, done.computed), (SEQUENCES, 0));
                assert!(scores(&second, &data) == expected, "values read back differ");
            }
            assert!(!seen.contains(&expected), "scope and reduction must change the values");
            seen.push(expected);
        }
    }
}

#[test]
fn stored_log_probs_equal_an_online_pass_bit_for_bit_on_the_cpu() {
    stored_equals_online(&Cpu::new());
    stored_equals_online(&Cpu::<half::bf16>::default());
}

#[test]
fn stored_log_probs_of_other_units_or_precisions_are_not_used() {
    let (place, data, loss) = (Place::new(1), data(), dpo());
    let dir = tempfile::tempdir().unwrap();
    place.open_with(&Cpu::new(), &loss, dir.path(), 2).complete(&Cpu::new(), &[&data]).unwrap();
    let known =
        |cpu: &Cpu<half::bf16>| place.open_with(cpu, &loss, dir.path(), 2).complete(cpu, &[&data]).unwrap().known;
    for units in common::bf16_units() {
        let cpu = Cpu::on(units);
        assert_eq!((known(&cpu), known(&cpu)), (0, SEQUENCES), "{units}");
    }
}

#[test]
fn stored_log_probs_equal_an_online_pass_bit_for_bit_in_f64() {
    stored_equals_online(&Reference);
}

#[test]
fn training_with_stored_log_probs_equals_training_with_the_reference() {
    let (cpu, place, data) = (Cpu::new(), Place::new(1), data());
    let run = |cached: bool| {
        let reference = (!cached).then(|| place.loaded(&cpu));
        let policy = place.fresh(&cpu, 2);
        let mut trainer = Trainer::new(&cpu, policy, reference, dpo(), AdamWSettings::default()).unwrap();
        if cached {
            let mut cache = place.open();
            cache.complete(&cpu, &[&data]).unwrap();
            trainer.use_frozen_cache(cache);
        }
        let mut evaluator = trainer.evaluator().unwrap();
        let mut tallies = Vec::new();
        for step in 0..4 {
            let (a, b) = data.split_at(1 + step % 3);
            let report = trainer.step(&[a.iter().collect(), b.iter().collect()], 1e-2).unwrap();
            assert!(report.update.applied);
            tallies.push(report.tally);
            tallies.push(trainer.evaluate(&mut evaluator, &data).unwrap().1);
        }
        let bits: Vec<u32> = trainer.policy.weights.iter().map(|w| w.to_bits()).collect();
        (tallies, bits)
    };
    let (online, cached) = (run(false), run(true));
    assert!(online.0.iter().all(|tally| tally.chosen_reward != 0.0), "the reference must affect the rewards");
    assert_eq!(online.0, cached.0);
    assert!(online.1 == cached.1, "weights differ");
}

#[test]
fn a_sequence_without_a_stored_log_prob_is_an_error_that_names_its_row() {
    let (place, data) = (Place::new(1), data());
    let mut cache = place.open();
    cache.complete(&Cpu::new(), &[&data[..2]]).unwrap();
    let error = cache.append_scores(&data[2], &mut Vec::new()).unwrap_err().to_string();
    assert!(error.contains("short"), "{error}");
}

#[test]
fn only_missing_sequences_are_computed_and_a_full_cache_needs_no_weights() {
    let (cpu, place, data) = (Cpu::new(), Place::new(1), data());
    let done = place.open().complete(&cpu, &[&data[1..]]).unwrap();
    assert_eq!((done.known, done.computed), (0, 7 - 1), "a repeated sequence must be computed once");
    let mut more = place.open();
    let done = more.complete(&cpu, &[&data]).unwrap();
    assert_eq!((done.known, done.computed), (6, 8));
    let expected = online(&cpu, &place, &dpo(), &data);
    assert!(scores(&more, &data) == expected);

    let (mut full, mut empty) = (place.open(), place.open_with(&cpu, &dpo(), &place.dir.path().join("other"), 2));
    std::fs::remove_file(place.model().join("model.safetensors")).unwrap();
    assert_eq!(full.complete(&cpu, &[&data]).unwrap().computed, 0);
    assert!(scores(&full, &data) == expected);
    assert!(empty.complete(&cpu, &[&data]).is_err());
}

#[test]
fn weights_that_change_during_a_run_are_refused() {
    let (cpu, place) = (Cpu::new(), Place::new(1));
    let mut cache = place.open();
    store::save(&cpu, &place.fresh(&cpu, 2), &place.model()).unwrap();
    let error = cache.complete(&cpu, &[&data()]).unwrap_err();
    assert_eq!(error.exit_code(), 6);
    assert!(error.to_string().contains("changed while this run"), "{error}");
    assert!(!cache.path().exists());
}

#[test]
fn everything_that_affects_a_value_changes_the_file_name() {
    let (cpu, place) = (Cpu::new(), Place::new(1));
    let name = |place: &Place, loss: &Loss| place.open_with(&cpu, loss, &place.cache_dir(), 2).path().to_path_buf();
    let name = |place: &Place, loss: &Loss| name(place, loss).file_name().unwrap().to_owned();
    let first = name(&place, &dpo());
    // The use of a score in the loss does not affect the file.
    let other = Loss { scale: [0.5; 3], margin: 1.0, nll_weight: 1.0, ..dpo() };
    assert_eq!(name(&place, &other), first);
    assert_eq!(name(&Place::new(1), &dpo()), first, "the name must depend on content, not on the folder");

    let mut names = vec![first.clone()];
    let mut differs = |name: std::ffi::OsString, what: &str| {
        assert!(!names.contains(&name), "{what} does not enter the fingerprint");
        names.push(name);
    };
    differs(name(&place, &Loss { scope: LogpScope::PromptAndResponse, ..dpo() }), "scope");
    differs(name(&place, &Loss { reduce: Reduce::Mean, ..dpo() }), "reduction");
    differs(name(&Place::new(2), &dpo()), "weights");
    let f64 = place.open_with(&Reference, &dpo(), &place.cache_dir(), 2);
    differs(f64.path().file_name().unwrap().to_owned(), "backend");
    for (what, old, new) in [("epsilon", "0.00001", "0.00002"), ("rotary base", "100.0", "101.0")] {
        let mut changed = Place::new(1);
        let path = changed.model().join("config.json");
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains(old), "{text}");
        std::fs::write(&path, text.replace(old, new)).unwrap();
        changed.config = ModelConfig::read(&changed.model()).unwrap();
        differs(name(&changed, &dpo()), what);
    }
    // The last bit of one weight changes the name; the number of shards does not.
    for (flip, what) in [(0, "shards"), (1, "one bit")] {
        let changed = Place::new(1);
        let model = place.loaded(&cpu);
        std::fs::remove_file(changed.model().join("model.safetensors")).unwrap();
        write_model(&changed.model(), &changed.config, StoredDtype::F32, 2000, &mut |spec, offset, out| {
            let slot = model.layout.slots.iter().find(|s| s.spec.name == spec.name).unwrap();
            out.copy_from_slice(&model.weights[slot.start + offset..][..out.len()]);
            if spec.name.contains("layers.1.mlp.down") && offset == 0 {
                out[3] = f32::from_bits(out[3].to_bits() ^ flip);
            }
            Ok(())
        })
        .unwrap();
        assert!(changed.model().join("model.safetensors.index.json").is_file());
        match flip {
            0 => assert_eq!(name(&changed, &dpo()), first, "{what}"),
            _ => differs(name(&changed, &dpo()), what),
        }
    }
}

#[test]
fn sequence_keys_include_the_boundary_of_prompt_and_response() {
    let key = |prompt: &[u32], response: &[u32]| {
        let group = group("g", &[prompt], &[response, &[9]], &[(Kind::Base, &[(0, 0, 1), (0, 1, -1)])]);
        assert_ne!(sequence_key(&group, 0), sequence_key(&group, 1));
        sequence_key(&group, 0)
    };
    let keys = [key(&[1, 2], &[3, 4]), key(&[1, 2, 3], &[4]), key(&[1], &[2, 3, 4]), key(&[1, 2], &[4, 3])];
    assert!((0..4).all(|i| (0..i).all(|j| keys[i] != keys[j])));
    assert_eq!(keys[0], key(&[1, 2], &[3, 4]));
}

#[test]
fn every_flipped_bit_and_truncation_is_detected() {
    let (cpu, place, data) = (Cpu::new(), Place::new(1), data());
    let mut cache = place.open();
    cache.complete(&cpu, &[&data]).unwrap();
    let (path, values) = (cache.path().to_path_buf(), scores(&cache, &data));
    let bytes = std::fs::read(&path).unwrap();
    assert_eq!(bytes.len(), 88 + SEQUENCES * 20);
    let fingerprint = std::array::from_fn(|i| bytes[16 + i]);
    let file = CacheFile::new(&place.cache_dir(), fingerprint, 4);
    assert!(file.path() == path && matches!(file.read(), Found::Entries(entries) if entries.len() == SEQUENCES));

    let refused = |damaged: &[u8], what: &str| {
        std::fs::write(&path, damaged).unwrap();
        match file.read() {
            Found::Refused(why) => why,
            other => panic!("{what}: {other:?}"),
        }
    };
    for at in 0..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[at] ^= 1 << (at % 8);
        let why = refused(&damaged, &format!("byte {at}"));
        let reason = match at {
            0..8 => "first bytes are wrong",
            8..12 => "format",
            12..48 => "stale",
            48..56 => "",
            _ => "checksum",
        };
        assert!(why.contains(reason), "byte {at}: {why}");
        // For a sample of positions, the damaged file is also opened through the cache. The message names the
        // file, all values are computed again, and the file is repaired.
        if at % 41 == 7 {
            let mut again = place.open();
            let message = again.refusal().unwrap();
            assert!(message.contains(path.to_str().unwrap()) && message.contains(&why), "{message}");
            assert_eq!(again.complete(&cpu, &[&data]).unwrap().computed, SEQUENCES);
            assert!(scores(&again, &data) == values);
            assert!(std::fs::read(&path).unwrap() == bytes, "the repaired file must equal the first file");
        }
    }
    for len in 0..bytes.len() {
        assert!(refused(&bytes[..len], "cut").contains("truncated"));
    }
    refused(&[&bytes[..], &[0]].concat(), "longer");
    refused(&[&bytes[..], &bytes[88..]].concat(), "doubled");
}

#[test]
fn a_file_under_another_files_name_is_stale() {
    let (cpu, place, other, data) = (Cpu::new(), Place::new(1), Place::new(2), data());
    let (mut mine, mut theirs) = (place.open(), other.open());
    mine.complete(&cpu, &[&data]).unwrap();
    theirs.complete(&cpu, &[&data]).unwrap();
    let expected = scores(&mine, &data);
    assert!(scores(&theirs, &data) != expected);
    std::fs::copy(theirs.path(), mine.path()).unwrap();
    let mut again = place.open();
    assert!(again.refusal().unwrap().contains("is stale"));
    again.complete(&cpu, &[&data]).unwrap();
    assert!(scores(&again, &data) == expected);
    assert_eq!(place.open().refusal(), None);
}

#[test]
fn an_unwritable_cache_still_serves_this_run() {
    let (cpu, place, data) = (Cpu::new(), Place::new(1), data());
    let path = place.open().path().to_path_buf();
    std::fs::create_dir(&path).unwrap();
    std::fs::write(path.join("occupied"), "").unwrap();
    let mut cache = place.open();
    assert!(cache.refusal().unwrap().contains("not a regular file"));
    let done = cache.complete(&cpu, &[&data]).unwrap();
    assert!(done.warning().unwrap().contains(path.to_str().unwrap()), "{done:?}");
    assert!(scores(&cache, &data) == online(&cpu, &place, &dpo(), &data));
    let left: Vec<_> = std::fs::read_dir(place.cache_dir()).unwrap().map(|e| e.unwrap().path()).collect();
    assert_eq!(left, [path], "no temporary file may remain");
}

#[test]
fn concurrent_writers_keep_each_others_entries() {
    let dir = tempfile::tempdir().unwrap();
    let file = CacheFile::new(dir.path(), [7; 32], 8);
    // The temporary file of a killed writer must not disturb others.
    std::fs::write(file.path().with_extension("logps.4194303999-0.tmp"), "half").unwrap();
    let (writers, rounds) = (8, 20_u32);
    std::thread::scope(|scope| {
        for writer in 0..writers {
            let file = file.clone();
            scope.spawn(move || {
                for round in 0..rounds {
                    let key = u128::from(writer * rounds + round) << 64;
                    file.merge(&Entries::from([(key, f64::from(round) + 0.1)])).unwrap();
                    assert!(matches!(file.read(), Found::Entries(all) if all.contains_key(&key)));
                }
            });
        }
    });
    let Found::Entries(all) = file.read() else { panic!("{:?}", file.read()) };
    let expected = (0..writers * rounds).map(|i| (u128::from(i) << 64, f64::from(i % rounds) + 0.1));
    assert_eq!(all, expected.collect());
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file may remain");
}
