//! A training command as a process of this program.

use std::io::{BufRead as _, BufReader, Read};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::terminal::{complain, say};
use crate::{Error, Result};

/// Time between two looks at a child.
const LOOK: Duration = Duration::from_millis(20);
/// Width of the column of names before printed lines, that of `reward-base-equal`.
const NAME_WIDTH: usize = 17;

/// A command of this program.
pub(super) struct Process<'a> {
    /// Name of the stage.
    pub(super) name: &'a str,
    /// Arguments of the program.
    pub(super) words: &'a [String],
    /// Number of threads, if other processes run at the same time; the lines of the process are then printed
    /// after its name. `None`: the process uses all threads and writes to stdout and stderr directly.
    pub(super) threads: Option<usize>,
}

impl Process<'_> {
    /// Runs the command to its end. Once `is_stopped` is true, the process is asked to stop, as by Ctrl-C:
    /// it finishes its step and saves its state.
    ///
    /// # Errors
    /// [`Error::Ended`] with the exit code of a process that failed or was stopped. Its message has been
    /// printed.
    pub(super) fn run(&self, is_stopped: impl Fn() -> bool) -> Result<()> {
        let mut child = self.start()?;
        let (out, err) = (child.stdout.take(), child.stderr.take());
        let is_asked = &AtomicBool::new(false);
        let status = std::thread::scope(|scope| {
            scope.spawn(move || each_line(out, |line| say(&format!("{:<NAME_WIDTH$} | {line}", self.name))));
            scope.spawn(move || {
                each_line(err, |line| complain(&self.named(line, is_asked.load(Ordering::SeqCst))));
            });
            ended(&mut child, is_stopped, is_asked)
        })
        .map_err(|e| Error::Runtime(format!("cannot wait for the process of {}: {e}", self.name)))?;
        match (status.code(), status.signal()) {
            (Some(0), _) => Ok(()),
            (Some(code), _) => Err(Error::Ended(code)),
            // Killed without a chance to print a message.
            (None, signal) => Err(Error::Runtime(format!(
                "the process of {} was killed by signal {}; signal 9 is often sent because memory ran out: see the \
                 system's log",
                self.name,
                signal.unwrap_or_default()
            ))),
        }
    }

    /// Puts the name of the process before a line of its stderr. The error of a process that was not asked to
    /// stop is the error of the quick start, and stays as it is.
    fn named(&self, line: &str, is_asked: bool) -> String {
        let is_own_error = line.starts_with("error:") && !is_asked;
        if is_own_error { line.to_owned() } else { format!("{}: {line}", self.name) }
    }

    fn start(&self) -> Result<Child> {
        let program = std::env::current_exe().map_err(|e| Error::Runtime(format!("cannot find this program: {e}")))?;
        let mut command = Command::new(program);
        command.arg0("mapl").args(self.words).stdin(Stdio::null());
        if let Some(threads) = self.threads {
            command.env("RAYON_NUM_THREADS", threads.to_string()).stdout(Stdio::piped()).stderr(Stdio::piped());
        }
        end_with_parent(&mut command);
        command.spawn().map_err(|e| Error::Runtime(format!("cannot start the process of {}: {e}", self.name)))
    }
}

/// Makes the child stop and save if this process is killed.
fn end_with_parent(command: &mut Command) {
    #[cfg(target_os = "linux")]
    // SAFETY: the closure makes one system call, which is allowed between fork and exec.
    unsafe {
        command.pre_exec(|| match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM) {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        });
    }
    #[cfg(not(target_os = "linux"))]
    let _ = command;
}

/// Waits for the end of a child. Once `is_stopped` is true, sets `is_asked` and asks the child to stop.
fn ended(child: &mut Child, is_stopped: impl Fn() -> bool, is_asked: &AtomicBool) -> std::io::Result<ExitStatus> {
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if !is_asked.load(Ordering::SeqCst) && is_stopped() {
            is_asked.store(true, Ordering::SeqCst);
            // SAFETY: the child has not been waited for, so its id belongs to it.
            unsafe { libc::kill(child.id() as libc::pid_t, libc::SIGTERM) };
        }
        std::thread::sleep(LOOK);
    }
}

/// Calls `each` with every line of a pipe until its end.
fn each_line(pipe: Option<impl Read>, each: impl Fn(&str)) {
    let Some(pipe) = pipe else { return };
    let mut reader = BufReader::new(pipe);
    let mut line = Vec::new();
    while reader.read_until(b'\n', &mut line).is_ok_and(|read| read > 0) {
        each(String::from_utf8_lossy(&line).trim_end_matches('\n'));
        line.clear();
    }
}
