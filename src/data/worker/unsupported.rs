//! The pool on systems without worker processes. No pool is ever created, because [`super::enabled`] returns
//! `None` on these systems.

use super::frame::Frame;
use super::{Failure, Program};

/// Type without values.
#[derive(Debug)]
pub(crate) enum Pool {}

impl Pool {
    pub(crate) fn new(_: &Program, _: Vec<Vec<u8>>) -> Result<(Self, Frame), Failure> {
        Err(Failure::Start("worker processes need Linux".into()))
    }

    pub(crate) fn ask(&self, _: &[&[u8]], _: usize) -> Result<Frame, Failure> {
        match *self {}
    }

    pub(crate) fn deaths(&self) -> (usize, bool) {
        match *self {}
    }

    pub(crate) fn forget_deaths(&self, _: usize) {
        match *self {}
    }
}
