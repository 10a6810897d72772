//! Primitives of one warp: rounding, shuffles and votes, asynchronous copies, fragments.

use mapl::backend::kernels::device::{ConstPtr, Device, MutPtr};
use mapl::backend::kernels::launchers::{TestCopies, TestLdmatrix, TestMma, TestRounding, TestWarp};

use super::harness::{download, matmul, pair, small, unwritten, upload};

/// cvt.rn.bf16x2.f32: rounds to nearest, ties to even, every NaN to 0x7fff, overflow to infinity.
/// The first operand of the function is in the lower half.
pub fn f32_rounds_to_bf16<D: Device>(device: &D) {
    let table: [(u32, u16); 16] = [
        (0x0000_0000, 0x0000),
        (0x8000_0000, 0x8000),
        (0x3f80_0000, 0x3f80),
        (0x3f80_7fff, 0x3f80), // below the tie
        (0x3f80_8000, 0x3f80), // tie, to even below
        (0x3f80_8001, 0x3f81), // above the tie
        (0x3f81_8000, 0x3f82), // tie, to even above
        (0xbf81_8000, 0xbf82),
        (0x3fff_8000, 0x4000), // tie that carries into the exponent
        (0x7f7f_ffff, 0x7f80), // largest f32
        (0xff7f_ffff, 0xff80),
        (0x7f80_0000, 0x7f80), // infinity
        (0x7f80_0001, 0x7fff), // NaN with the upper half of infinity
        (0xffc0_0000, 0x7fff), // NaN with a sign
        (0x0000_8000, 0x0000), // smallest subnormal's half: tie, to even below
        (0x0001_8000, 0x0002), // tie among subnormals, to even above
    ];
    let numbers: Vec<u32> = table.iter().map(|x| x.0).collect();
    let (x, rounded) = (upload(device, &numbers), unwritten(device, 8));
    TestRounding { x: ConstPtr::of::<D>(&x, 0), rounded: MutPtr::of::<D>(&rounded, 0), pairs: 8 }
        .launch(device, 1, 0)
        .unwrap();
    let expected: Vec<u16> = table.iter().map(|x| x.1).collect();
    assert_eq!(download::<D, u16>(device, &rounded, 16), expected);
}

/// Tests shfl.sync in its four modes and vote.sync in its three.
pub fn lanes_exchange_values_and_votes<D: Device>(device: &D) {
    let values: Vec<i32> = (0..32).map(|lane| 1000 + lane).collect();
    let (x, out) = (upload(device, &values), unwritten(device, 32 * 8));
    TestWarp { x: ConstPtr::of::<D>(&x, 0), out: MutPtr::of::<D>(&out, 0) }.launch(device, 1, 0).unwrap();
    let got = download::<D, i32>(device, &out, 32 * 8);
    let votes = values.iter().enumerate().fold(0, |bits, (i, v)| bits | u32::from(v % 3 == 0) << i);
    for lane in 0..32i32 {
        let up = if lane < 3 { lane } else { lane - 3 };
        let down = if lane > 27 { lane } else { lane + 4 };
        // Results 5 and 6 are pairs of votes: any lane has a value of exactly one lane, and a value of no
        // lane; all lanes satisfy a bound, and a bound that lane 0 does not satisfy.
        let expected =
            [1000 + (7 * lane + 3) % 32, 1000 + (lane ^ 5), 1000 + up, 1000 + down, votes as i32, 1, 1, lane];
        assert_eq!(got[8 * lane as usize..][..8], expected, "lane {lane}");
    }
}

/// Tests cp.async of 16 and 4 bytes with zero fill beyond the source size; groups complete oldest first.
pub fn cp_async_completes_by_group<D: Device>(device: &D) {
    let values: Vec<f32> = (1..=384).map(|i| i as f32).collect();
    let (x, out) = (upload(device, &values), unwritten(device, 416));
    TestCopies { x: ConstPtr::of::<D>(&x, 0), out: MutPtr::of::<D>(&out, 0), committed: 3 }
        .launch(device, 1, 0)
        .unwrap();
    let got = download::<D, f32>(device, &out, 416);
    for i in 0..384 {
        let left_out = (128..256).contains(&i) && i % 4 >= 2;
        assert_eq!(got[i], if left_out { 0.0 } else { values[i] }, "element {i}");
    }
    for i in 0..32 {
        let lane = 31 - i;
        assert_eq!(got[384 + i], if lane % 2 == 0 { values[lane] } else { 0.0 }, "narrow copy of lane {lane}");
    }
}

