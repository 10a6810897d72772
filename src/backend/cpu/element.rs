//! Element types of weights and activations: f32, and bf16 with f32 arithmetic.
//!
//! An op computes on f32 values, which [`Cpu::load`], [`Cpu::update`] and [`Cpu::store`] return. For f32 the
//! values are the buffer itself. For bf16 they are a copy in the workspace. The copy of an output is rounded
//! to the buffer when its guard is dropped. Values are therefore rounded to bf16 only where an activation is
//! stored.

use std::fmt::Debug;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};

use bytemuck::Pod;
use half::bf16;
use rayon::prelude::*;

use super::Cpu;
use super::matmul::matmul;
use super::product16::{product16, product16_rounded};
use super::rows::add_rows;
use super::scratch::Scratch;
use super::simd::vectorised;
use super::tile::{Mat, Tile};
use super::units::Units;
use crate::backend::Write;
use crate::backend::contract::Precision;
use crate::backend::host::nearest_bf16;

/// Element type of weights and activations: f32 or bf16.
pub trait Element: Pod + Debug + Send + Sync + 'static {
    /// Precision of a backend with this element type.
    const PRECISION: Precision;
    /// Version of the bits of results, see [`crate::backend::Backend::NUMERICS`].
    const NUMERICS: u32;
    /// Converts from f64; rounds to nearest, ties to even.
    fn of(x: f64) -> Self;
    /// Converts to f64, exactly.
    fn value(self) -> f64;
    /// The elements as f32, if they are f32.
    fn exact(from: &[Self]) -> Option<&[f32]>;
    /// The elements as f32, if they are f32.
    fn exact_mut(from: &mut [Self]) -> Option<&mut [f32]>;
    /// The tile as f32, if it is f32.
    fn exact_tile<'a>(tile: &'a mut Tile<'_, Self>) -> Option<Tile<'a, f32>>;
    /// The elements as bf16, if they are bf16.
    fn narrow(from: &[Self]) -> Option<&[bf16]>;
    /// The elements as bf16, if they are bf16.
    fn narrow_mut(from: &mut [Self]) -> Option<&mut [bf16]>;
    /// The tile as bf16, if it is bf16.
    fn narrow_tile<'a>(tile: &'a mut Tile<'_, Self>) -> Option<Tile<'a, bf16>>;
    /// Converts to f32, exactly.
    fn widen(to: &mut [f32], from: &[Self]);
    /// `to += from`.
    fn add(to: &mut [f32], from: &[Self]);
    /// Rounds to nearest, ties to even.
    fn round(to: &mut [Self], from: &[f32]);
    /// Rounds values to the precision of the stored elements.
    fn settle(values: &mut [f32]);
    /// `c (+)= a b` on one thread, summed in f32.
    fn product(units: Units, c: &mut Tile<'_, f32>, a: Mat<'_, Self>, b: Mat<'_, Self>, write: Write);
}

impl Element for f32 {
    const PRECISION: Precision = Precision::F32;
    const NUMERICS: u32 = 1;

    fn of(x: f64) -> Self {
        x as f32
    }
    fn value(self) -> f64 {
        f64::from(self)
    }
    fn exact(from: &[Self]) -> Option<&[f32]> {
        Some(from)
    }
    fn exact_mut(from: &mut [Self]) -> Option<&mut [f32]> {
        Some(from)
    }
    fn exact_tile<'a>(tile: &'a mut Tile<'_, Self>) -> Option<Tile<'a, f32>> {
        Some(tile.reborrow())
    }
    fn narrow(_: &[Self]) -> Option<&[bf16]> {
        None
    }
    fn narrow_mut(_: &mut [Self]) -> Option<&mut [bf16]> {
        None
    }
    fn narrow_tile<'a>(_: &'a mut Tile<'_, Self>) -> Option<Tile<'a, bf16>> {
        None
    }
    fn widen(to: &mut [f32], from: &[Self]) {
        to.copy_from_slice(from);
    }
    fn add(to: &mut [f32], from: &[Self]) {
        add_rows(to, from);
    }
    fn round(to: &mut [Self], from: &[f32]) {
        to.copy_from_slice(from);
    }
    fn settle(_: &mut [f32]) {}
    fn product(_: Units, c: &mut Tile<'_, f32>, a: Mat<'_, Self>, b: Mat<'_, Self>, write: Write) {
        matmul(c, a, b, write);
    }
}

impl Element for bf16 {
    const PRECISION: Precision = Precision::Bf16;
    const NUMERICS: u32 = 1;

