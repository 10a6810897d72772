//! Views of device buffers: a buffer, a start and a number of elements. Ops receive views, never whole
//! buffers. One allocation can therefore hold a whole model (`params`), and a workspace buffer larger than
//! the current batch needs no copy.

/// One-dimensional buffer of a backend, which decides how its elements are stored.
pub trait Buffer {
    /// Number of elements.
    fn len(&self) -> usize;

    /// Whether the buffer has no elements.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<T> Buffer for Vec<T> {
    fn len(&self) -> usize {
        Vec::len(self)
    }
}

/// Read access to the elements `start..start + len` of a buffer.
#[derive(Debug)]
pub struct View<'a, T> {
    /// The buffer.
    pub buffer: &'a T,
    /// First element.
    pub start: usize,
    /// Number of elements.
    pub len: usize,
}

impl<T> Clone for View<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for View<'_, T> {}

/// Write access to the elements `start..start + len` of a buffer.
#[derive(Debug)]
pub struct ViewMut<'a, T> {
    /// The buffer.
    pub buffer: &'a mut T,
    /// First element.
    pub start: usize,
    /// Number of elements.
    pub len: usize,
}

impl<'a, T: Buffer> View<'a, T> {
    /// View of the elements `start..start + len`. Panics if the range exceeds the buffer, which is
    /// a defect of the program and not of its input.
    pub fn new(buffer: &'a T, start: usize, len: usize) -> Self {
        assert!(start + len <= buffer.len(), "view of {len} elements at {start} exceeds a buffer of {}", buffer.len());
        Self { buffer, start, len }
    }

    /// View of the first `len` elements.
    pub fn first(buffer: &'a T, len: usize) -> Self {
        Self::new(buffer, 0, len)
    }

    /// View of the elements `start..start + len` of this view. Panics if the range exceeds the
    /// view.
    pub fn part(self, start: usize, len: usize) -> Self {
        assert!(start + len <= self.len, "part of {len} elements at {start} exceeds a view of {}", self.len);
        Self { start: self.start + start, len, ..self }
    }
}

impl<'a, T: Buffer> ViewMut<'a, T> {
    /// View of the elements `start..start + len`. Panics if the range exceeds the buffer.
    pub fn new(buffer: &'a mut T, start: usize, len: usize) -> Self {
        assert!(start + len <= buffer.len(), "view of {len} elements at {start} exceeds a buffer of {}", buffer.len());
        Self { buffer, start, len }
    }

    /// View of the first `len` elements.
    pub fn first(buffer: &'a mut T, len: usize) -> Self {
        Self::new(buffer, 0, len)
    }

    /// View of the same elements with a shorter lifetime, for one of several op calls.
    pub fn reborrow(&mut self) -> ViewMut<'_, T> {
        ViewMut { buffer: &mut *self.buffer, start: self.start, len: self.len }
    }

    /// View of the elements `start..start + len` of this view. Panics if the range exceeds the
    /// view.
    pub fn part(self, start: usize, len: usize) -> Self {
        assert!(start + len <= self.len, "part of {len} elements at {start} exceeds a view of {}", self.len);
        Self { start: self.start + start, len, ..self }
    }

    /// Read-only view of the same elements.
    pub fn as_view(&self) -> View<'_, T> {
        View { buffer: self.buffer, start: self.start, len: self.len }
    }
}

impl<'a, T> View<'a, Vec<T>> {
    /// Slice of the elements, for backends that store buffers as vectors.
    pub fn slice(&self) -> &'a [T] {
        &self.buffer[self.start..self.start + self.len]
    }
}

impl<'a, T> ViewMut<'a, Vec<T>> {
    /// Mutable slice of the elements, for backends that store buffers as vectors.
    pub(crate) fn into_slice(self) -> &'a mut [T] {
        &mut self.buffer[self.start..self.start + self.len]
    }
}

/// Treatment of the previous contents of an output (gradient accumulation): the gradients of the
/// first micro-batch overwrite them, the gradients of later micro-batches are added to them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Write {
    /// Replaces the previous contents.
    Overwrite,
    /// Adds to the previous contents.
    Add,
}
