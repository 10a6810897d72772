//! Workspace that only grows. A task borrows a buffer, which returns to the pool when its guard is
//! dropped. After the first steps of a run, no op allocates.

use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, PoisonError};

/// Pool of the buffers that no task uses.
#[derive(Debug, Default)]
pub(super) struct Pool {
    free: Mutex<Vec<Vec<f32>>>,
}

impl Pool {
    /// Borrows a buffer of `len` elements with unspecified contents. Picks the smallest free buffer that is
    /// long enough; otherwise grows the longest free buffer.
    pub(super) fn take(&self, len: usize) -> Scratch<'_> {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let fitting = (0..free.len()).filter(|&i| free[i].len() >= len).min_by_key(|&i| free[i].len());
        let chosen = fitting.or_else(|| (0..free.len()).max_by_key(|&i| free[i].len()));
        let mut buffer = chosen.map(|i| free.swap_remove(i)).unwrap_or_default();
        drop(free);
        if buffer.len() < len {
            buffer.resize(len, 0.0);
        }
        Scratch { pool: self, buffer, len }
    }
}

/// Guard of a borrowed buffer.
pub(super) struct Scratch<'a> {
    pool: &'a Pool,
    buffer: Vec<f32>,
    len: usize,
}

impl Deref for Scratch<'_> {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        &self.buffer[..self.len]
    }
}

impl DerefMut for Scratch<'_> {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.buffer[..self.len]
    }
}

impl Drop for Scratch<'_> {
    fn drop(&mut self) {
        let buffer = std::mem::take(&mut self.buffer);
        self.pool.free.lock().unwrap_or_else(PoisonError::into_inner).push(buffer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_reused_and_never_shared() {
        let pool = Pool::default();
        let (mut a, b) = (pool.take(10), pool.take(5));
        a[0] = 1.0;
        let (a_at, b_at) = (a.as_ptr(), b.as_ptr());
        assert_ne!(a_at, b_at);
        drop((a, b));
        assert_eq!(pool.take(8).as_ptr(), a_at);
        assert_eq!(pool.take(3).as_ptr(), b_at);
        assert_eq!(pool.free.lock().unwrap().len(), 2);
    }
}