    fn of(x: f64) -> Self {
        nearest_bf16(x)
    }
    fn value(self) -> f64 {
        self.to_f64()
    }
    fn exact(_: &[Self]) -> Option<&[f32]> {
        None
    }
    fn exact_mut(_: &mut [Self]) -> Option<&mut [f32]> {
        None
    }
    fn exact_tile<'a>(_: &'a mut Tile<'_, Self>) -> Option<Tile<'a, f32>> {
        None
    }
    fn narrow(from: &[Self]) -> Option<&[bf16]> {
        Some(from)
    }
    fn narrow_mut(from: &mut [Self]) -> Option<&mut [bf16]> {
        Some(from)
    }
    fn narrow_tile<'a>(tile: &'a mut Tile<'_, Self>) -> Option<Tile<'a, bf16>> {
        Some(tile.reborrow())
    }
    fn widen(to: &mut [f32], from: &[Self]) {
        widen(to, from);
    }
    fn add(to: &mut [f32], from: &[Self]) {
        add(to, from);
    }
    fn round(to: &mut [Self], from: &[f32]) {
        round(to, from);
    }
    fn settle(values: &mut [f32]) {
        settle(values);
    }
    fn product(units: Units, c: &mut Tile<'_, f32>, a: Mat<'_, Self>, b: Mat<'_, Self>, write: Write) {
        product16(units, c, a, b, write);
    }
}

vectorised! {
    fn widen(to: &mut [f32], from: &[bf16]) {
        for (to, x) in to.iter_mut().zip(from) {
            *to = f32::from_bits(u32::from(x.to_bits()) << 16);
        }
    }
}

vectorised! {
    fn add(to: &mut [f32], from: &[bf16]) {
        for (to, x) in to.iter_mut().zip(from) {
            *to += f32::from_bits(u32::from(x.to_bits()) << 16);
        }
    }
}

/// Returns the bits of the nearest bf16, ties to even. A NaN becomes a quiet NaN.
#[inline(always)]
pub(super) fn upper(x: f32) -> u32 {
    let bits = x.to_bits();
    let nearest = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    if bits & 0x7fff_ffff > 0x7f80_0000 { bits >> 16 | 0x40 } else { nearest }
}

fn round(to: &mut [bf16], from: &[f32]) {
    #[cfg(target_arch = "x86_64")]
    if super::units::has_dot16() {
        // SAFETY: `has_dot16` has detected the CPU features.
        return unsafe { super::avx512_round::round(to, from) };
    }
    round_loop(to, from);
}

vectorised! {
    fn round_loop(to: &mut [bf16], from: &[f32]) {
        for (to, x) in to.iter_mut().zip(from) {
            *to = bf16::from_bits(upper(*x) as u16);
        }
    }
}

vectorised! {
    fn settle(values: &mut [f32]) {
        for x in values {
            *x = f32::from_bits(upper(*x) << 16);
        }
    }
}

/// f32 values of a slice.
pub(super) enum Values<'a> {
    Here(&'a [f32]),
    Copy(Scratch<'a>),
}

impl Deref for Values<'_> {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        match self {
            Values::Here(values) => values,
            Values::Copy(values) => values,
        }
    }
}

/// f32 values that are rounded to their slice when this guard is dropped.
pub(super) enum Stored<'a, A: Element> {
    Here(&'a mut [f32]),
    Rounded(Scratch<'a>, &'a mut [A]),
}

impl<A: Element> Deref for Stored<'_, A> {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        match self {
            Stored::Here(values) => values,
            Stored::Rounded(values, _) => values,
        }
    }
}

impl<A: Element> DerefMut for Stored<'_, A> {
    fn deref_mut(&mut self) -> &mut [f32] {
        match self {
            Stored::Here(values) => values,
            Stored::Rounded(values, _) => values,
        }
    }
}

impl<A: Element> Drop for Stored<'_, A> {
    fn drop(&mut self) {
        if let Stored::Rounded(values, to) = self {
            A::round(to, values);
        }
    }
}

/// f32 values of a tile, which are rounded to it when this guard is dropped.
pub(super) struct StoredTile<'a, 'b, A: Element> {
    to: Tile<'b, A>,
    /// (rows, cols); `None` for f32
    values: Option<Scratch<'a>>,
}

impl<A: Element> StoredTile<'_, '_, A> {
    /// Returns the values as a tile.
    pub fn tile(&mut self) -> Tile<'_> {
        let (rows, cols) = (self.to.rows(), self.to.cols());
        match (A::exact_tile(&mut self.to), &mut self.values) {
            (Some(tile), _) => tile,
            (None, values) => Tile::new(values.as_deref_mut().unwrap_or_default(), rows, cols, cols),
        }
    }
}

impl<A: Element> Drop for StoredTile<'_, '_, A> {
    fn drop(&mut self) {
        let cols = self.to.cols();
        if let Some(values) = self.values.as_deref().filter(|values| !values.is_empty()) {
            values.chunks_exact(cols).enumerate().for_each(|(r, values)| A::round(self.to.row(r), values));
        }
    }
}

impl<A: Element> Cpu<A> {
    /// `c (+)= a b` on one thread, summed in f32.
    pub(super) fn product(&self, c: &mut Tile<'_>, a: Mat<'_, A>, b: Mat<'_, A>, write: Write) {
        A::product(self.units, c, a, b, write);
    }

    /// `c = a b` on one thread, summed in f32 and rounded once. Returns false without a result if an operand
    /// or `c` is not bf16. Also returns false if the units or the depth need a tile of f32 sums.
    pub(super) fn product_rounded<C: Element>(&self, c: &mut Tile<'_, C>, a: Mat<'_, A>, b: Mat<'_, A>) -> bool {
        let (Some(left), Some(right)) = (A::narrow(a.data), A::narrow(b.data)) else { return false };
        let Some(mut c) = C::narrow_tile(c) else { return false };
        product16_rounded(self.units, &mut c, a.with(left), b.with(right))
    }