/// ldmatrix .x4: lane 8 i + r addresses row r of matrix i. Lane 4 g + t receives elements (g, 2 t)
/// and (g, 2 t + 1) of matrix i in word i; with .trans it receives (2 t, g) and (2 t + 1, g).
pub fn ldmatrix_loads_fragments<D: Device>(device: &D) {
    // Element (r, c) of matrix i is 100 i + 10 r + c.
    let element = |i: usize, r: usize, c: usize| (100 * i + 10 * r + c) as u16;
    let rows: Vec<u16> = (0..256).map(|j| element(j / 64, j / 8 % 8, j % 8)).collect();
    let (rows, out) = (upload(device, &rows), unwritten(device, 256));
    TestLdmatrix { rows: ConstPtr::of::<D>(&rows, 0), out: MutPtr::of::<D>(&out, 0) }.launch(device, 1, 0).unwrap();
    let got = download::<D, u16>(device, &out, 512);
    for lane in 0..32 {
        let (g, t) = (lane / 4, lane % 4);
        for i in 0..4 {
            let plain = [element(i, g, 2 * t), element(i, g, 2 * t + 1)];
            let transposed = [element(i, 2 * t, g), element(i, 2 * t + 1, g)];
            assert_eq!(got[8 * lane + 2 * i..][..2], plain, "lane {lane}, matrix {i}");
            assert_eq!(got[256 + 8 * lane + 2 * i..][..2], transposed, "lane {lane}, matrix {i}, transposed");
        }
    }
}

/// mma.m16n8k16 with the fragment layouts of the ISA: a0, a1 at (g, 2 t), a2, a3 at (g + 8, 2 t),
/// a4, a5 at (g, 2 t + 8), a6, a7 at (g + 8, 2 t + 8); b0, b1 at (2 t, g), b2, b3 at (2 t + 8, g);
/// c0, c1 at (g, 2 t), c2, c3 at (g + 8, 2 t).
pub fn mma_multiplies_fragments<D: Device>(device: &D) {
    let (a, b, c) = (small(16, 16, 1), small(16, 8, 2), small(16, 8, 3));
    let (mut a_words, mut b_words, mut c_values) = (Vec::new(), Vec::new(), Vec::new());
    for lane in 0..32 {
        let (g, t) = (lane / 4, lane % 4);
        for (row, col) in [(g, 2 * t), (g + 8, 2 * t), (g, 2 * t + 8), (g + 8, 2 * t + 8)] {
            a_words.push(pair(a[16 * row + col], a[16 * row + col + 1]));
        }
        for row in [2 * t, 2 * t + 8] {
            b_words.push(pair(b[8 * row + g], b[8 * (row + 1) + g]));
        }
        for (row, col) in [(g, 2 * t), (g, 2 * t + 1), (g + 8, 2 * t), (g + 8, 2 * t + 1)] {
            c_values.push(c[8 * row + col]);
        }
    }
    let product = matmul(&a, &b, 16, 16, 8);
    let [a, b] = [a_words, b_words].map(|words| upload(device, &words));
    let (c_memory, d) = (upload(device, &c_values), unwritten(device, 128));
    TestMma {
        a: ConstPtr::of::<D>(&a, 0),
        b: ConstPtr::of::<D>(&b, 0),
        c: ConstPtr::of::<D>(&c_memory, 0),
        d: MutPtr::of::<D>(&d, 0),
    }
    .launch(device, 1, 0)
    .unwrap();
    let got = download::<D, f32>(device, &d, 128);
    for lane in 0..32 {
        let (g, t) = (lane / 4, lane % 4);
        for i in 0..4 {
            let at = 8 * (g + 8 * (i / 2)) + 2 * t + i % 2;
            assert_eq!(got[4 * lane + i], product[at] + c[at], "lane {lane}, value {i}");
        }
    }
}
