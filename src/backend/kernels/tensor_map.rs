//! Tensor maps: the descriptors that TMA copies need, from which a kernel's `TensorMap` parameter is built. A
//! [`TensorMapSpec`] holds the arguments of the driver's `cuTensorMapEncodeTiled` (interleave none, element
//! strides 1, out-of-range elements zero) and checks the driver's rules for them. The devices encode tensor
//! maps differently.

use crate::{Error, Result};

/// Encoded tensor map, as kernels receive it.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug)]
pub struct TensorMap(pub [u64; 16]);

/// Element type of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapElement {
    /// f32.
    F32,
    /// bf16.
    Bf16,
}

impl MapElement {
    /// Size in bytes.
    pub fn bytes(self) -> u64 {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
        }
    }
}

/// Layout of a box in shared memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapSwizzle {
    /// Rows are contiguous.
    None,
    /// Rows of 128 bytes; 16-byte chunk c of row r is at chunk c xor (r mod 8).
    Bytes128,
}

/// A tensor and the boxes that TMA copies. Dimensions are listed innermost first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorMapSpec {
    /// Device address of the first element.
    pub address: u64,
    /// Element type.
    pub element: MapElement,
    /// Number of elements in each dimension; loads outside of it return zeros.
    pub dims: Vec<u64>,
    /// Strides in bytes of every dimension except the innermost.
    pub strides: Vec<u64>,
    /// Number of elements of a box in each dimension.
    pub boxes: Vec<u32>,
    /// Order of 16-byte pieces in shared memory.
    pub swizzle: MapSwizzle,
}

impl TensorMapSpec {
    /// Checks the specification. [`Error::Runtime`] if TMA does not support it.
    pub fn check(&self) -> Result<()> {
        self.defect().map_or(Ok(()), |why| Err(Error::Runtime(format!("tensor map: {why}"))))
    }

    fn defect(&self) -> Option<String> {
        let rank = self.dims.len();
        if !(2..=3).contains(&rank) {
            return Some(format!("{rank} dimensions; the kernels use boxes of 2 or 3"));
        }
        if self.boxes.len() != rank || self.strides.len() != rank - 1 {
            return Some(format!(
                "{rank} dimensions with {} box sizes and {} strides; {rank} sizes and one stride less are needed",
                self.boxes.len(),
                self.strides.len()
            ));
        }
        if !self.address.is_multiple_of(16) || self.address == 0 {
            return Some(format!("address {:#x}; it must be a multiple of 16 bytes", self.address));
        }
        if let Some(dim) = self.dims.iter().find(|&&dim| dim == 0 || dim > 1 << 32) {
            return Some(format!("a dimension of {dim} elements; 1 to 2^32 are allowed"));
        }
        if let Some(stride) = self.strides.iter().find(|s| !s.is_multiple_of(16) || **s == 0 || **s >= 1 << 40) {
            return Some(format!("a stride of {stride} bytes; it must be a multiple of 16 below 2^40"));
        }
        if let Some(size) = self.boxes.iter().find(|&&size| size == 0 || size > 256) {
            return Some(format!("a box of {size} elements in one dimension; 1 to 256 are allowed"));
        }
        let row = u64::from(self.boxes[0]) * self.element.bytes();
        if !row.is_multiple_of(16) {
            return Some(format!("rows of {row} bytes in a box; they must be multiples of 16 bytes"));
        }
        // The hardware pads narrower rows to the width of the swizzle; no kernel here needs that.
        if self.swizzle == MapSwizzle::Bytes128 && row != 128 {
            return Some(format!("rows of {row} bytes in a box; the 128-byte swizzle needs 128"));
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> TensorMapSpec {
        TensorMapSpec {
            address: 4096,
            element: MapElement::Bf16,
            dims: vec![100, 30],
            strides: vec![208],
            boxes: vec![64, 256],
            swizzle: MapSwizzle::Bytes128,
        }
    }

    #[test]
    fn a_specification_that_the_driver_refuses_is_an_error_with_the_reason() {
        spec().check().unwrap();
        type Spoil = fn(&mut TensorMapSpec);
        let cases: [(Spoil, &str); 12] = [
            (|s| s.address = 4104, "address 0x1008"),
            (|s| s.address = 0, "address 0x0"),
            (|s| s.strides = vec![200], "a stride of 200 bytes"),
            (|s| s.strides = vec![1 << 40], "a stride of 1099511627776 bytes"),
            (|s| s.strides = vec![208, 208], "2 box sizes and 2 strides"),
            (|s| s.boxes = vec![64], "1 box sizes"),
            (|s| s.dims = vec![100], "1 dimensions"),
            (|s| s.dims = vec![100, 0], "a dimension of 0 elements"),
            (|s| s.boxes = vec![64, 257], "a box of 257 elements"),
            (|s| s.boxes = vec![72, 8], "rows of 144 bytes in a box; the 128-byte swizzle needs 128"),
            (|s| s.boxes = vec![32, 8], "rows of 64 bytes in a box; the 128-byte swizzle needs 128"),
            (|s| (s.boxes, s.swizzle) = (vec![4, 8], MapSwizzle::None), "rows of 8 bytes"),
        ];
        for (spoil, why) in cases {
            let mut spoiled = spec();
            spoil(&mut spoiled);
            let error = spoiled.check().unwrap_err().to_string();
            assert!(error.contains(why), "{error:?} does not say {why:?}");
        }
    }
}
