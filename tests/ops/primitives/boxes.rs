//! TMA copies of boxes: position of every element in shared memory, elements outside the tensor,
//! rounding of reductions.

use half::bf16;
use mapl::backend::kernels::device::{ConstPtr, Device, MapElement, MapSwizzle, MutPtr, TensorMap, TensorMapSpec};
use mapl::backend::kernels::launchers::{TestLoadBox, TestMulticast, TestStoreBox};

use super::harness::{download, unwritten, upload};

const SWIZZLES: [MapSwizzle; 2] = [MapSwizzle::None, MapSwizzle::Bytes128];

/// A tensor of small integers, and the shape of its boxes. Rows are padded to a multiple of 16 bytes and then
/// by 16 bytes.
struct Tensor<D: Device> {
    memory: D::Memory,
    map: TensorMap,
    /// Distance from one row to the next, in elements; `plane` is the distance between planes.
    pitch: usize,
    plane: usize,
    dims: Vec<usize>,
    boxes: Vec<usize>,
    swizzle: MapSwizzle,
    element: MapElement,
}

/// Value of the padding between rows. A copy must neither read it as an element nor write it.
const PADDING: f32 = -99.0;

impl<D: Device> Tensor<D> {
    fn new(device: &D, element: MapElement, dims: &[usize], boxes: &[usize], swizzle: MapSwizzle) -> Self {
        let sixteen = 16 / element.bytes() as usize;
        let pitch = dims[0].next_multiple_of(sixteen) + sixteen;
        let plane = pitch * (dims[1] + 1);
        let planes = dims.get(2).copied().unwrap_or(1);
        let mut values = vec![PADDING; plane * planes];
        for i in 0..dims.iter().product() {
            let (x, y, z) = (i % dims[0], i / dims[0] % dims[1], i / dims[0] / dims[1]);
            values[x + pitch * y + plane * z] = value(x, y, z);
        }
        let memory = match element {
            MapElement::F32 => upload(device, &values),
            MapElement::Bf16 => upload(device, &values.iter().map(|&x| bf16::from_f32(x)).collect::<Vec<_>>()),
        };
        let bytes = element.bytes();
        let spec = TensorMapSpec {
            address: D::address(&memory),
            element,
            dims: dims.iter().map(|&dim| dim as u64).collect(),
            strides: [pitch as u64 * bytes, plane as u64 * bytes][..dims.len() - 1].to_vec(),
            boxes: boxes.iter().map(|&size| size as u32).collect(),
            swizzle,
        };
        let map = device.tensor_map(&spec).unwrap();
        Self { memory, map, pitch, plane, dims: dims.to_vec(), boxes: boxes.to_vec(), swizzle, element }
    }

    fn box_bytes(&self) -> usize {
        self.boxes.iter().product::<usize>() * self.element.bytes() as usize
    }

    /// Returns the byte offset of element `i` of a box in shared memory. With a swizzle, the index
    /// of the 16-byte chunk (bits 4 to 6) is xor-ed with the index of the 128-byte row (bits 7 to
    /// 9).
    fn byte(&self, i: usize) -> usize {
        let byte = i * self.element.bytes() as usize;
        if self.swizzle == MapSwizzle::Bytes128 { byte ^ (byte / 128 % 8) << 4 } else { byte }
    }

    /// Returns the tensor coordinates of element `i` of the box at `at`, or `None` outside the
    /// tensor.
    fn place(&self, i: usize, at: [i32; 3]) -> Option<[usize; 3]> {
        let (mut place, mut rest) = ([0; 3], i);
        for d in 0..self.dims.len() {
            let x = at[d] + (rest % self.boxes[d]) as i32;
            rest /= self.boxes[d];
            place[d] = usize::try_from(x).ok().filter(|&x| x < self.dims[d])?;
        }
        Some(place)
    }

    /// Prints the next box, since a device fault ends the test before it can print more.
    fn announce(&self, what: &str, at: [i32; 3]) {
        println!("{what} {:?} at {at:?} of {:?}, {:?}, {:?}", self.boxes, self.dims, self.element, self.swizzle);
    }

    fn read(&self, device: &D) -> Vec<f32> {
        let len = self.plane * self.dims.get(2).copied().unwrap_or(1);
        match self.element {
            MapElement::F32 => download(device, &self.memory, len),
            MapElement::Bf16 => download::<D, bf16>(device, &self.memory, len).iter().map(|x| x.to_f32()).collect(),
        }
    }

