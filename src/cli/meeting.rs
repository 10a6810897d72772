//! How the ranks of a command meet: on CPUs over MPI, on GPUs over NCCL.

use std::path::Path;

use clap::Args;
use serde::Serialize;

use super::Command;
use super::device::{Device, DeviceArgs};
use crate::backend::kernels::driver::{self, Driver};
use crate::backend::kernels::launchers::CUDA_VERSION;
use crate::error::refuse_given;
use crate::ranks::world::{self, Meet};
use crate::{Error, Result};

/// Arguments of ranks on GPUs.
#[derive(Args, Clone, Debug, Default, Serialize)]
pub struct MeetingArgs {
    /// File through which several ranks on GPUs get the id of NCCL: `fs:` and a path that all of them see and that
    /// does not exist yet [default: rank 0 listens at MASTER_ADDR:MASTER_PORT]
    #[arg(long, value_name = "fs:PATH", value_parser = file)]
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

fn file(text: &str) -> Result<String, String> {
    let kept = path_of(text).map(|_| text.to_owned());
    kept.ok_or_else(|| "fs: and the path of a file are needed, such as fs:/shared/id".into())
}

impl Command {
    /// Device and meeting of a command that several ranks share.
    fn meeting(&self) -> Option<(DeviceArgs, &MeetingArgs)> {
        match self {
            Command::Sft(args) | Command::Reward(args) | Command::Dpo(args) | Command::Kto(args) => {
                Some((args.device, &args.meeting))
            }
            Command::Score(args) => Some(args.meeting()),
            Command::Eval(args) => Some(args.meeting()),
            Command::Compare(args) => Some(args.meeting()),
            Command::Generate(args) => Some(args.meeting()),
            _ => None,
        }
    }

    /// Joins the ranks of a launcher, if there are several.
    pub(super) fn join(&self) -> Result<()> {
        let (name, shares) = self.shares_work();
        let meeting = self.meeting();
        world::join(name, shares, || meet(meeting))?;
        let given = meeting.is_some_and(|(_, meeting)| meeting.nccl_init.is_some());
        match world::gpu() {
            None => refuse_given(&[("--nccl-init", given)], "with one rank, or on CPUs; leave it out (docs/ranks.md)"),
            Some(_) => Ok(()),
        }
    }
}

fn meet(meeting: Option<(DeviceArgs, &MeetingArgs)>) -> Result<Meet<'_>> {
    let Some((args, meeting)) = meeting else { return Ok(Meet::Mpi) };
    let on_gpus = match args.device {
        Device::Cuda(0) => true,
        Device::Cuda(ordinal) => {
            return Err(Error::Usage(format!(
                "--device cuda:{ordinal}: each of several ranks takes the GPU of its LOCAL_RANK; pass --device cuda, and choose \
                 GPUs with CUDA_VISIBLE_DEVICES"
            )));
        }
        // Opening a device here would take memory of the first GPU for every rank.
        Device::Auto => CUDA_VERSION.is_some() && driver::is_present() && Driver::count().is_ok_and(|count| count > 0),
        Device::Cpu | Device::Emulator | Device::Reference => false,
    };
    Ok(if on_gpus { Meet::Nccl(meeting.file()) } else { Meet::Mpi })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_has_its_prefix() {
        assert_eq!(file("fs:/a/b"), Ok("fs:/a/b".into()));
        assert_eq!(path_of("fs:/a/b"), Some(Path::new("/a/b")));
        assert!(file("/a/b").is_err() && file("fs:").is_err() && file("tcp://h:1").is_err());
    }

    #[test]
    fn a_rank_takes_the_gpu_of_its_number_and_no_other() {
        let meeting = MeetingArgs { nccl_init: Some("fs:/id".into()) };
        let on = |device| meet(Some((DeviceArgs { device, dtype: None }, &meeting)));
        assert!(matches!(on(Device::Cuda(0)).unwrap(), Meet::Nccl(Some(path)) if path.ends_with("id")));
        assert!(matches!(on(Device::Cpu).unwrap(), Meet::Mpi));
        let refused = on(Device::Cuda(1)).err().unwrap();
        assert!(refused.exit_code() == 2 && refused.to_string().contains("LOCAL_RANK"), "{refused}");
    }
}
