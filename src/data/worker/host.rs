//! Code that runs in a child process: sets the limits, then sends one response for each request.
//!
//! - The limits on memory, core files and the size of written files hold for the whole life of the child. The
//!   limit on processor time is set for each request.
//! - Requests are answered on a thread with a large stack.
//! - The child ends as soon as its parent has ended, even during a request: a thread waits for the
//!   hang-up of the request pipe.
//! - Signals that ask a program to stop are ignored. The parent receives them too, and decides whether to
//!   stop.

use std::io::{self, Write};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::time::{ClockId, clock_gettime};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1};

use super::frame::{self, Frame};
use super::guard;

/// Stack size of the thread that serves requests, in bytes.
pub(super) const STACK: usize = 64 << 20;

/// Maximum size in bytes of a file that the child writes, which is only its stderr.
const MAX_FILE: u64 = 1 << 20;

/// Serves requests from standard input until its end. `memory` is the limit on the address space in bytes.
pub(crate) fn serve(memory: u64, answer: impl FnMut(Frame) -> Vec<Vec<u8>> + Send + 'static) -> io::Result<()> {
    std::panic::set_hook(Box::new(|_| {}));
    for signal in [SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1] {
        signal_hook::flag::register(signal, Arc::new(AtomicBool::new(false)))?;
    }
    guard::note_to(io::stderr().as_fd().try_clone_to_owned()?.into());
    // If the system runs out of memory, the kernel should kill the child first. Errors are ignored, because not
    // every system allows this setting.
    let _ = std::fs::write("/proc/self/oom_score_adj", "1000");
    limit(Resource::Core, 0)?;
    limit(Resource::Fsize, MAX_FILE)?;
    limit(Resource::As, memory)?;
    std::thread::Builder::new().spawn(|| {
        let stdin = io::stdin();
        loop {
            // No events are requested, so only a hang-up ends the wait.
            let mut pipe = [PollFd::new(&stdin, PollFlags::empty())];
            match poll(&mut pipe, None) {
                Err(rustix::io::Errno::INTR) => {}
                _ => std::process::exit(0),
            }
        }
    })?;
    let worker =
        std::thread::Builder::new().name("worker".into()).stack_size(STACK).spawn(move || answer_all(answer))?;
    worker.join().unwrap_or_else(|_| Err(io::Error::other("the worker thread panicked")))
}

fn answer_all(mut answer: impl FnMut(Frame) -> Vec<Vec<u8>>) -> io::Result<()> {
    // These files are unbuffered, whereas standard output would flush at every line break in a message.
    let mut from = std::fs::File::from(io::stdin().as_fd().try_clone_to_owned()?);
    let mut to = std::fs::File::from(io::stdout().as_fd().try_clone_to_owned()?);
    while let Some(request) = frame::read(&mut from)? {
        let used = clock_gettime(ClockId::ProcessCPUTime).tv_sec as u64;
        // `used` is rounded down, so one second is added.
        limit(Resource::Cpu, used + 1 + u64::from(request.number))?;
        let parts = answer(request);
        let parts: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
        let head = frame::head(0, &parts);
        let bytes: usize = parts.iter().map(|part| part.len()).sum();
        if bytes < 1 << 16 {
            // A short response is written in one call, so that the parent wakes only once.
            to.write_all(&[&head[..], &parts.concat()].concat())?;
        } else {
            to.write_all(&head)?;
            parts.iter().try_for_each(|part| to.write_all(part))?;
        }
    }
    Ok(())
}

/// Sets the soft limit of a resource to `most`, or to the hard limit if that is lower.
fn limit(resource: Resource, most: u64) -> io::Result<()> {
    let maximum = getrlimit(resource).maximum;
    let current = maximum.map_or(most, |maximum| maximum.min(most));
    Ok(setrlimit(resource, Rlimit { current: Some(current), maximum })?)
}