    fn of_bytes(&self, bytes: &[u8], i: usize) -> f32 {
        let at = self.byte(i);
        match self.element {
            MapElement::F32 => f32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap()),
            MapElement::Bf16 => bf16::from_ne_bytes([bytes[at], bytes[at + 1]]).to_f32(),
        }
    }

    fn to_bytes(&self, value: impl Fn(usize) -> f32) -> Vec<u8> {
        let mut bytes = vec![0; self.box_bytes()];
        for i in 0..self.boxes.iter().product() {
            let at = self.byte(i);
            match self.element {
                MapElement::F32 => bytes[at..at + 4].copy_from_slice(&value(i).to_ne_bytes()),
                MapElement::Bf16 => bytes[at..at + 2].copy_from_slice(&bf16::from_f32(value(i)).to_ne_bytes()),
            }
        }
        bytes
    }
}

/// Returns a value that is exact in bf16 and differs from its neighbours in each dimension.
fn value(x: usize, y: usize, z: usize) -> f32 {
    ((x * 3 + y * 17 + z * 5) % 251 + 1) as f32
}

/// Tensors of both types with 2 and 3 dimensions; boxes inside, across each edge, before the start
/// and entirely outside. Rows of boxes start at multiples of 16 bytes, as the hardware requires.
fn cases<D: Device>(device: &D) -> Vec<(Tensor<D>, Vec<[i32; 3]>)> {
    let flat = [[0, 0, 0], [8, 3, 0], [48, 13, 0], [-8, -2, 0], [-16, 18, 0], [200, 0, 0], [0, 40, 0]];
    let deep = [[0, 0, 0], [8, 1, 1], [56, 4, 2], [-8, -1, -1], [0, 0, 3], [0, 6, 0]];
    let mut cases = Vec::new();
    for swizzle in SWIZZLES {
        for (element, wide) in [(MapElement::Bf16, 64), (MapElement::F32, 32)] {
            cases.push((Tensor::new(device, element, &[100, 20], &[wide, 10], swizzle), flat.to_vec()));
            cases.push((Tensor::new(device, element, &[70, 6, 3], &[wide, 3, 2], swizzle), deep.to_vec()));
        }
    }
    // A box row that is not a multiple of 128 bytes.
    cases.push((Tensor::new(device, MapElement::Bf16, &[100, 20], &[24, 7], MapSwizzle::None), flat.to_vec()));
    cases
}

/// Tensors for stores. Rows are multiples of 16 bytes, because the hardware writes all of the last
/// 16 bytes. Stores may not start before the tensor.
fn stored_cases<D: Device>(device: &D) -> Vec<(Tensor<D>, Vec<[i32; 3]>)> {
    let flat = [[0, 0, 0], [8, 3, 0], [48, 13, 0], [72, 18, 0], [200, 0, 0], [0, 40, 0]];
    let deep = [[0, 0, 0], [8, 1, 1], [56, 4, 2], [0, 0, 3], [0, 6, 0]];
    let mut cases = Vec::new();
    for swizzle in SWIZZLES {
        for (element, wide) in [(MapElement::Bf16, 64), (MapElement::F32, 32)] {
            cases.push((Tensor::new(device, element, &[104, 20], &[wide, 10], swizzle), flat.to_vec()));
            cases.push((Tensor::new(device, element, &[72, 6, 3], &[wide, 3, 2], swizzle), deep.to_vec()));
        }
    }
    // A box row that is not a multiple of 128 bytes.
    cases.push((Tensor::new(device, MapElement::Bf16, &[104, 20], &[24, 7], MapSwizzle::None), flat.to_vec()));
    cases
}

/// Tensors for reductions. Rows are multiples of 16 bytes, because the hardware adds to all of the
/// last 16 bytes.
fn added_cases<D: Device>(device: &D) -> Vec<(Tensor<D>, [i32; 3])> {
    let mut cases = Vec::new();
    for swizzle in SWIZZLES {
        for (element, wide) in [(MapElement::Bf16, 64), (MapElement::F32, 32)] {
            cases.push((Tensor::new(device, element, &[104, 20], &[wide, 10], swizzle), [8, 3, 0]));
            cases.push((Tensor::new(device, element, &[104, 20], &[wide, 10], swizzle), [80, 13, 0]));
            cases.push((Tensor::new(device, element, &[72, 6, 3], &[wide, 3, 2], swizzle), [16, 1, 1]));
        }
    }
    cases
}

