//! Views of arrays as pointers that kernels receive.

use super::Array;
use super::device::{ConstPtr, Device, MutPtr};
use crate::backend::{View, ViewMut};

/// Pointer to a view for reading.
pub(super) fn read<D: Device, T>(view: View<'_, Array<D, T>>) -> ConstPtr<T> {
    ConstPtr::new(D::address(&view.buffer.memory), view.start)
}

/// Device address of a view, for libraries that benchmarks compare with the kernels.
pub fn address<D: Device, T>(view: View<'_, Array<D, T>>) -> u64 {
    read(view).address()
}

/// Pointer to a view for reading; null if it is absent.
pub(super) fn read_option<D: Device, T>(view: Option<View<'_, Array<D, T>>>) -> ConstPtr<T> {
    view.map_or(ConstPtr::NONE, read)
}

/// Pointer to a view for writing.
pub(super) fn write<D: Device, T>(view: &mut ViewMut<'_, Array<D, T>>) -> MutPtr<T> {
    MutPtr::new(D::address(&view.buffer.memory), view.start)
}

/// Pointer to a view for writing; null if it is absent.
pub(super) fn write_option<D: Device, T>(view: &mut Option<ViewMut<'_, Array<D, T>>>) -> MutPtr<T> {
    view.as_mut().map_or(MutPtr::NONE, write)
}
