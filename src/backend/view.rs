//! Views of device buffers: a buffer, where to start, how many elements. Ops take views, never whole buffers, so one
//! allocation can hold a whole model (`params`), and a workspace buffer larger than the current batch needs no copy.

/// A one-dimensional buffer of a backend. How its elements are stored is the backend's business.
pub trait Buffer {
    /// Number of elements.
    fn len(&self) -> usize;

    /// True for a buffer without elements.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<T> Buffer for Vec<T> {
    fn len(&self) -> usize {
        Vec::len(self)
    }
}

/// Read access to `len` elements of a buffer from `start` on.
#[derive(Debug)]
pub struct View<'a, T> {
    pub buffer: &'a T,
    pub start: usize,
    pub len: usize,
}

impl<T> Clone for View<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for View<'_, T> {}

/// Write access to `len` elements of a buffer from `start` on.
#[derive(Debug)]
pub struct ViewMut<'a, T> {
    pub buffer: &'a mut T,
    pub start: usize,
    pub len: usize,
}

impl<'a, T: Buffer> View<'a, T> {
    /// Elements `start..start + len`. A range outside the buffer is a defect of the program, not of its input.
    pub fn new(buffer: &'a T, start: usize, len: usize) -> Self {
        assert!(start + len <= buffer.len(), "view {start}+{len} outside a buffer of {}", buffer.len());
        Self { buffer, start, len }
    }

    /// The first `len` elements.
    pub fn first(buffer: &'a T, len: usize) -> Self {
        Self::new(buffer, 0, len)
    }

    /// Elements `start..start + len` of this view.
    pub fn part(self, start: usize, len: usize) -> Self {
        assert!(start + len <= self.len, "part {start}+{len} outside a view of {}", self.len);
        Self { start: self.start + start, len, ..self }
    }
}

impl<'a, T: Buffer> ViewMut<'a, T> {
    /// Elements `start..start + len`.
    pub fn new(buffer: &'a mut T, start: usize, len: usize) -> Self {
        assert!(start + len <= buffer.len(), "view {start}+{len} outside a buffer of {}", buffer.len());
        Self { buffer, start, len }
    }

    /// The first `len` elements.
    pub fn first(buffer: &'a mut T, len: usize) -> Self {
        Self::new(buffer, 0, len)
    }

    /// The same elements for one of several calls.
    pub fn reborrow(&mut self) -> ViewMut<'_, T> {
        ViewMut { buffer: &mut *self.buffer, start: self.start, len: self.len }
    }

    /// Elements `start..start + len` of this view.
    pub fn part(self, start: usize, len: usize) -> Self {
        assert!(start + len <= self.len, "part {start}+{len} outside a view of {}", self.len);
        Self { start: self.start + start, len, ..self }
    }

    /// The same elements for reading.
    pub fn as_view(&self) -> View<'_, T> {
        View { buffer: self.buffer, start: self.start, len: self.len }
    }
}

impl<'a, T> View<'a, Vec<T>> {
    /// The elements, for backends whose buffers are vectors.
    pub fn slice(&self) -> &'a [T] {
        &self.buffer[self.start..self.start + self.len]
    }
}

impl<'a, T> ViewMut<'a, Vec<T>> {
    /// The elements, for backends whose buffers are vectors.
    pub fn into_slice(self) -> &'a mut [T] {
        &mut self.buffer[self.start..self.start + self.len]
    }
}

/// What an op does with the former contents of an output: gradients of the first micro-batch overwrite, those of
/// the others are added.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Write {
    Overwrite,
    Add,
}