/// A cp.async.bulk.tensor load writes a box in row-major order, with or without swizzle. Elements outside
/// the tensor are zero, and their bytes count towards the mbarrier's transaction count.
pub fn tma_loads_boxes<D: Device>(device: &D) {
    for (tensor, places) in cases(device) {
        for at in places {
            let bytes = tensor.box_bytes();
            let out = unwritten(device, bytes / 4);
            let [x, y, z] = at;
            tensor.announce("load", at);
            TestLoadBox {
                map: tensor.map,
                rank: tensor.dims.len() as i32,
                x,
                y,
                z,
                out: MutPtr::of::<D>(&out, 0),
                bytes: bytes as i32,
            }
            .launch(device, 1, bytes)
            .unwrap();
            let got = download::<D, u8>(device, &out, bytes);
            for i in 0..tensor.boxes.iter().product() {
                let expected = tensor.place(i, at).map_or(0.0, |[x, y, z]| value(x, y, z));
                assert_eq!(
                    tensor.of_bytes(&got, i),
                    expected,
                    "element {i} of the box at {at:?}, {:?}",
                    tensor.swizzle
                );
            }
        }
    }
}

fn store<D: Device>(device: &D, tensor: &Tensor<D>, at: [i32; 3], image: &[u8], add: bool) {
    let memory = upload(device, image);
    let [x, y, z] = at;
    tensor.announce(if add { "add" } else { "store" }, at);
    TestStoreBox {
        map: tensor.map,
        rank: tensor.dims.len() as i32,
        x,
        y,
        z,
        image: ConstPtr::of::<D>(&memory, 0),
        bytes: image.len() as i32,
        add: i32::from(add),
    }
    .launch(device, 1, image.len())
    .unwrap();
}

/// Compares a tensor with its expected content; padding must be unchanged.
fn expect<D: Device>(device: &D, tensor: &Tensor<D>, at: [i32; 3], inside: impl Fn(usize, f32) -> f32) {
    let mut expected = vec![PADDING; tensor.read(device).len()];
    for i in 0..tensor.dims.iter().product() {
        let (x, y) = (i % tensor.dims[0], i / tensor.dims[0] % tensor.dims[1]);
        let z = i / tensor.dims[0] / tensor.dims[1];
        expected[x + tensor.pitch * y + tensor.plane * z] = value(x, y, z);
    }
    for i in 0..tensor.boxes.iter().product() {
        if let Some([x, y, z]) = tensor.place(i, at) {
            let element = &mut expected[x + tensor.pitch * y + tensor.plane * z];
            *element = inside(i, *element);
        }
    }
    assert_eq!(tensor.read(device), expected, "box at {at:?}, {:?}", tensor.swizzle);
}

/// Tests cp.async.bulk.tensor stores: shared memory has the layout of loads, and nothing outside the tensor
/// is written.
pub fn tma_stores_boxes<D: Device>(device: &D) {
    let count = stored_cases(device).len();
    for case in 0..count {
        for place in 0..stored_cases(device)[case].1.len() {
            let (tensor, places) = stored_cases(device).swap_remove(case);
            let contents = |i: usize| -((i % 200) as f32) - 1.0;
            store(device, &tensor, places[place], &tensor.to_bytes(contents), false);
            expect(device, &tensor, places[place], |i, _| contents(i));
        }
    }
}

/// Tests cp.reduce.async.bulk.tensor .add, which is exact in f32 and rounds to nearest even in bf16.
pub fn tma_adds_boxes<D: Device>(device: &D) {
    let round = |element, x: f32| if element == MapElement::Bf16 { bf16::from_f32(x).to_f32() } else { x };
    for (tensor, at) in added_cases(device) {
        // Sums of a value of up to 251 with 256 or 257 steps need rounding in bf16; some are ties.
        let contents = |i: usize| 256.0 + 2.0 * (i % 3) as f32;
        store(device, &tensor, at, &tensor.to_bytes(contents), true);
        expect(device, &tensor, at, |i, before| round(tensor.element, before + contents(i)));
    }
}

/// Tests multicast: the load of each block arrives in both blocks at the same offset and counts on the
/// mbarrier of each.
pub fn tma_multicast_reaches_both_blocks<D: Device>(device: &D) {
    for swizzle in SWIZZLES {
        let tensor = Tensor::new(device, MapElement::Bf16, &[64, 32], &[64, 16], swizzle);
        let bytes = tensor.box_bytes();
        let out = unwritten(device, bytes);
        TestMulticast { map: tensor.map, out: MutPtr::of::<D>(&out, 0), rows: 16, bytes: bytes as i32 }
            .launch(device, 2, 2 * bytes)
            .unwrap();
        let got = download::<D, u8>(device, &out, 4 * bytes);
        for (part, chunk) in got.chunks(bytes).enumerate() {
            for i in 0..64 * 16 {
                let expected = value(i % 64, i / 64 + part % 2 * 16, 0);
                assert_eq!(
                    tensor.of_bytes(chunk, i),
                    expected,
                    "element {i} of box {} in block {}",
                    part % 2,
                    part / 2
                );
            }
        }
    }
}
