//! Tests that need a separate process. `text_memory` counts allocations. The others need exclusive use of the
//! emulator: they corrupt memory or remove barriers, and every launch of a process checks the guards of all
//! allocations. [`alone`] runs them one at a time.

mod barriers;
mod fences;
mod launches;
mod text_memory;

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Returns the lock that each test of this binary holds while it uses the emulator.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}
