//! One child process: its start, requests with responses, and the cause of its end.
//!
//! The parent's pipes are non-blocking, so a stopped or stuck child cannot block the parent. The child's stderr
//! is a file in memory. Byte 0 is the step that the child is running ([`Stage`]); error output of Rust's
//! runtime and of other libraries starts at byte [`WORDS`].

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, OFlags, fcntl_getfl, fcntl_setfl, memfd_create};
use rustix::process::{Resource, getrlimit};

use super::frame::{self, Frame};
use super::{COMMAND, Failure, Limits, Program, Stage, host};

/// Offset of the child's error output in the file that is its stderr.
const WORDS: u64 = 8;

/// A child that accepts requests.
pub(super) struct Process {
    child: Child,
    to: ChildStdin,
    from: ChildStdout,
    note: File,
    limits: Limits,
}

/// Reason why a request got no response.
pub(super) struct Death {
    pub failure: Failure,
    /// True if the child was ended from outside, not by its request.
    pub foreign: bool,
}

impl Process {
    /// Starts a child.
    pub(super) fn start(program: &Program) -> io::Result<Self> {
        let mut limits = program.limits;
        limits.memory = getrlimit(Resource::As).maximum.unwrap_or(u64::MAX).min(limits.memory);
        let mut note = File::from(memfd_create("mapl-worker", MemfdFlags::CLOEXEC)?);
        note.write_all(&[0; WORDS as usize])?;
        note.seek(SeekFrom::Start(WORDS))?;
        let mut child = Command::new(&program.path)
            .arg0("mapl")
            .args([COMMAND, &limits.memory.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(note.try_clone()?)
            // A separate process group keeps terminal signals from the child. The parent may want to save its
            // work first.
            .process_group(0)
            .spawn()?;
        let (Some(to), Some(from)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(io::Error::other("the child has no pipes"));
        };
        let process = Self { child, to, from, note, limits };
        fcntl_setfl(&process.to, fcntl_getfl(&process.to)? | OFlags::NONBLOCK)?;
        fcntl_setfl(&process.from, fcntl_getfl(&process.from)? | OFlags::NONBLOCK)?;
        Ok(process)
    }

    /// Sends a request and waits for its response. `seconds` limits the child's processor time. The limit on
    /// wall-clock time is much longer and only ends a child that makes no progress, because other programs
    /// may delay it.
    pub(super) fn ask(&mut self, parts: &[&[u8]], seconds: u64) -> Result<Frame, Death> {
        let wall = 60 + 20 * seconds;
        let until = Instant::now() + Duration::from_secs(wall);
        let number = u32::try_from(seconds).unwrap_or(u32::MAX);
        let answer = self.send(&frame::head(number, parts), until).and_then(|()| {
            parts.iter().try_for_each(|part| self.send(part, until))?;
            frame::read(&mut Answer { from: &mut self.from, until })
        });
        match answer {
            Ok(Some(frame)) => Ok(frame),
            Err(e) if e.kind() == io::ErrorKind::TimedOut => {
                Err(self.end(seconds, Some(format!("did not end within {wall} seconds"))))
            }
            Err(e) if e.kind() == io::ErrorKind::InvalidData => {
                Err(self.end(seconds, Some("sent a damaged response".into())))
            }
            Ok(None) | Err(_) => Err(self.end(seconds, None)),
        }
    }

    fn send(&mut self, mut bytes: &[u8], until: Instant) -> io::Result<()> {
        while !bytes.is_empty() {
            match self.to.write(bytes) {
                Ok(n) => bytes = &bytes[n..],
                Err(e) => retry(e, PollFd::new(&self.to, PollFlags::OUT), until)?,
            }
        }
        Ok(())
    }

    /// Ends the child and finds out why it sent no response.
    fn end(&mut self, seconds: u64, known: Option<String>) -> Death {
        if known.is_some() {
            let _ = self.child.kill();
        }
        let status = self.child.wait();
        let mut note = [0; 1];
        let stage = self.note.read_at(&mut note, 0).map_or(Stage::Other, |_| Stage::from_byte(note[0]));
        let mut words = [0; 2048];
        let read = self.note.read_at(&mut words, WORDS).unwrap_or(0);
        let words = String::from_utf8_lossy(&words[..read]);
        let (cause, foreign) = match (known, status) {
            (Some(cause), _) => (cause, false),
            (None, Ok(status)) => cause(status, &words, seconds, self.limits),
            (None, Err(e)) => (format!("ended for an unknown reason: {e}"), false),
        };
        Death { failure: Failure::Died { stage, cause }, foreign }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Without the wait, the child would stay in the process table until this process ends.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits until a pipe is ready after a call that would have blocked.
fn retry(error: io::Error, pipe: PollFd<'_>, until: Instant) -> io::Result<()> {
    match error.kind() {
        io::ErrorKind::Interrupted => return Ok(()),
        io::ErrorKind::WouldBlock => {}
        _ => return Err(error),
    }
    let left = until.saturating_duration_since(Instant::now());
    let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
    match poll(&mut [pipe], Some(&timeout)) {
        Ok(0) => Err(io::ErrorKind::TimedOut.into()),
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// Reads responses from the child's pipe until a deadline.
struct Answer<'a> {
    from: &'a mut ChildStdout,
    until: Instant,
}

impl Read for Answer<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.from.read(bytes) {
                Ok(n) => return Ok(n),
                Err(e) => retry(e, PollFd::new(&*self.from, PollFlags::IN), self.until)?,
            }
        }
    }
}

/// Returns the cause of a child's end, and true if the child was killed from outside.
fn cause(status: ExitStatus, words: &str, seconds: u64, limits: Limits) -> (String, bool) {
    use signal_hook::consts::{SIGABRT, SIGBUS, SIGHUP, SIGINT, SIGKILL, SIGSEGV, SIGTERM};
    /// SIGXCPU, which signal-hook does not list.
    const OUT_OF_TIME: i32 = rustix::process::Signal::XCPU.as_raw();
    let own = |text: String| (text, false);
    match status.signal() {
        Some(OUT_OF_TIME) => own(format!("took more than {seconds} seconds of processor time")),
        Some(SIGABRT) if words.contains("memory allocation of") => {
            own(format!("needed more than {} MiB of memory", limits.memory >> 20))
        }
        Some(SIGABRT | SIGSEGV | SIGBUS) if words.contains("overflowed its stack") => {
            own(format!("overflowed the stack of {} MiB", host::STACK >> 20))
        }
        Some(signal @ (SIGKILL | SIGTERM | SIGINT | SIGHUP)) => {
            (format!("was ended by signal {signal}; the system may be out of memory"), true)
        }
        Some(signal) => own(format!("crashed with signal {signal}")),
        // The allocator of the mapl binary ends the process with this code if an allocation fails.
        None if status.code() == Some(7) => own(format!("needed more than {} MiB of memory", limits.memory >> 20)),
        None => {
            let words = words.lines().next().unwrap_or_default();
            own(format!("ended with exit code {}: {words}", status.code().unwrap_or(-1))
                .trim_end_matches([':', ' '])
                .to_owned())
        }
    }
}
