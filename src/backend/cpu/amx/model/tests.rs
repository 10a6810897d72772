use half::bf16;

use super::*;

/// Returns a model with these tiles, each given as (tile, rows, bytes per row). Tiles 0, 4 and 6 are C, A and
/// B of a product.
fn model(shapes: &[(u8, u8, u8)]) -> Model {
    let mut model = Model::new();
    model.try_configure(&config(shapes)).unwrap();
    model
}

fn config(shapes: &[(u8, u8, u8)]) -> [u8; CONFIG_BYTES] {
    let mut config = [0; CONFIG_BYTES];
    config[0] = 1;
    for &(tile, rows, bytes) in shapes {
        (config[48 + usize::from(tile)], config[16 + 2 * usize::from(tile)]) = (rows, bytes);
    }
    config
}

const WHOLE: [(u8, u8, u8); 3] = [(0, 16, 64), (4, 16, 64), (6, 16, 64)];

/// Bytes of bf16 values. The f32 values must be exact in bf16.
fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|&x| bf16::from_f32(x).to_bits().to_le_bytes()).collect()
}

/// Returns `sum` plus the product of one row and one column of bf16 pairs.
fn dot(sum: f32, left: &[f32], right: &[f32]) -> f32 {
    assert!(left.len() == right.len() && left.len().is_multiple_of(2));
    let pairs = (left.len() / 2) as u8;
    let mut model = model(&[(0, 1, 4), (4, 1, 4 * pairs), (6, pairs, 4)]);
    let mut c = [sum];
    model.try_load(0, &sum.to_le_bytes(), 0, 4).unwrap();
    model.try_load(4, &bytes(left), 0, 64).unwrap();
    model.try_load(6, &bytes(right), 0, 4).unwrap();
    model.try_dot([0, 4, 6]).unwrap();
    model.try_store(0, &mut Tile::new(&mut c, 1, 1, 1), 0, 0).unwrap();
    c[0]
}

#[test]
fn sums_are_rounded_in_the_documented_order() {
    // From 2^24 on, every integer that is exact in f32 is even. A tie rounds to the even mantissa.
    const BIG: f32 = 16_777_216.0;
    let one = [1.0; 4];
    // The even terms are summed from 0, and so are the odd terms. Then both sums are added, and the old sum
    // last.
    assert_eq!(dot(0.0, &[BIG, 1.0, 1.0, 1.0], &one), BIG + 2.0);
    assert_eq!(dot(0.0, &[BIG, 1.0, 1.0, 0.0], &one), BIG);
    assert_eq!(dot(BIG, &[1.0, 1.0, 0.0, 0.0], &one), BIG + 2.0);
    assert_eq!(dot(BIG, &[1.0, 0.0, 1.0, 0.0], &one), BIG + 2.0);
    assert_eq!(dot(BIG, &[1.0, 0.0, 0.0, 0.0], &one), BIG);
    assert_eq!(dot(-BIG, &[BIG, 0.0, 3.0, 0.0], &one), 4.0);
    // A product keeps all its bits until its sum is rounded.
    assert_eq!(dot(0.0, &[-BIG, 0.0, 255.0, 0.0], &[1.0, 1.0, 255.0, 1.0]), 65_025.0 - BIG);
    // The second element of a pair is multiplied by the second element of the other pair.
    assert_eq!(dot(0.0, &[2.0, 3.0], &[5.0, 7.0]), 31.0);
}

#[test]
fn subnormal_numbers_are_zero_and_nothing_is_an_exception() {
    const TINY: f32 = 1e-39;
    const SMALLEST: f32 = f32::MIN_POSITIVE;
    assert!(bf16::from_f32(TINY).to_f32() > 0.0, "bf16 has subnormal numbers");
    assert_eq!(dot(0.0, &[TINY, 1.0], &[1e30, 1.0]), 1.0);
    assert_eq!(dot(0.0, &[1e30, 1.0], &[TINY, 1.0]), 1.0);
    assert_eq!(dot(TINY, &[0.0, 0.0], &[0.0, 0.0]), 0.0);
    assert_eq!(dot(0.0, &[SMALLEST, 0.0], &[0.5, 0.0]), 0.0);
    assert_eq!(dot(SMALLEST, &[-SMALLEST, 0.0], &[0.5, 0.0]), SMALLEST, "the sum of a pair is 0");
    assert_eq!(dot(0.0, &[f32::INFINITY, 0.0], &[2.0, 0.0]), f32::INFINITY);
    assert_eq!(dot(0.0, &[2e38, 2e38], &[2.0, -2.0]).to_bits() & 0x7fc0_0000, 0x7fc0_0000, "infinity less infinity");
    assert!(dot(0.0, &[f32::NAN, 0.0], &[0.0, 0.0]).is_nan() && dot(0.0, &[f32::INFINITY, 0.0], &[0.0, 0.0]).is_nan());
    // A product may exceed the range of f32 if the sum does not.
    assert_eq!(dot(0.0, &[-2e38, 0.0, 2e38, 0.0], &[1.0, 0.0, 2.0, 0.0]), bf16::from_f32(2e38).to_f32());
}