    /// Returns the values of a slice as f32.
    pub(super) fn load<'a, T: Element>(&'a self, from: &'a [T]) -> Values<'a> {
        T::exact(from).map_or_else(
            || {
                let mut values = self.scratch.take(from.len());
                T::widen(&mut values, from);
                Values::Copy(values)
            },
            Values::Here,
        )
    }

    /// Returns the values of a long slice as f32, converted on all threads.
    pub(super) fn load_all<'a, T: Element>(&'a self, from: &'a [T]) -> Values<'a> {
        T::exact(from).map_or_else(
            || {
                let mut values = self.scratch.take(from.len());
                let chunks = values.par_chunks_mut(CHUNK).zip(from.par_chunks(CHUNK));
                chunks.for_each(|(values, from)| T::widen(values, from));
                Values::Copy(values)
            },
            Values::Here,
        )
    }

    /// Returns the elements as operands of bf16 dot products, if they are bf16 and this backend has such
    /// products.
    pub(super) fn dots<'a>(&self, from: &'a [A]) -> Option<&'a [bf16]> {
        A::narrow(from).filter(|_| self.units.multiply_bf16())
    }

    /// Returns f32 values that replace the elements of a slice. The caller must set them, because they are
    /// unspecified at first.
    pub(super) fn store<'a, T: Element>(&'a self, to: &'a mut [T]) -> Stored<'a, T> {
        if T::PRECISION != Precision::F32 {
            return Stored::Rounded(self.scratch.take(to.len()), to);
        }
        Stored::Here(T::exact_mut(to).unwrap_or_default())
    }

    /// Returns the values of a slice as f32. Changes are stored to the slice.
    pub(super) fn update<'a, T: Element>(&'a self, to: &'a mut [T]) -> Stored<'a, T> {
        let mut values = self.store(to);
        if let Stored::Rounded(values, to) = &mut values {
            T::widen(values, to);
        }
        values
    }

    /// Returns f32 values that are stored to a tile. With `Write::Add` they start as the elements of the
    /// tile, else they are unspecified at first.
    pub(super) fn store_tile<'b, T: Element>(&self, mut to: Tile<'b, T>, write: Write) -> StoredTile<'_, 'b, T> {
        let (rows, cols) = (to.rows(), to.cols());
        let mut values = (T::PRECISION != Precision::F32).then(|| self.scratch.take(rows * cols));
        if let (Some(values), Write::Add, true) = (&mut values, write, cols > 0) {
            values.chunks_exact_mut(cols).enumerate().for_each(|(r, values)| T::widen(values, to.row(r)));
        }
        StoredTile { to, values }
    }

    /// Workspace of `len` elements with unspecified contents.
    pub(super) fn room<T: Element>(&self, len: usize) -> Room<'_, T> {
        let words = (len * size_of::<T>()).div_ceil(size_of::<f32>());
        Room { words: self.scratch.take(words), len, element: PhantomData }
    }
}

/// Number of elements that a task converts.
const CHUNK: usize = 1 << 16;

/// Workspace for elements.
pub(super) struct Room<'a, T> {
    words: Scratch<'a>,
    len: usize,
    element: PhantomData<T>,
}

impl<T: Element> Deref for Room<'_, T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        &bytemuck::cast_slice(&self.words)[..self.len]
    }
}

impl<T: Element> DerefMut for Room<'_, T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut bytemuck::cast_slice_mut(&mut self.words)[..self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_equals_that_of_the_half_crate_and_keeps_nan() {
        let patterns =
            (0..=u16::MAX).flat_map(|high| [0, 1, 0x7fff, 0x8000, 0x8001].map(|low| u32::from(high) << 16 | low));
        let values: Vec<f32> = patterns.map(f32::from_bits).collect();
        let mut rounded = vec![bf16::from_f32(0.0); values.len()];
        // Slices of many lengths, so that every pattern is rounded in a whole vector and in a partial one.
        for length in (1..70).chain([values.len()]) {
            rounded.fill(bf16::ONE);
            for (to, from) in rounded.chunks_mut(length).zip(values.chunks(length)).skip(usize::from(length < 70)) {
                round(to, from);
            }
            let first = if length < 70 { length } else { 0 };
            for (i, x) in values.iter().enumerate().skip(first) {
                assert_eq!(rounded[i].to_bits(), bf16::from_f32(*x).to_bits(), "{x:e}, slices of {length}");
            }
            assert!(rounded[..first].iter().all(|x| *x == bf16::ONE), "slices of {length}");
        }
        let (mut settled, mut wide) = (values.clone(), vec![0.0; values.len()]);
        settle(&mut settled);
        widen(&mut wide, &rounded);
        for (i, x) in values.iter().enumerate() {
            assert_eq!(rounded[i].to_bits(), bf16::from_f32(*x).to_bits(), "{x:e}");
            assert_eq!(settled[i].to_bits(), wide[i].to_bits(), "{x:e}");
        }
    }
}
