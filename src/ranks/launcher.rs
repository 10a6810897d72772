//! Rank and number of ranks from the variables that a launcher sets.
//!
//! ```text
//! torchrun   RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT
//! srun       SLURM_PROCID, SLURM_NTASKS (or SLURM_STEP_NUM_TASKS), SLURM_LOCALID
//! mpirun     OMPI_COMM_WORLD_RANK, OMPI_COMM_WORLD_SIZE, OMPI_COMM_WORLD_LOCAL_RANK
//! PMI        PMI_RANK, PMI_SIZE
//! ```
//!
//! The first launcher of this list with both a rank and a size is used. Without any variable, the run has one
//! rank and no launcher. If this rank joins NCCL, its meeting point is this host. These are errors, which list
//! every variable with its value: two launchers that disagree; only one variable of a pair; values that are not
//! whole numbers; a rank that is not below the size.
//!
//! A Slurm batch script has the variables of its first task, but runs outside of `srun`, so Slurm's variables
//! are ignored there. Only `srun` sets SLURM_STEP_ID.

use crate::{Error, Result};

/// A kind of launcher.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Launcher {
    /// torchrun.
    Torchrun,
    /// Slurm's srun.
    Srun,
    /// mpirun of Open MPI.
    Mpirun,
    /// A process manager with PMI variables.
    Pmi,
    /// No launcher; a single-process run.
    Absent,
}

/// Names of a launcher's variables.
struct Variables {
    launcher: Launcher,
    rank: &'static str,
    /// Names of the size variable; the first one that is set is used.
    size: &'static [&'static str],
    local: Option<&'static str>,
}

const LAUNCHERS: [Variables; 4] = [
    Variables { launcher: Launcher::Torchrun, rank: "RANK", size: &["WORLD_SIZE"], local: Some("LOCAL_RANK") },
    Variables {
        launcher: Launcher::Srun,
        rank: "SLURM_PROCID",
        size: &["SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"],
        local: Some("SLURM_LOCALID"),
    },
    Variables {
        launcher: Launcher::Mpirun,
        rank: "OMPI_COMM_WORLD_RANK",
        size: &["OMPI_COMM_WORLD_SIZE"],
        local: Some("OMPI_COMM_WORLD_LOCAL_RANK"),
    },
    Variables { launcher: Launcher::Pmi, rank: "PMI_RANK", size: &["PMI_SIZE"], local: None },
];

/// Reason of the error for two launchers that disagree.
const OTHER_RANKS: &str = "they name different ranks";

/// torchrun's default port.
const MASTER_PORT: u16 = 29500;

const WRONG_PORT: &str = "MASTER_PORT is not a port from 1 to 65535";

impl Launcher {
    /// Name in messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Torchrun => "torchrun",
            Self::Srun => "srun",
            Self::Mpirun => "mpirun",
            Self::Pmi => "a PMI launcher",
            Self::Absent => "no launcher",
        }
    }
}

/// Rank of this process and number of ranks, as a launcher sets them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ranks {
    pub launcher: Launcher,
    pub rank: usize,
    pub size: usize,
    /// Index among the ranks of this host, if the launcher sets it.
    pub local: Option<usize>,
    /// Address and port of the meeting point of ranks on GPUs, if they are known.
    pub master: Option<(String, u16)>,
}

impl Ranks {
    /// The ranks of this process; `None` without a launcher.
    pub fn from_env() -> Result<Option<Self>> {
        Self::from(of_process, false)
    }

    /// Like [`Ranks::from_env`], but a single rank has a meeting point too. Without a launcher, this process is
    /// that rank.
    pub fn that_meet() -> Result<Option<Self>> {
        Self::from(of_process, true)
    }

