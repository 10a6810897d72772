//! The `mapl` binary: parses the command line, runs one command, and turns an error into a message
//! and an exit code.

use std::alloc::{GlobalAlloc, Layout, System};
use std::path::PathBuf;

use clap::Parser as _;
use clap::error::ContextKind;
use mapl::cli::{Cli, args, finished, method_options, run, usage_error};
use mapl::data::{serve, worker};
use mapl::memory::allocation_failed;
use mapl::terminal::{complain, on_stdout};

/// The system's allocator. A failed allocation ends the process with exit code 7 instead of an abort,
/// unless the caller handles it.
struct Allocator;

fn checked(allocated: *mut u8, bytes: usize) -> *mut u8 {
    if allocated.is_null() {
        allocation_failed(bytes);
    }
    allocated
}

// SAFETY: every method forwards its arguments, which meet the caller's part of the contract, to the system's
// allocator and returns that allocator's pointer. The system's allocator guarantees size and alignment.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        checked(unsafe { System.alloc(layout) }, layout.size())
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        checked(unsafe { System.alloc_zeroed(layout) }, layout.size())
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        checked(unsafe { System.realloc(pointer, layout, bytes) }, bytes)
    }
}

#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

/// Maximum length in characters of a usage line in an error message; a longer line does not help and is left
/// out.
const LONG_USAGE: usize = 160;

fn main() {
    std::process::exit(exit_code());
}

fn exit_code() -> i32 {
    let mut given = std::env::args_os().skip(1);
    if given.next().is_some_and(|first| first == worker::COMMAND) {
        return serve::main(&given.collect::<Vec<_>>());
    }
    if let Some(path) = own_program() {
        worker::enable(worker::Program { path, limits: worker::Limits::default() });
    }
    let given = match args::given(std::env::args_os()) {
        Ok(given) => given,
        Err(e) => return finished(Err(e)),
    };
    for (name, value) in &given.variables {
        // SAFETY: this process has no other thread yet.
        unsafe { std::env::set_var(name, value) };
    }
    let cli = match Cli::try_parse_from(&given.words) {
        Ok(mut cli) => {
            cli.command.set_variables(&given.variables);
            cli
        }
        Err(mut e) if e.use_stderr() => {
            // The usage line lists every given option, including those of a configuration file, so it can be
            // very long.
            if e.get(ContextKind::Usage).is_some_and(|usage| usage.to_string().len() > LONG_USAGE) {
                e.remove(ContextKind::Usage);
            }
            usage_error();
            // If the message cannot be printed, the exit code still reports the usage error.
            let _ = e.print();
            if let Some(places) = given.places_in(&e.to_string()) {
                complain(&places);
            }
            return e.exit_code();
        }
        Err(e) => return finished(on_stdout(|_| e.print())),
    };
    if !cli.command.is_quiet() {
        given.notes.iter().for_each(|note| complain(&format!("note: {note}")));
    }
    let checked = args::check_text(&given.words, &cli.command).and_then(|()| method_options::check(&given.words));
    finished(checked.and_then(|()| run(cli, &given.shown)).map_err(|e| given.explain(e)))
}

/// Path of the running program. On Linux, `/proc/self/exe` stays valid if another build replaces the file.
fn own_program() -> Option<PathBuf> {
    let link = PathBuf::from("/proc/self/exe");
    if link.exists() { Some(link) } else { std::env::current_exe().ok() }
}
