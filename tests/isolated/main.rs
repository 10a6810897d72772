//! Tests that need the emulator to themselves. They damage memory or leave out barriers, and every launch of the process checks
//! the guards of all allocations. So they are one binary, and [`alone`] runs them one at a time.

mod barriers;
mod launches;

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Held by each test of this binary while it uses the emulator.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}
