//! Initialisation of the communication between the ranks of a command: MPI on CPUs, NCCL on GPUs. With
//! `--nccl-init`, a single-process run on a GPU uses NCCL too.
//!
//! `--nccl-init` on CPUs or in studies is an error, as is `cuda:N` with N above 0 and several ranks.

use std::path::Path;

use clap::Args;
use serde::Serialize;

use super::Command;
use super::device::{Device, DeviceArgs};
use crate::backend::kernels::driver::{self, Driver};
use crate::backend::kernels::launchers::CUDA_VERSION;
use crate::error::refuse_given;
use crate::ranks::world::{self, Meet, Sharing};
use crate::{Error, Result};

/// Arguments for the communication between ranks on GPUs.
#[derive(Args, Clone, Debug, Default, Serialize)]
pub struct MeetingArgs {
    /// Source of the NCCL id for ranks on GPUs: env (rank 0 listens at MASTER_ADDR:MASTER_PORT), or fs: and
    /// the path of a new file that all ranks can read. With this flag, a single-process run on a GPU uses
    /// NCCL too, with bitwise identical results, which checks NCCL and its cost [default with several ranks:
    /// env]
    #[arg(long, value_name = "env|fs:PATH", value_parser = place)]
    nccl_init: Option<String>,
}

impl MeetingArgs {
    fn file(&self) -> Option<&Path> {
        self.nccl_init.as_deref().and_then(path_of)
    }
}

fn path_of(text: &str) -> Option<&Path> {
    text.strip_prefix("fs:").filter(|path| !path.is_empty()).map(Path::new)
}

fn place(text: &str) -> Result<String, String> {
    match text == "env" || path_of(text).is_some() {
        true => Ok(text.to_owned()),
        false => Err("env, or fs: and the path of a file, such as fs:/shared/id".into()),
    }
}

impl Command {
    /// Returns the arguments for the device and the ranks; `None` for a command without `--nccl-init`.
    fn meeting(&self) -> Option<(DeviceArgs, &MeetingArgs)> {
        match self {
            Command::Sft(args) | Command::Reward(args) | Command::Dpo(args) | Command::Kto(args) => {
                Some((args.device, &args.meeting))
            }
            Command::Score(args) => Some(args.meeting()),
            Command::Eval(args) => Some(args.meeting()),
            Command::Compare(args) => Some(args.meeting()),
            Command::Generate(args) => Some(args.meeting()),
            Command::Study(command) => command.meeting(),
            _ => None,
        }
    }

    /// Connects this process to the other ranks that a launcher started. A single-process run initialises
    /// communication only with `--nccl-init`.
    pub(super) fn join(&self) -> Result<()> {
        let (command, shares) = self.shares_work();
        let meeting = self.meeting();
        let given = meeting.is_some_and(|(_, meeting)| meeting.nccl_init.is_some());
        world::join(Sharing { command, shares, one_joins: given }, |ranks| meet(meeting, ranks))?;
        match world::gpu() {
            None => refuse_given(
                &[("--nccl-init", given)],
                "without a GPU (--device cpu, emulator or reference) and in studies; leave it out, or pass --device cuda \
                 (docs/ranks.md)",
            ),
            Some(_) => Ok(()),
        }
    }
}

fn meet(meeting: Option<(DeviceArgs, &MeetingArgs)>, ranks: usize) -> Result<Meet<'_>> {
    let Some((args, meeting)) = meeting else { return Ok(Meet::Mpi) };
    let mut gpu = 0;
    let on_gpus = match args.device {
        Device::Cuda(ordinal) if ordinal == 0 || ranks == 1 => {
            gpu = ordinal;
            true
        }
        Device::Cuda(ordinal) => {
            return Err(Error::Usage(format!(
                "--device cuda:{ordinal}: with several ranks, each rank uses the GPU with the index of its local \
                 rank (LOCAL_RANK); pass --device cuda, and choose GPUs with CUDA_VISIBLE_DEVICES"
            )));
        }
        // Devices are only counted. Opening one here would make every rank allocate memory on the first GPU.
        Device::Auto => CUDA_VERSION.is_some() && driver::is_present() && Driver::count().is_ok_and(|count| count > 0),
        Device::Cpu | Device::Emulator | Device::Reference => false,
    };
    Ok(if on_gpus { Meet::Nccl { file: meeting.file(), gpu } } else { Meet::Mpi })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_the_launchers_or_a_file_with_its_prefix() {
        assert_eq!((place("fs:/a/b"), place("env")), (Ok("fs:/a/b".into()), Ok("env".into())));
        assert_eq!((path_of("fs:/a/b"), path_of("env")), (Some(Path::new("/a/b")), None));
        assert!(["/a/b", "fs:", "tcp://h:1", "env:", ""].iter().all(|wrong| place(wrong).is_err()));
    }

    #[test]
    fn a_rank_takes_the_gpu_of_its_number_and_no_other() {
        let meeting = MeetingArgs { nccl_init: Some("fs:/id".into()) };
        let on = |device, ranks| meet(Some((DeviceArgs { device, dtype: None }, &meeting)), ranks);
        let first = on(Device::Cuda(0), 2).unwrap();
        assert!(matches!(first, Meet::Nccl { file: Some(path), gpu: 0 } if path.ends_with("id")));
        assert!(matches!(on(Device::Cpu, 2).unwrap(), Meet::Mpi));
        let refused = on(Device::Cuda(1), 2).err().unwrap();
        assert!(refused.exit_code() == 2 && refused.to_string().contains("LOCAL_RANK"), "{refused}");
        // A single rank uses the GPU of --device.
        assert!(matches!(on(Device::Cuda(1), 1).unwrap(), Meet::Nccl { gpu: 1, .. }));
    }
}
