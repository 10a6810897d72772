//! Inputs of a training run: the checkpoint to continue from, the rows, and the number of updates once the
//! rows are known.

use std::path::{Path, PathBuf};

use super::args::word_of_truth;
use super::output::warn;
use super::template::check_template_used;
use super::train::TrainSetup;
use crate::data::source::{
    ReadOptions, SourceRow, check_used, read_files_with_reports, read_sft_files, read_unpaired_files,
    refuse_pipe_named_twice, split_pairs,
};
use crate::loss::objective::Method;
use crate::terminal::{complain, counted};
use crate::train::checkpoint;
use crate::train::run::RunSettings;
use crate::{Error, Result};

impl TrainSetup<'_> {
    /// Replaces fractions of all updates by numbers of updates, now that the training groups are
    /// known.
    pub(super) fn settle(&mut self, groups: usize) -> Result<()> {
        let total = self.settings.total_steps(groups);
        let observed = self.settings.observed.take();
        let settled = self.args.run_settings(self.method, self.build.objective, Some(total))?;
        // The loss may have disabled shuffling, so `shuffle` keeps its value.
        self.settings = RunSettings { observed, shuffle: self.settings.shuffle, ..settled };
        Ok(())
    }

    /// Returns the checkpoint to continue from, or `None` for a new run.
    pub(super) fn resume(&self) -> Result<Option<PathBuf>> {
        let said = |path: &Path| path.to_str().and_then(word_of_truth);
        match &self.args.resume_from_checkpoint {
            None => Ok(None),
            Some(path) if said(path) == Some(false) => Ok(None),
            Some(path) if said(path) == Some(true) => {
                let warn = |e: &Error| complain(&format!("warning: {e}"));
                match checkpoint::latest(&self.settings.output_dir, warn)? {
                    Some(folder) => Ok(Some(folder)),
                    None => Err(Error::Usage(format!(
                        "--resume-from-checkpoint true: {} holds no complete checkpoint; leave the option out to start \
                         a new run, with --overwrite-output-dir if the folder holds an earlier run",
                        self.settings.output_dir.display()
                    ))),
                }
            }
            Some(path) => checkpoint::verify(path).map(|_| Some(path.clone())),
        }
    }

    /// Reads the training and evaluation rows.
    pub(super) fn read(&self) -> Result<(Vec<SourceRow>, Vec<SourceRow>)> {
        let options = ReadOptions { whole_conversations: self.method == Method::Reward, ..self.args.read.clone() };
        let read = |files: &[PathBuf]| match self.method {
            _ if files.is_empty() => Ok(Default::default()),
            Method::Sft => read_sft_files(files, &options),
            Method::Reward | Method::Dpo => read_files_with_reports(files, &options),
            Method::Kto => read_unpaired_files(files, &options),
        };
        let files = [&self.args.train_file[..], &self.args.eval_file, &self.args.ifeval.ifeval_file];
        refuse_pipe_named_twice(&files.concat())?;
        let (train, mut reports) = read(&self.args.train_file)?;
        let (eval, of_eval) = read(&self.args.eval_file)?;
        reports.extend(of_eval);
        for report in &reports {
            self.print(&report.to_string());
            warn(report.warnings());
        }
        check_used(&options, &reports)?;
        check_template_used(None, self.args.chat_template_kwargs.as_ref(), train.iter().chain(&eval))?;
        Ok((self.split(train, "training")?, self.split(eval, "evaluation")?))
    }

    /// Splits pairs into labelled rows for KTO, which trains on them.
    fn split(&self, rows: Vec<SourceRow>, of: &str) -> Result<Vec<SourceRow>> {
        if self.method != Method::Kto {
            return Ok(rows);
        }
        let (rows, pairs) = split_pairs(rows)?;
        if pairs > 0 {
            let [pairs, twice] = [counted(pairs, "pair"), counted(2 * pairs, "row")];
            self.print(&format!(
                "{of}: {pairs} became {twice} with a label; in each block of 1000 input rows, chosen responses come \
                 before rejected ones"
            ));
        }
        Ok(rows)
    }
}
