//! A run killed repeatedly at random moments ends with the same bits as an uninterrupted run.

use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

use mapl::files::{entries, files_below};
use mapl::rng::Rng;
use mapl::train::checkpoint;

use crate::workbench::{Bench, full};

/// Number of kills with `MAPL_TEST_FULL=1`, and without it. Every kind of moment occurs with either number.
const KILLS: [usize; 2] = [50, 8];

/// Moment of a kill: in start-up, while a checkpoint is written or removed, between steps, or while
/// the final model is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Moment {
    After(Duration),
    Unfinished,
    Steps(u64),
    FinalModel,
}

impl Moment {
    /// Returns the moment of the kill with index `kill`; the variants alternate.
    fn of(kill: usize, rng: &mut Rng) -> Self {
        match kill % 8 {
            0 | 1 => Self::After(Duration::from_micros(rng.below(60_000) as u64)),
            2..=4 => Self::Unfinished,
            5 | 6 => Self::Steps(1 + rng.below(4) as u64),
            _ => Self::FinalModel,
        }
    }

    /// Whether the run folder shows that this moment has come. `first` is the newest checkpoint at
    /// the start.
    fn has_come(self, out: &Path, first: u64) -> bool {
        let has = |end: &str| {
            entries(out).unwrap_or_default().iter().any(|path| {
                let name = path.file_name().unwrap().to_str().unwrap();
                name.starts_with("checkpoint-") && name.ends_with(end)
            })
        };
        match self {
            Self::After(_) => true,
            Self::Unfinished => has(".tmp") || has(".old"),
            Self::Steps(n) => newest(out) >= first + n,
            Self::FinalModel => entries(out).unwrap_or_default().iter().any(|path| {
                let name = path.file_name().unwrap().to_str().unwrap();
                name.ends_with(".tmp")
                    && ["model.safetensors.", "tokenizer.json."].iter().any(|of| name.starts_with(of))
            }),
        }
    }
}

fn newest(out: &Path) -> u64 {
    checkpoint::list(out).last().map_or(0, |(step, _)| *step)
}

/// Kills the process shortly after the moment has come. Returns false if the process ended first.
fn kill_at(child: &mut Child, moment: Moment, out: &Path, rng: &mut Rng) -> bool {
    let first = newest(out);
    if let Moment::After(delay) = moment {
        std::thread::sleep(delay);
    }
    while !moment.has_come(out, first) {
        if let Some(status) = child.try_wait().unwrap() {
            assert!(status.success(), "{status:?}");
            return false;
        }
        std::thread::sleep(Duration::from_micros(100));
    }
    std::thread::sleep(Duration::from_micros(rng.below(3000) as u64));
    child.kill().unwrap();
    let status = child.wait().unwrap();
    assert!(status.success() || status.code().is_none(), "{status:?}");
    !status.success()
}

/// Asserts that every checkpoint passes verification and that a final model is complete.
fn nothing_is_half_written(out: &Path, weights: &[u8]) {
    for (_, folder) in checkpoint::list(out) {
        checkpoint::verify(&folder).unwrap();
    }
    if out.join("model.safetensors").exists() {
        assert!(std::fs::read(out.join("model.safetensors")).unwrap() == weights);
        for name in ["config.json", "tokenizer.json", "tokenizer_config.json", "trainer_state.json"] {
            assert!(out.join(name).is_file(), "{name}");
        }
    }
}

fn unfinished(out: &Path) -> usize {
    let ends = |path: &Path| path.extension().is_some_and(|end| end == "tmp" || end == "old");
    let folders = entries(out).unwrap_or_default().into_iter().filter(|path| ends(path)).count();
    folders + files_below(out).unwrap_or_default().iter().filter(|path| ends(path)).count()
}

#[test]
fn a_run_killed_at_many_moments_ends_like_an_uninterrupted_run() {
    let bench = Bench::new();
    let run = |out: &str, rest: &str| {
        format!(
            "dpo --model model --train-file groups.jsonl --eval-file pairs.jsonl --output-dir {out} --quiet \
             --per-device-train-batch-size 1 --gradient-accumulation-steps 2 --max-steps 14 --learning-rate 1e-3 \
             --eval-steps 2 --save-steps 2 --save-total-limit 2 --keep-every 8 --load-best-model-at-end {rest}"
        )
    };
    bench.run(&run("straight", "")).ok();
    let weights = bench.bytes("straight/model.safetensors");
    let out = bench.at("out");
    let mut rng = Rng::keyed(1, &["kills"]);
    let (mut kills, mut remains) = (0, 0);
    let most = if full() { KILLS[0] } else { KILLS[1] };
    let mut moments = Vec::new();
    let mut rounds = 0;
    while kills < most {
        rounds += 1;
        let mut fresh = true;
        loop {
            // Before the first checkpoint there is nothing to resume from, and the message says so.
            let rest = match (fresh, checkpoint::list(&out).is_empty()) {
                (true, _) => "--overwrite-output-dir",
                (false, true) => {
                    bench.run(&run("out", "--resume-from-checkpoint true")).fails(2, &["holds no complete checkpoint"]);
                    "--overwrite-output-dir"
                }
                (false, false) => "--resume-from-checkpoint true",
            };
            let mut child =
                bench.command(&run("out", rest)).stdout(Stdio::null()).stderr(Stdio::inherit()).spawn().unwrap();
            if kills == most {
                assert!(child.wait().unwrap().success());
                break;
            }
            let moment = Moment::of(kills, &mut rng);
            // A kill before the old run is removed leaves the old run, which can be resumed too.
            fresh = false;
            if !kill_at(&mut child, moment, &out, &mut rng) {
                break;
            }
            kills += 1;
            moments.push(moment);
            remains += unfinished(&out).min(1);
            nothing_is_half_written(&out, &weights);
        }
        assert!(bench.bytes("out/model.safetensors") == weights, "round {rounds}, after {kills} kills");
        assert_eq!(unfinished(&out), 0);
        for kind in ["train", "eval"] {
            assert_eq!(bench.metrics("out", kind), bench.metrics("straight", kind));
        }
        let kept = |out: &str| checkpoint::list(&bench.at(out)).into_iter().map(|(step, _)| step).collect::<Vec<_>>();
        assert_eq!(kept("out"), kept("straight"));
        let moments = "checkpoint-14/state/optimizer-rank00000.safetensors";
        assert!(bench.bytes(&format!("out/{moments}")) == bench.bytes(&format!("straight/{moments}")));
        let best = |run: &str| bench.json(&format!("{run}/trainer_state.json"))["best_global_step"].clone();
        assert_eq!(best("out"), best("straight"));
    }
    println!("{kills} kills in {rounds} runs, {remains} left something unfinished: {moments:?}");
}