    /// Reads the ranks from variables. With `one_meets`, a single rank has a meeting point.
    fn from(variable: impl Fn(&str) -> Option<String>, one_meets: bool) -> Result<Option<Self>> {
        let batch_script = variable("SLURM_JOB_ID").is_some()
            && variable("SLURM_STEP_ID").is_none()
            && variable("SLURM_STEP_NUM_TASKS").is_none();
        let mut read: Vec<(String, String)> = Vec::new();
        let mut found: Vec<Self> = Vec::new();
        let mut wrong: Option<String> = None;
        for of in LAUNCHERS.iter().filter(|of| of.launcher != Launcher::Srun || !batch_script) {
            let size_name = of.size.iter().find(|name| variable(name).is_some()).unwrap_or(&of.size[0]);
            let mut number = |name: &str| -> Option<usize> {
                let text = variable(name)?;
                let value = text.trim().parse();
                read.push((name.to_owned(), text));
                if value.is_err() {
                    wrong.get_or_insert(format!("{name} is not a whole number"));
                }
                value.ok()
            };
            match (number(of.rank), number(size_name)) {
                (Some(rank), Some(size)) => {
                    let local = of.local.and_then(&mut number);
                    if rank >= size || local.is_some_and(|local| local >= size) {
                        wrong.get_or_insert(format!("{} is not below {size_name}", of.rank));
                    }
                    let ranks = Self { launcher: of.launcher, rank, size, local, master: None };
                    if found.first().is_some_and(|first| (first.rank, first.size) != (rank, size)) {
                        wrong.get_or_insert(OTHER_RANKS.to_owned());
                    }
                    found.push(ranks);
                }
                (None, None) => {}
                // Slurm also sets the number of tasks outside of tasks.
                (None, Some(_)) if of.launcher == Launcher::Srun => drop(read.pop()),
                (None, Some(_)) => drop(wrong.get_or_insert(format!("{} is missing", of.rank))),
                (Some(_), None) => drop(wrong.get_or_insert(format!("{size_name} is missing"))),
            }
        }
        let only = Self { launcher: Launcher::Absent, rank: 0, size: 1, local: None, master: None };
        let mut ranks = found.into_iter().next().or(one_meets.then_some(only));
        if let Some(ranks) = ranks.as_mut()
            && let Some(host) = meeting_host(ranks, &variable, one_meets)
        {
            let text = variable("MASTER_PORT");
            let port = text.as_ref().map_or(Some(MASTER_PORT), |text| text.trim().parse().ok());
            read.extend(text.map(|text| ("MASTER_PORT".to_owned(), text)));
            match port {
                Some(port @ 1..) => ranks.master = Some((host, port)),
                Some(0) | None => drop(wrong.get_or_insert(WRONG_PORT.to_owned())),
            }
        }
        match wrong {
            None => Ok(ranks),
            Some(why) => {
                let list: Vec<String> = read.iter().map(|(name, value)| format!("{name}={value}")).collect();
                let list = list.join(", ");
                Err(Error::Usage(match why.as_str() {
                    OTHER_RANKS => format!(
                        "the launcher's variables contradict each other: {why}; {list}; start mapl with one launcher \
                         (torchrun, srun or mpirun), or unset the variables of the others"
                    ),
                    WRONG_PORT => format!("{why}; {list}; set it to a free port of rank 0's host, or unset it"),
                    _ => format!(
                        "the launcher's variables do not give a rank: {why}; {list}; start mapl with torchrun, srun or \
                         mpirun, which set them, or unset them"
                    ),
                }))
            }
        }
    }
}

