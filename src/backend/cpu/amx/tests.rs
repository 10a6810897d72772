use super::*;

/// Returns a matrix with contiguous rows, contiguous columns, or neither. There are gaps between the lines.
fn mat(data: &[bf16], rows: usize, cols: usize, layout: usize) -> Mat<'_, bf16> {
    match layout {
        0 => Mat::new(data, rows, cols, cols + 3),
        1 => Mat::new(data, cols, rows, rows + 3).t(),
        _ => Mat { data, rows, cols, row_stride: 2 * cols + 1, col_stride: 2 },
    }
}

fn random(len: usize, factor: usize) -> Vec<bf16> {
    (0..len).map(|i| bf16::from_f32(((i * factor + 17) % 2003) as f32 / 1000.0 - 1.0)).collect()
}

fn at(m: &Mat<'_, bf16>, i: usize, j: usize) -> f32 {
    m.data[i * m.row_stride + j * m.col_stride].to_f32()
}

/// Returns an element of `c (+)= a b`, summed in the documented order.
fn element(a: &Mat<'_, bf16>, b: &Mat<'_, bf16>, [i, j]: [usize; 2], old: f32, write: Write) -> f32 {
    let mut result = old;
    for from in (0..a.cols).step_by(DEPTH) {
        let end = a.cols.min(from + DEPTH);
        let mut sum = 0.0f32;
        for step in (from..end).step_by(32) {
            let mut halves = [0.0f32; 2];
            for k in step..end.min(step + 32) {
                halves[k % 2] = at(a, i, k).mul_add(at(b, k, j), halves[k % 2]);
            }
            sum += halves[0] + halves[1];
        }
        result = if write == Write::Add || from > 0 { result + sum } else { sum };
    }
    result
}

/// Rows, columns and depths near the sizes of tiles, blocks and steps.
fn sizes() -> Vec<[usize; 3]> {
    let edges = [1, 2, 15, 16, 17, 31, 32, 33, 47, 49, 64];
    let mut sizes: Vec<_> = edges.into_iter().flat_map(|m| edges.map(|n| [m, n, 33])).collect();
    sizes.extend((1..=70).map(|depth| [35, 37, depth]));
    sizes.extend([[1, 1, 1], [70, 50, DEPTH], [33, 40, DEPTH + 1], [20, 35, 2 * DEPTH + 47], [5, 3, 64]]);
    sizes
}

#[test]
fn every_element_has_the_bits_of_the_documented_order_in_any_layout() {
    for (case, [m, n, depth]) in sizes().into_iter().enumerate() {
        let (x, y) = (random(2 * (m + 3) * (depth + 3), 7919), random(2 * (n + 3) * (depth + 3), 104_729));
        // Each size uses 4 of the 18 combinations of layouts and write modes.
        for i in 0..4 {
            let layout = (case + i * 5) % 18;
            let (a, b) = (mat(&x, m, depth, layout % 3), mat(&y, depth, n, layout / 3 % 3));
            let write = if layout >= 9 { Write::Add } else { Write::Overwrite };
            let old: Vec<f32> = (0..m * (n + 1)).map(|i| (i % 5) as f32 + 0.1).collect();
            let mut c = old.clone();
            let mut model = Model::new();
            in_blocks(&mut model, &mut Tile::new(&mut c, m, n, n + 1), a, b, write);
            assert!(!model.configured(), "the tiles are not released");
            for (at, value) in c.iter().enumerate() {
                let (i, j) = (at / (n + 1), at % (n + 1));
                let expected = if j < n { element(&a, &b, [i, j], old[at], write) } else { old[at] };
                let label = format!("{m} x {n} x {depth}, layout {layout}, element ({i}, {j})");
                assert_eq!(value.to_bits(), expected.to_bits(), "{label}: {value} {expected}");
            }
        }
    }
}