#[test]
fn configurations_are_checked_as_a_processor_does() {
    let refused = |at: usize, value: u8, why: &str| {
        let mut bytes = config(&WHOLE);
        bytes[at] = value;
        let mut model = Model::new();
        let fault = model.try_configure(&bytes).unwrap_err().to_string();
        assert!(fault.contains(why) && !model.configured(), "byte {at}: {fault}");
    };
    refused(0, 2, "palette 2");
    refused(1, 3, "first row");
    [2, 15, 32, 47, 56, 63].into_iter().for_each(|at| refused(at, 1, "reserved byte"));
    refused(16, 68, "tile 0 has");
    refused(17, 1, "tile 0 has");
    refused(48 + 4, 17, "tile 4 has");
    refused(48 + 6, 0, "tile 6 has");
    refused(16 + 12, 0, "tile 6 has");
    let mut model = model(&WHOLE);
    assert!(model.configured());
    model.try_configure(&[0; CONFIG_BYTES]).unwrap();
    assert!(!model.configured() && model.try_zero(0).is_err());
}

#[test]
fn every_configuration_of_the_kernel_has_the_tiles_of_its_block_and_no_others() {
    for (rows, cols) in (1..=32).flat_map(|rows| (1..=32).map(move |cols| (rows, cols))) {
        let mut model = Model::new();
        model.try_configure(&Config::of([rows, cols]).0).unwrap();
        let (down, across) = (rows > 16, cols > 16);
        let expected = [true, across, down, down && across, true, down, true, across];
        for (tile, expected) in expected.into_iter().enumerate() {
            assert_eq!(model.try_zero(tile as u8).is_ok(), expected, "{rows} x {cols}, tile {tile}");
        }
        for (tiles, expected) in [[0, 4, 6], [1, 4, 7], [2, 5, 6], [3, 5, 7]].into_iter().zip(expected) {
            assert_eq!(model.try_dot(tiles).is_ok(), expected, "{rows} x {cols}, tiles {tiles:?}");
        }
    }
}

#[test]
fn tiles_that_do_not_fit_are_faults() {
    fn message(result: Result<(), Fault>) -> String {
        result.unwrap_err().to_string()
    }
    let memory = [0u8; 1024];
    let mut elements = [0.0f32; 256];
    let mut none = Model::new();
    assert!(message(none.try_zero(0)).contains("no configuration"));
    assert!(message(none.try_load(0, &memory, 0, 64)).contains("no configuration"));
    assert!(message(none.try_dot([0, 4, 6])).contains("no configuration"));
    assert!(message(none.try_store(0, &mut Tile::new(&mut elements, 16, 16, 16), 0, 0)).contains("no configuration"));

    let mut whole = model(&WHOLE);
    assert!(message(whole.try_zero(1)).contains("tile 1 is not configured"));
    assert!(message(whole.try_zero(8)).contains("tile 8 does not exist"));
    for tiles in [[0, 0, 6], [0, 4, 4], [6, 4, 6]] {
        assert!(message(whole.try_dot(tiles)).contains("not three tiles"), "{tiles:?}");
    }
    assert!(message(model(&[(0, 16, 62)]).try_zero(0)).contains("have 62 bytes"));
    let unlike = [
        [(0, 15, 64), (4, 16, 64), (6, 16, 64)],
        [(0, 16, 60), (4, 16, 64), (6, 16, 64)],
        [(0, 16, 64), (4, 16, 60), (6, 16, 64)],
        [(0, 16, 64), (4, 16, 64), (6, 15, 64)],
    ];
    for shapes in unlike {
        assert!(message(model(&shapes).try_dot([0, 4, 6])).contains("does not give"), "{shapes:?}");
    }

    whole.try_load(0, &memory, 0, 64).unwrap();
    assert!(message(whole.try_load(0, &memory, 1, 64)).contains("row 15 of tile 0 is outside"));
    assert!(message(whole.try_load(0, &memory, 0, 65)).contains("row 15"));
    assert!(message(whole.try_load(0, &memory, 1025, 0)).contains("row 0"));
    assert!(message(whole.try_load(0, &memory, 0, usize::MAX)).contains("row 1"));
    let mut small = Tile::new(&mut elements, 16, 15, 16);
    assert!(message(whole.try_store(0, &mut small, 0, 0)).contains("outside 16 x 15"));
    let mut small = Tile::new(&mut elements, 16, 16, 16);
    assert!(message(whole.try_store(0, &mut small, 1, 0)).contains("at (1, 0)"));
    assert!(message(whole.try_store(0, &mut small, 0, 1)).contains("at (0, 1)"));
}

#[test]
fn what_is_outside_a_shape_becomes_zero_and_is_not_stored() {
    let mut model = model(&WHOLE);
    model.try_load(4, &[0x3f; 1024], 0, 64).unwrap();
    model.try_configure(&config(&[(0, 2, 8), (4, 2, 12), (6, 3, 8)])).unwrap();
    assert_eq!(model.tiles[4], [[0; LANES]; ROWS], "a configuration empties the tiles");
    let ones = bytes(&[1.0; 64]);
    model.try_load(4, &ones, 0, 12).unwrap();
    assert!(model.tiles[4][1][2] != 0 && model.tiles[4][1][3] == 0 && model.tiles[4][2][0] == 0);
    model.try_load(6, &ones, 0, 8).unwrap();
    model.try_dot([0, 4, 6]).unwrap();
    let mut c = [-1.0f32; 12];
    model.try_store(0, &mut Tile::new(&mut c, 3, 4, 4), 1, 1).unwrap();
    assert_eq!(c, [-1.0, -1.0, -1.0, -1.0, -1.0, 6.0, 6.0, -1.0, -1.0, 6.0, 6.0, -1.0]);
    model.try_zero(0).unwrap();
    model.try_store(0, &mut Tile::new(&mut c, 3, 4, 4), 0, 0).unwrap();
    assert_eq!(c[..6], [0.0, 0.0, -1.0, -1.0, 0.0, 0.0]);
    model.try_release();
    assert!(!model.configured() && model.try_zero(0).is_err());
}
