//! `mapl completions` and `mapl man`: shell completions and man pages, made from the same
//! definitions as `--help`.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use clap::builder::{PossibleValuesParser, Resettable};
use clap::{Args, Command, CommandFactory as _, ValueEnum as _};
use clap_complete::{Shell, generate};
use clap_mangen::Man;

use super::Cli;
use crate::files::{check_folder_writable, write_atomic};
use crate::loss::objective::{LossType, Method};
use crate::terminal::{counted, on_stdout, say};
use crate::{Error, Result};

/// Arguments of `completions`.
#[derive(Args, Clone, Debug)]
pub struct CompletionsArgs {
    /// Shell to complete for
    #[arg(value_enum)]
    shell: Shell,
}

/// Arguments of `man`.
#[derive(Args, Clone, Debug)]
pub struct ManArgs {
    /// Folder to write a page per command into, such as ~/.local/share/man/man1 [default: print the
    /// page of mapl]
    #[arg(long, value_name = "DIR", alias = "output-dir")]
    output: Option<PathBuf>,
}

/// Prints the completions of a shell.
pub fn completions(args: &CompletionsArgs) -> Result<()> {
    let mut text = Vec::new();
    generate(args.shell, &mut offered(&Cli::command()), "mapl", &mut text);
    on_stdout(|out| out.write_all(&text))
}

/// Returns a copy of a command with only the options and values that the command accepts.
fn offered(command: &Command) -> Command {
    // clap needs names with a static lifetime. The leak is harmless, because the program prints once and ends.
    let name: &'static str = command.get_name().to_owned().leak();
    let mut kept = Command::new(name).disable_help_subcommand(true);
    if let Some(about) = command.get_about() {
        kept = kept.about(about.clone());
    }
    if let Some(version) = command.get_version() {
        let version: &'static str = version.to_owned().leak();
        kept = kept.version(version);
    }
    let is_reward = command.get_name() == Method::Reward.name();
    for arg in command.get_arguments().filter(|arg| !arg.is_hide_set()) {
        // The copy may lack options that this option requires or conflicts with, so these relations are removed.
        let (free, none) = (arg.clone().conflicts_with(Resettable::Reset), Resettable::Reset);
        let mut arg = free.requires(none).overrides_with(Resettable::Reset);
        if is_reward && arg.get_id() == "loss_type" {
            let taken = LossType::value_variants().iter().filter(|of| of.is_of_rewards());
            arg = arg.value_parser(PossibleValuesParser::new(taken.filter_map(|of| of.to_possible_value())));
        }
        kept = kept.arg(arg);
    }
    let below = command.get_subcommands().filter(|command| !command.is_hide_set());
    kept.subcommands(below.map(offered).collect::<Vec<_>>())
}

/// Prints the man page of `mapl` or, with `--output`, writes the man pages of all commands.
pub fn man(args: &ManArgs) -> Result<()> {
    let mut command = Cli::command();
    command.build();
    let Some(folder) = &args.output else {
        let text = page(&command).map_err(|e| Error::Runtime(format!("cannot write the page: {e}")))?;
        return on_stdout(|out| out.write_all(&text));
    };
    if folder.exists() && !folder.is_dir() {
        return Err(Error::Usage(format!("--output {} is a file; name a folder", folder.display())));
    }
    check_folder_writable(folder)?;
    std::fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
    let count = write_pages(&command, folder)?;
    say(&format!("{} in {}", counted(count, "page"), folder.display()));
    Ok(())
}

fn page(command: &Command) -> std::io::Result<Vec<u8>> {
    let mut text = Vec::new();
    Man::new(command.clone()).render(&mut text)?;
    Ok(text)
}

/// Writes the man pages of a command and its subcommands; returns the number of pages.
fn write_pages(command: &Command, folder: &Path) -> Result<usize> {
    let name = command.get_display_name().unwrap_or_else(|| command.get_name()).to_owned();
    let path = folder.join(format!("{name}.1"));
    let text = page(command).map_err(Error::io("write", &path))?;
    write_atomic(&path, &text)?;
    let below = command.get_subcommands().filter(|command| !command.is_hide_set() && command.get_name() != "help");
    below.map(|command| write_pages(command, folder)).try_fold(1, |sum, count| Ok(sum + count?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every flag that a command's help lists is in its man page and in the completions.
    #[test]
    fn pages_and_completions_have_every_listed_flag() {
        let mut command = Cli::command();
        command.build();
        let folder = tempfile::tempdir().unwrap();
        let count = write_pages(&command, folder.path()).unwrap();
        assert!(count > 20, "{count}");
        let dpo = std::fs::read_to_string(folder.path().join("mapl-dpo.1")).unwrap().replace("\\-", "-");
        let mut bash = Vec::new();
        generate(Shell::Bash, &mut offered(&Cli::command()), "mapl", &mut bash);
        let bash = String::from_utf8(bash).unwrap();
        for arg in command.find_subcommand("dpo").unwrap().get_arguments().filter(|arg| !arg.is_hide_set()) {
            let Some(long) = arg.get_long() else { continue };
            assert!(dpo.contains(&format!("--{long}")) && bash.contains(&format!("--{long}")), "{long}");
        }
        assert!(folder.path().join("mapl-data-build.1").exists());
    }

    /// Returns the options that the completions for bash list for a command.
    fn options(bash: &str, command: &str) -> Vec<String> {
        let case = bash.split(&format!("        mapl__{command})\n")).nth(1);
        let case = case.or_else(|| bash.split(&format!("        mapl__subcmd__{command})\n")).nth(1));
        let line = case.unwrap().lines().next().unwrap();
        line.split('"').nth(1).unwrap().split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn completions_offer_no_option_and_no_value_that_a_command_refuses() {
        let mut bash = Vec::new();
        generate(Shell::Bash, &mut offered(&Cli::command()), "mapl", &mut bash);
        let bash = String::from_utf8(bash).unwrap();
        let mut refused = 0;
        for (name, command) in Cli::command().get_subcommands().map(|command| (command.get_name(), command)) {
            if command.get_subcommands().next().is_some() || command.is_hide_set() {
                continue;
            }
            let offered = options(&bash, name);
            for arg in command.get_arguments().filter(|arg| arg.is_hide_set()) {
                let Some(long) = arg.get_long() else { continue };
                assert!(!offered.contains(&format!("--{long}")), "mapl {name} --{long}");
                refused += 1;
            }
        }
        assert!(refused > 20, "{refused}");
        let offered = offered(&Cli::command());
        let reward = offered.find_subcommand("reward").unwrap();
        let loss = reward.get_arguments().find(|arg| arg.get_id() == "loss_type").unwrap();
        let values: Vec<String> = loss.get_possible_values().iter().map(|value| value.get_name().to_owned()).collect();
        assert_eq!(values, ["sigmoid", "robust", "hinge"]);
    }
}