#[test]
fn without_terms_the_result_is_zero_or_unchanged() {
    let mut c = [1.0f32; 6];
    let none: [bf16; 0] = [];
    let (a, b) = (Mat::new(&none, 2, 0, 0), Mat::new(&none, 0, 3, 3));
    on_model(&mut Tile::new(&mut c, 2, 3, 3), a, b, Write::Add);
    assert_eq!(c, [1.0; 6]);
    on_model(&mut Tile::new(&mut c, 2, 3, 3), a, b, Write::Overwrite);
    assert_eq!(c, [0.0; 6]);
}

/// A unit whose products are wrong, or that panics at a product.
struct Broken {
    model: Model,
    stops: bool,
}

impl Unit for Broken {
    unsafe fn configure(&mut self, config: &Config) {
        unsafe { self.model.configure(config) }
    }
    unsafe fn zero<const T: u8>(&mut self) {
        unsafe { self.model.zero::<T>() }
    }
    unsafe fn load<const T: u8>(&mut self, from: &[u8], at: usize, stride: usize) {
        unsafe { self.model.load::<T>(from, at, stride) }
    }
    unsafe fn store<const T: u8>(&mut self, to: &mut Tile<'_>, row: usize, col: usize) {
        unsafe { self.model.store::<T>(to, row, col) }
    }
    unsafe fn dot<const C: u8, const A: u8, const B: u8>(&mut self) {
        assert!(!self.stops, "stopped");
        // Only the bottom-right tile of a block is wrong.
        (0..if C == SUMS[3] { 2 } else { 1 }).for_each(|_| unsafe { self.model.dot::<C, A, B>() });
    }
    fn release(&mut self) {
        self.model.release();
    }
}

#[test]
fn tiles_with_wrong_products_are_refused_at_the_first_use() {
    assert_eq!(tried(|c, a, b| on_model(c, a, b, Write::Overwrite)), Ok(()));
    let mut broken = Broken { model: Model::new(), stops: false };
    let lack = tried(|c, a, b| in_blocks(&mut broken, c, a, b, Write::Overwrite)).unwrap_err().to_string();
    assert!(lack.starts_with("not used: ") && lack.contains("software model"), "{lack}");
}

#[test]
fn tiles_are_released_if_a_gemm_ends_early() {
    let mut broken = Broken { model: Model::new(), stops: true };
    let gemm = || tried(|c, a, b| in_blocks(&mut broken, c, a, b, Write::Overwrite));
    let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(gemm));
    assert!(ended.is_err() && !broken.model.configured());
}

#[test]
fn this_processors_tiles_give_the_sums_of_the_model() {
    if let Some(lack) = lack() {
        println!("SKIPPED: amx_bf16 is {lack}");
        return;
    }
    // If the samples are equal, the processor sums in the documented order, and all results must have the
    // model's bits.
    let same = samples(true) == samples(false);
    println!("the sums have {}", if same { "the model's bits" } else { "bits of their own" });
    for [m, n, depth] in sizes() {
        let (x, y) = (random((m + 3) * (depth + 3), 7919), random((n + 3) * (depth + 3), 104_729));
        for layout in 0..4 {
            let (a, b) = (mat(&x, m, depth, layout % 2), mat(&y, depth, n, layout / 2));
            let write = if (m + n + layout) % 2 == 0 { Write::Add } else { Write::Overwrite };
            let [mut got, mut expected] = [(); 2].map(|()| vec![0.5f32; m * (n + 1)]);
            on_tiles(&mut Tile::new(&mut got, m, n, n + 1), a, b, write);
            on_model(&mut Tile::new(&mut expected, m, n, n + 1), a, b, write);
            for (i, (got, expected)) in got.iter().zip(&expected).enumerate() {
                let error = (got - expected).abs();
                assert!(!same || got.to_bits() == expected.to_bits(), "{m} x {n} x {depth}, {i}: {got} {expected}");
                assert!(
                    error <= 1e-6 * (depth as f32).sqrt() * (1.0 + expected.abs()),
                    "{m} x {n} x {depth}, {i}: {error}"
                );
            }
        }
    }
}
