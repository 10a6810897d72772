//! Data of the quick start: pairs of an artificial language, MAPL groups built from them, a tokenizer and an
//! initial model.

use super::{FUNCTIONS, Quickstart, TEST_ROWS, TRAIN_ROWS, VOCAB_SIZE, words};
use crate::Result;
use crate::cli::data::DataCommand;
use crate::cli::{Command, data, make};
use crate::data::synth::{Split, SynthOptions, generate, to_jsonl};
use crate::files::write_text;
use crate::report::summary::{DataTable, NamedText};
use crate::terminal::{say, say_styled};

impl Quickstart<'_> {
    /// Generates pairs of the artificial language, builds MAPL groups, trains a tokenizer and initialises a model.
    pub(super) fn language(&mut self) -> Result<()> {
        let seed = self.seed;
        let [train_rows, test_rows] = [TRAIN_ROWS, TEST_ROWS].map(|rows| self.rows(rows));
        for (split, rows) in [(Split::Train, train_rows), (Split::Test, test_rows)] {
            let pairs = generate(&SynthOptions { rows, seed, split });
            write_text(&self.path(&format!("{}.jsonl", split.name())), &to_jsonl(&pairs)?)?;
        }
        say(&format!("wrote {train_rows} training and {test_rows} held-out pairs of an artificial language"));
        for split in ["train", "test"] {
            let words = words![
                "data",
                "build",
                "--input",
                self.shown(&format!("{split}.jsonl")),
                "--output",
                self.shown(&format!("{split}-mapl.jsonl")),
                "--functions",
                FUNCTIONS,
                "--k-min",
                1,
                "--k-max",
                3,
                "--data-seed",
                seed,
            ];
            let caption = format!("Build MAPL groups of the {split} split");
            if let Command::Data(DataCommand::Build(args)) = self.command(&caption, &words)? {
                let text = data::build(&args)?.to_string();
                let caption = format!("Construction of the {split} split");
                if self.is_first_seed() {
                    self.summary.examples.push(NamedText { caption, text });
                }
            }
        }
        let words = words![
            "tokenizer",
            "--input",
            self.shown("train-mapl.jsonl"),
            "--vocab-size",
            VOCAB_SIZE,
            "--output-dir",
            self.shown("tokenizer"),
        ];
        if let Command::Tokenizer(args) = self.command("Train a tokenizer", &words)? {
            make::tokenizer(&args)?;
        }
        let words = words![
            "init",
            "--preset",
            "quickstart",
            "--tokenizer",
            self.shown("tokenizer"),
            "--output-dir",
            self.shown("init"),
            "--seed",
            seed,
        ];
        if let Command::Init(args) = self.command("Initialise a model", &words)? {
            make::init(&args)?;
        }
        let words = words![
            "data",
            "show",
            "--input",
            self.shown("test-mapl.jsonl"),
            "--tokenizer",
            self.shown("tokenizer"),
            "--rows",
            1,
        ];
        if let Command::Data(DataCommand::Show(args)) = self.command("Show a group", &words)? {
            say_styled(&data::shown(&args)?);
        }
        if !self.is_first_seed() {
            return Ok(());
        }
        let rows = [("pairs to train on", train_rows), ("held-out pairs", test_rows), ("vocabulary", VOCAB_SIZE)];
        self.summary.data.push(DataTable {
            caption: "The language".into(),
            header: vec!["".into(), "number".into()],
            rows: rows.iter().map(|(name, n)| vec![(*name).into(), n.to_string()]).collect(),
        });
        Ok(())
    }
}
