//! Collective operations over all ranks. Every rank calls the same ones in the same order.
//!
//! Sums are formed in the order of the ranks, in f64, and rounded once to the type of the buffer. Their bits
//! therefore depend on the number of ranks and on nothing else: neither on timing nor on the library of the
//! transport.
//!
//! ```text
//! reduce_scatter   rank r gets slice r of the sum
//! all_reduce       reduce_scatter, then all_gather of the slices
//! ```
//!
//! Buffers of different lengths and failures of the transport are errors.

use std::ops::Range;

use crate::{Error, Result};

/// Type of the values that ranks exchange. It is at least as precise as the buffers that they come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wire {
    F32,
    F64,
}

impl Wire {
    /// Little-endian bytes of numbers, rounded to this type.
    pub fn encode(self, values: &[f64]) -> Vec<u8> {
        match self {
            Self::F32 => values.iter().flat_map(|&x| (x as f32).to_le_bytes()).collect(),
            Self::F64 => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
        }
    }

    /// Decodes the bytes of [`Wire::encode`].
    pub fn decode(self, bytes: &[u8]) -> Vec<f64> {
        match self {
            Self::F32 => bytes.as_chunks::<4>().0.iter().map(|b| f64::from(f32::from_le_bytes(*b))).collect(),
            Self::F64 => bytes.as_chunks::<8>().0.iter().map(|b| f64::from_le_bytes(*b)).collect(),
        }
    }
}

/// Slice of `len` elements that belongs to a rank. The slices of all ranks cover the elements in order;
/// their lengths differ by at most 1.
pub(crate) fn slice_of(len: usize, rank: usize, size: usize) -> Range<usize> {
    let at = |rank: usize| (len as u128 * rank as u128 / size as u128) as usize;
    at(rank)..at(rank + 1)
}

/// Shards start at multiples of this number of elements, so that loads of several elements stay aligned.
const BLOCK: usize = 64;

/// Shard of `len` parameters that belongs to a rank. The shards of all ranks cover them in order. All have
/// the same length, as NCCL's collectives require, except the last one, which also has the remainder of fewer
/// than `(size + 1) * BLOCK` elements.
pub(crate) fn shard_of(len: usize, rank: usize, size: usize) -> Range<usize> {
    let block = if len >= BLOCK * size { BLOCK } else { 1 };
    let each = len / block / size * block;
    rank * each..if rank + 1 == size { len } else { (rank + 1) * each }
}

/// Operations over all ranks.
pub(crate) trait Collective: Send + Sync {
    /// Index of this rank.
    fn rank(&self) -> usize;

    /// Number of ranks.
    fn size(&self) -> usize;

    /// Whether this is a single-process run without a transport, which sends and sums nothing. One rank that
    /// has joined NCCL has a transport.
    fn is_alone(&self) -> bool {
        false
    }

    /// Sends `parts[r]` to rank r; returns what every rank sent to this one, by rank.
    fn exchange(&self, parts: &[Vec<u8>]) -> Result<Vec<Vec<u8>>>;

    /// The bytes of every rank, by rank; their lengths may differ.
    fn all_gather(&self, bytes: &[u8]) -> Result<Vec<Vec<u8>>>;

    /// The bytes of rank 0; those of the other ranks are not used.
    fn broadcast(&self, bytes: Vec<u8>) -> Result<Vec<u8>>;

    /// Waits until every rank has called it.
    fn barrier(&self) -> Result<()>;

    /// Sends `parts[r]` to rank r, and returns the sum over the ranks, in their order, of the `len` numbers
    /// that each sends to this rank.
    fn sum_of_parts(&self, parts: &[Vec<u8>], len: usize, wire: Wire) -> Result<Vec<f64>> {
        let mut sum = vec![0.0; len];
        for bytes in self.exchange(parts)? {
            let part = wire.decode(&bytes);
            if part.len() != len {
                return Err(lengths_differ(len, part.len()));
            }
            sum.iter_mut().zip(part).for_each(|(sum, value)| *sum += value);
        }
        Ok(sum)
    }