/// A variable of this process.
fn of_process(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// Returns the host of rank 0, the first of: MASTER_ADDR; this host for a single rank with `one_meets`; Slurm's
/// first host; this host if mpirun started all ranks on one host.
fn meeting_host(ranks: &Ranks, variable: impl Fn(&str) -> Option<String>, one_meets: bool) -> Option<String> {
    const HERE: &str = "127.0.0.1";
    variable("MASTER_ADDR").or_else(|| match ranks.launcher {
        _ if one_meets && ranks.size == 1 => Some(HERE.to_owned()),
        Launcher::Srun => {
            let nodes = ["SLURM_STEP_NODELIST", "SLURM_NODELIST"].into_iter().find_map(&variable)?;
            first_host(&nodes)
        }
        Launcher::Mpirun => {
            let here = variable("OMPI_COMM_WORLD_LOCAL_SIZE")?.trim().parse::<usize>();
            (here == Ok(ranks.size)).then(|| HERE.to_owned())
        }
        Launcher::Torchrun | Launcher::Pmi | Launcher::Absent => None,
    })
}

/// First name of Slurm's list: `gpu03` of `gpu[03-07,12],cpu1`. `None` for a name with several brackets.
fn first_host(nodes: &str) -> Option<String> {
    let (name, rest) = match nodes.split_once('[') {
        Some((name, rest)) if !name.contains(',') => (name, rest),
        _ => return nodes.split(',').next().filter(|name| !name.is_empty()).map(str::to_owned),
    };
    let (numbers, after) = rest.split_once(']')?;
    let first = numbers.split([',', '-']).next().filter(|first| !first.is_empty())?;
    let end = after.split(',').next().unwrap_or_default();
    (!end.contains('[')).then(|| format!("{name}{first}{end}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(set: &[(&str, &str)]) -> Result<Option<Ranks>> {
        read_as(set, false)
    }

    fn read_as(set: &[(&str, &str)], one_meets: bool) -> Result<Option<Ranks>> {
        let value = |name: &str| set.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned());
        Ranks::from(value, one_meets)
    }

    fn place(set: &[(&str, &str)]) -> Option<(Launcher, usize, usize, Option<usize>)> {
        read(set).unwrap().map(|r| (r.launcher, r.rank, r.size, r.local))
    }

    #[test]
    fn every_launcher_is_read_and_nothing_is_one_rank() {
        assert_eq!(place(&[]), None);
        let torchrun = [("RANK", "3"), ("WORLD_SIZE", "4"), ("LOCAL_RANK", "1"), ("MASTER_ADDR", "h")];
        assert_eq!(place(&torchrun), Some((Launcher::Torchrun, 3, 4, Some(1))));
        assert_eq!(read(&torchrun).unwrap().unwrap().master, Some(("h".into(), 29500)));
        let port = [&torchrun[..], &[("MASTER_PORT", "29511")]].concat();
        assert_eq!(read(&port).unwrap().unwrap().master, Some(("h".into(), 29511)));
        let srun = [("SLURM_PROCID", "1"), ("SLURM_NTASKS", "2"), ("SLURM_LOCALID", "0")];
        assert_eq!(place(&srun), Some((Launcher::Srun, 1, 2, Some(0))));
        let mpirun =
            [("OMPI_COMM_WORLD_RANK", "0"), ("OMPI_COMM_WORLD_SIZE", "2"), ("OMPI_COMM_WORLD_LOCAL_RANK", "0")];
        assert_eq!(place(&mpirun), Some((Launcher::Mpirun, 0, 2, Some(0))));
        assert_eq!(place(&[("PMI_RANK", "1"), ("PMI_SIZE", "2")]), Some((Launcher::Pmi, 1, 2, None)));
        // Two launchers that agree.
        let both = [&srun[..], &[("PMI_RANK", "1"), ("PMI_SIZE", "2")]].concat();
        assert_eq!(place(&both), Some((Launcher::Srun, 1, 2, Some(0))));
    }

    #[test]
    fn ranks_on_gpus_meet_where_the_launcher_says() {
        let master = |set: &[(&str, &str)]| read(set).unwrap().unwrap().master;
        let srun = [("SLURM_PROCID", "1"), ("SLURM_NTASKS", "2"), ("SLURM_NODELIST", "gpu[03-07,12],cpu1")];
        assert_eq!(master(&srun), Some(("gpu03".into(), 29500)));
        assert_eq!(master(&[&srun[..], &[("MASTER_ADDR", "h"), ("MASTER_PORT", "7")]].concat()), Some(("h".into(), 7)));
        let firsts = ["a1,b2", "node7", "n[1,4]-ib,x", "rack[1-2]n[1-8]", "", "c,n[1-2]"].map(first_host);
        let expected = [Some("a1"), Some("node7"), Some("n1-ib"), None, None, Some("c")];
        assert_eq!(firsts, expected.map(|name| name.map(str::to_owned)));
        let mpirun = |here| {
            let all =
                [("OMPI_COMM_WORLD_RANK", "0"), ("OMPI_COMM_WORLD_SIZE", "2"), ("OMPI_COMM_WORLD_LOCAL_SIZE", here)];
            master(&all)
        };
        assert_eq!(mpirun("2"), Some(("127.0.0.1".into(), 29500)));
        // On several hosts, mpirun does not set the host of rank 0.
        assert_eq!(mpirun("1"), None);
    }

    #[test]
    fn one_rank_that_is_to_meet_has_a_place_and_needs_no_launcher() {
        let place = |set: &[(&str, &str)]| {
            let ranks = read_as(set, true).unwrap().unwrap();
            assert_eq!((ranks.rank, ranks.size), (0, 1));
            (ranks.launcher, ranks.master.unwrap())
        };
        let here = |port: u16| ("127.0.0.1".to_owned(), port);
        assert_eq!(place(&[]), (Launcher::Absent, here(29500)));
        assert_eq!(place(&[("MASTER_PORT", "7")]), (Launcher::Absent, here(7)));
        assert_eq!(place(&[("PMI_RANK", "0"), ("PMI_SIZE", "1")]), (Launcher::Pmi, here(29500)));
        let torchrun = [("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"), ("MASTER_ADDR", "h")];
        assert_eq!(place(&torchrun), (Launcher::Torchrun, ("h".into(), 29500)));
        // With several ranks, `one_meets` has no effect.
        let several = [("PMI_RANK", "1"), ("PMI_SIZE", "2")];
        assert_eq!(read_as(&several, true).unwrap(), read(&several).unwrap());
    }

    #[test]
    fn a_slurm_batch_script_is_one_rank_and_its_steps_are_several() {
        let script = [("SLURM_JOB_ID", "7"), ("SLURM_PROCID", "0"), ("SLURM_NTASKS", "8"), ("SLURM_LOCALID", "0")];
        assert_eq!(place(&script), None);
        let mpirun = [("OMPI_COMM_WORLD_RANK", "3"), ("OMPI_COMM_WORLD_SIZE", "4")];
        assert_eq!(place(&[&script[..], &mpirun].concat()), Some((Launcher::Mpirun, 3, 4, None)));
        let step = [&script[..], &[("SLURM_STEP_ID", "0"), ("SLURM_STEP_NUM_TASKS", "2")]].concat();
        assert_eq!(place(&step), Some((Launcher::Srun, 0, 2, Some(0))));
        // The number of tasks of an allocation says nothing about this process.
        assert_eq!(place(&[("SLURM_NTASKS", "8")]), None);
    }

    #[test]
    fn contradictions_are_one_error_with_every_variable() {
        let refused = |set: &[(&str, &str)], words: &[&str]| {
            let e = read(set).unwrap_err();
            assert_eq!(e.exit_code(), 2);
            let text = e.to_string();
            words.iter().for_each(|word| assert!(text.contains(word), "{word}: {text}"));
        };
        let torchrun = [("RANK", "0"), ("WORLD_SIZE", "2")];
        let other = [&torchrun[..], &[("PMI_RANK", "1"), ("PMI_SIZE", "2")]].concat();
        refused(&other, &["different ranks", "RANK=0, WORLD_SIZE=2, PMI_RANK=1, PMI_SIZE=2"]);
        let sizes = [&torchrun[..], &[("OMPI_COMM_WORLD_RANK", "0"), ("OMPI_COMM_WORLD_SIZE", "4")]].concat();
        refused(&sizes, &["different ranks", "OMPI_COMM_WORLD_SIZE=4"]);
        refused(&[("RANK", "2"), ("WORLD_SIZE", "2")], &["RANK is not below WORLD_SIZE", "RANK=2"]);
        refused(&[("RANK", "x"), ("WORLD_SIZE", "2")], &["RANK is not a whole number", "RANK=x"]);
        refused(&[("RANK", "1")], &["do not give a rank: WORLD_SIZE is missing", "RANK=1", "or unset them"]);
        refused(&[("WORLD_SIZE", "2")], &["RANK is missing"]);
        for port in ["x", "0", "70000"] {
            let named = format!("MASTER_PORT={port}");
            refused(&[torchrun[0], torchrun[1], ("MASTER_ADDR", "h"), ("MASTER_PORT", port)], &[&named]);
        }
    }
}
