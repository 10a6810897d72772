//! The ranks of a run: processes that a launcher started together, and the sums they form over MPI or NCCL.
//!
//! - [`launcher`]: rank and number of ranks from the launcher's variables
//! - [`collective`]: all-reduce, reduce-scatter, all-gather, broadcast and barrier; one rank without
//!   any transport
//! - [`buffers`]: the same on buffers of a backend
//! - `rehearsal`: counts the calls and bytes of collectives
//! - `mpi`: collectives over MPI (cargo feature `mpi`), for ranks on CPUs
//! - `nccl`: messages over NCCL, for ranks on GPUs; `meeting`: how they get NCCL's id; `stand_in`: records
//!   NCCL's calls and carries them out in tests
//! - `watch`: ends all ranks if one has died or stopped; `end`: advice and outcome after such an end
//! - [`agreement`]: rejects ranks that were started with different programs, data, models or flags
//! - [`world`]: the ranks of this process; [`mod@host`]: the name of its machine
//!
//! Every rank runs the whole program, but only rank 0 prints and writes files. A rank that fails prints its
//! error with its rank and host, and ends the other ranks.

pub(crate) mod agreement;
pub(crate) mod buffers;
pub(crate) mod collective;
pub(crate) mod end;
pub(crate) mod host;
pub(crate) mod launcher;
mod meeting;
#[cfg(feature = "mpi")]
mod mpi;
pub(crate) mod nccl;
#[cfg(test)]
pub(crate) mod rehearsal;
#[cfg(test)]
pub(crate) mod stand_in;
mod watch;
pub(crate) mod world;