    /// Returns the part of this rank ([`slice_of`]) of the sum of `values` over the ranks, in the order of
    /// the ranks.
    fn reduce_scatter(&self, values: &[f64], wire: Wire) -> Result<Vec<f64>> {
        let slice = |rank: usize| slice_of(values.len(), rank, self.size());
        let parts: Vec<Vec<u8>> = (0..self.size()).map(|to| wire.encode(&values[slice(to)])).collect();
        self.sum_of_parts(&parts, slice(self.rank()).len(), wire)
    }

    /// Replaces `values` by their sum over the ranks, in the order of the ranks.
    fn all_reduce(&self, values: &mut [f64], wire: Wire) -> Result<()> {
        let sum = self.reduce_scatter(values, wire)?;
        let gathered = self.all_gather(&wire.encode(&sum))?;
        for (rank, bytes) in gathered.iter().enumerate() {
            let (slice, part) = (slice_of(values.len(), rank, self.size()), wire.decode(bytes));
            if part.len() != slice.len() {
                return Err(lengths_differ(slice.len(), part.len()));
            }
            values[slice].copy_from_slice(&part);
        }
        Ok(())
    }
}

fn lengths_differ(own: usize, other: usize) -> Error {
    Error::Runtime(format!("ranks sum buffers of different lengths ({own} and {other} elements)"))
}

/// The rank of a single-process run.
pub(crate) struct Alone;

impl Collective for Alone {
    fn rank(&self) -> usize {
        0
    }

    fn size(&self) -> usize {
        1
    }

    fn is_alone(&self) -> bool {
        true
    }

    fn exchange(&self, parts: &[Vec<u8>]) -> Result<Vec<Vec<u8>>> {
        Ok(parts.to_vec())
    }

    fn all_gather(&self, bytes: &[u8]) -> Result<Vec<Vec<u8>>> {
        Ok(vec![bytes.to_vec()])
    }

    fn broadcast(&self, bytes: Vec<u8>) -> Result<Vec<u8>> {
        Ok(bytes)
    }

    fn barrier(&self) -> Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_and_shards_cover_every_element_once() {
        for (len, size) in [(0, 3), (2, 3), (7, 2), (10, 4), (16, 4), (1000, 3)] {
            for of in [slice_of, shard_of] {
                let all: Vec<usize> = (0..size).flat_map(|rank| of(len, rank, size)).collect();
                assert_eq!(all, (0..len).collect::<Vec<_>>());
            }
        }
        assert_eq!([0, 1, 2].map(|rank| slice_of(7, rank, 3)), [0..2, 2..4, 4..7]);
        assert_eq!([0, 1, 2].map(|rank| shard_of(500, rank, 3)), [0..128, 128..256, 256..500]);
        assert_eq!([0, 1].map(|rank| shard_of(7, rank, 2)), [0..3, 3..7]);
    }

    #[test]
    fn one_rank_keeps_every_bit() {
        let values = [0.1_f32, -3.5, 1e-30].map(f64::from);
        let mut sum = values;
        Alone.all_reduce(&mut sum, Wire::F32).unwrap();
        assert_eq!(sum, values);
        assert_eq!(Alone.reduce_scatter(&[1.0 / 3.0], Wire::F64).unwrap(), [1.0 / 3.0]);
        assert_eq!(Alone.all_gather(b"ab").unwrap(), [b"ab"]);
        assert_eq!(Alone.broadcast(vec![7]).unwrap(), [7]);
        Alone.barrier().unwrap();
    }

    #[test]
    fn numbers_pass_unchanged_and_other_lengths_are_refused() {
        let values = [f64::from(0.1_f32), f64::INFINITY, -0.0];
        assert_eq!(Wire::F32.decode(&Wire::F32.encode(&values)), values);
        assert_eq!(Wire::F64.decode(&Wire::F64.encode(&[1.0 / 3.0])), [1.0 / 3.0]);
        assert!(Wire::F32.decode(&Wire::F32.encode(&[f64::NAN]))[0].is_nan());
        assert!(lengths_differ(3, 4).to_string().contains("3 and 4 elements"));
    }
}
