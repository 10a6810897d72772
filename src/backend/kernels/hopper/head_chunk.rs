//! Steps of the vocabulary head on one chunk of rows, and the sizes of chunks; `head` has the
//! algorithm and runs them over the chunks of a call.

use std::ops::Range;

use super::{ROWS, all_multiples, are_aligned, f32_result, is_supported, matrix, operand};
use crate::Result;
use crate::backend::Write as Mode;
use crate::backend::contract::{HeadDims, ROW_STATS};
use crate::backend::kernels::device::{ConstPtr, Device, Element, MutPtr};
use crate::backend::kernels::geometry::{Choice, PLANNED_PROCESSORS, Sizes, Tile, blocks_of, cut};
use crate::backend::kernels::launchers::{self as launch, HEAD_COLUMNS, HEAD_JOIN_ROWS};
use crate::backend::kernels::{Kernels, Piece, Scratch, int};

/// Limits of scratch memory in bytes: of a forward at any vocabulary size (performance goal G-HEAD-1), and of
/// the exponentials that a backward stores.
const FORWARD_BYTES: usize = 64 << 20;
const EXPS_BYTES: usize = 2400 << 20;
/// Minimum number of rows of a chunk that a memory plan chooses. At hidden size 896, chunks of half as many
/// rows double the predicted time, because the drows GEMM has few tiles and dhead is read and written often.
const FEWEST_ROWS: usize = 1024;
/// The splits of the drows GEMM are chosen for this many rows, or for the rows of a call with fewer rows.
const SPLIT_ROWS: usize = 2048;
/// Depth of a wgmma: the number of rows that it sums.
const WGMMA_DEPTH: usize = 16;
/// Chunk sizes in rows are multiples of `CHUNK_UNIT`, and of `LARGE_CHUNK_UNIT` if they are at least that
/// large. GEMMs over such chunks fill the clusters of a GPU.
const CHUNK_UNIT: usize = 256;
const LARGE_CHUNK_UNIT: usize = 2048;
/// Maximum number of splits over the vocabulary in the GEMM of the row gradient.
const MAX_DROWS_SPLITS: usize = 4;
/// Tile of the GEMM that gives the exponentials: `Head` in `kernels/head_sm90.cu`.
const TILE: Tile = Tile::N192PingPong;

/// Device addresses of the arrays of a call.
#[derive(Clone, Copy)]
pub(super) struct Arrays {
    /// Holds x in the forward and `scaled` in the backward (comment of the module `head`). This array and
    /// `exps` have room for carried rows.
    pub packed: u64,
    pub base: u64,
    pub sums: u64,
    pub hit: u64,
    pub total: u64,
    /// Row statistics of each tile, if the caller requests them.
    pub stats: [u64; ROW_STATS],
    /// This array and `factor` are used for gradients only.
    pub exps: u64,
    pub factor: u64,
}

/// Rows of earlier chunks that are kept at the start of `exps` and `packed`. They are not yet added to dhead,
/// because a wgmma sums [`WGMMA_DEPTH`] rows and fewer than that were left.
#[derive(Clone, Copy, Default)]
pub(super) struct Carry {
    pub rows: usize,
    /// Whether dhead already holds a sum that later rows are added to.
    pub continues: bool,
}

/// Address of dhead, and the rows that are not yet added to it.
#[derive(Clone, Copy)]
pub(super) struct Dhead {
    pub address: u64,
    pub carry: Carry,
}

impl Dhead {
    pub fn of(address: Option<u64>, write: Mode) -> Option<Self> {
        address.map(|address| Self { address, carry: Carry { rows: 0, continues: write == Mode::Add } })
    }
}

/// Row stride of the exponentials in elements: a multiple of 16 bytes.
fn stride(d: HeadDims) -> usize {
    d.vocab.next_multiple_of(8)
}

/// Number of tiles across the vocabulary.
fn slices(d: HeadDims) -> usize {
    d.vocab.div_ceil(HEAD_COLUMNS)
}

/// Number of rows of a chunk that fits in `budget` bytes, but at least [`CHUNK_UNIT`].
fn rows_within(budget: usize, bytes_of_row: usize) -> usize {
    let rows = (budget / bytes_of_row.max(1)).max(1);
    let unit = if rows >= LARGE_CHUNK_UNIT { LARGE_CHUNK_UNIT } else { CHUNK_UNIT };
    (rows / unit * unit).max(CHUNK_UNIT)
}

/// Number of rows per chunk of the forward, with or without statistics.
pub(super) fn forward_rows(d: HeadDims, with_stats: bool) -> usize {
    let per_tile = if with_stats { 1 + ROW_STATS } else { 1 };
    rows_within(FORWARD_BYTES, 2 * d.hidden + 4 * per_tile * slices(d) + 12)
}

/// Number of rows of a chunk whose exponentials are stored.
pub(super) fn backward_rows(d: HeadDims) -> usize {
    rows_within(EXPS_BYTES, 2 * stride(d))
}

/// Chunk sizes in rows among which a memory plan may choose, largest first: [`backward_rows`] and its
/// repeated halves.
pub(super) fn row_choices(d: HeadDims) -> Vec<usize> {
    let halves = std::iter::successors(Some(backward_rows(d)), |rows| Some(rows / 2));
    halves.take_while(|&rows| rows >= FEWEST_ROWS).filter(|&rows| rows.is_multiple_of(CHUNK_UNIT)).collect()
}

/// Whether these kernels support heads with these dimensions. They support no soft cap of the logits.
pub(super) fn handles<D: Device, A: Element>(k: &Kernels<D, A>, d: HeadDims) -> bool {
    is_supported(k) && d.hidden > 0 && all_multiples(8, &[d.hidden]) && d.softcap.is_none()
}

/// Whether these kernels support a call with operands at these addresses.
pub(in super::super) fn is_fit<D: Device, A: Element>(k: &Kernels<D, A>, d: HeadDims, addresses: &[u64]) -> bool {
    handles(k, d) && d.rows * d.vocab > 0 && are_aligned(addresses)
}

/// Scratch memory of a call.
pub(super) struct Pieces {
    arrays: [Piece; 7],
    stats: [Piece; ROW_STATS],
}

/// Requests scratch memory for chunks of `rows` rows. The array of sums has room for at least `sums`
/// elements.
pub(super) fn request<D: Device>(
    scratch: &mut Scratch<'_, D>,
    d: HeadDims,
    rows: usize,
    (backward, with_stats): (bool, bool),
    sums: usize,
) -> Pieces {
    let of = |len: usize| if backward { len } else { 0 };
    let carried = rows + of(WGMMA_DEPTH - 1);
    let arrays = [
        scratch.request::<u16>(carried * d.hidden),
        scratch.request::<f32>(rows),
        scratch.request::<f32>((rows * slices(d)).max(sums)),
        scratch.request::<f32>(rows),
        scratch.request::<f32>(rows),
        scratch.request::<u16>(of(carried * stride(d))),
        scratch.request::<f32>(of(rows)),
    ];
    let per_array = if with_stats { rows * slices(d) } else { 0 };
    Pieces { arrays, stats: std::array::from_fn(|_| scratch.request::<f32>(per_array)) }
}

impl Arrays {
    pub fn of<D: Device>(scratch: &Scratch<'_, D>, pieces: Pieces) -> Self {
        let [packed, base, sums, hit, total, exps, factor] = pieces.arrays.map(|piece| scratch.address(piece));
        let stats = pieces.stats.map(|piece| scratch.address(piece));
        Self { packed, base, sums, hit, total, stats, exps, factor }
    }

    /// The same arrays, with `packed` and `exps` starting after the carried rows.
    pub fn behind(self, carry: usize, d: HeadDims) -> Self {
        let (packed, exps) = (2 * carry * d.hidden, 2 * carry * stride(d));
        Self { packed: self.packed + packed as u64, exps: self.exps + exps as u64, ..self }
    }
}

/// Operands of a call.
#[derive(Clone, Copy)]
pub(super) struct Operands {
    /// Name of the op that is called.
    pub name: &'static str,
    pub d: HeadDims,
    pub hidden: u64,
    pub head: u64,
    pub source: ConstPtr<i32>,
    pub target: ConstPtr<i32>,
    pub logp: MutPtr<f32>,
    pub lse: MutPtr<f32>,
    /// (ROW_STATS, rows of the call)
    pub stats: Option<MutPtr<f32>>,
}

fn offset<T>(pointer: ConstPtr<T>, rows: usize) -> ConstPtr<T> {
    ConstPtr::new(pointer.address(), rows)
}

/// Computes the log-probabilities of a chunk of rows. If `stored` is true, the exponentials are kept in
/// `at.exps`.
pub(super) fn chunk_forward<D: Device, A: Element>(
    k: &Kernels<D, A>,
    o: &Operands,
    at: &Arrays,
    rows: Range<usize>,
    stored: bool,
) -> Result<()> {
    let (d, count, device) = (o.d, rows.len(), &k.device);
    let (hidden_size, vocab, number) = (int(d.hidden)?, int(d.vocab)?, int(count)?);
    let target = offset(o.target, rows.start);
    launch::HeadRowsSm90 {
        hidden: ConstPtr::new(o.hidden, 0),
        head: ConstPtr::new(o.head, 0),
        source: offset(o.source, rows.start),
        target,
        packed: MutPtr::new(at.packed, 0),
        base: MutPtr::new(at.base, 0),
        hidden_size,
        rows: number,
    }
    .launch(device, k.row_blocks(count, launch::HeadRowsSm90::WARPS), 0)?;
    let packed = matrix(device, at.packed, (count, d.hidden), d.hidden, ROWS)?;
    let head = matrix(device, o.head, (d.vocab, d.hidden), d.hidden, HEAD_COLUMNS)?;
    let (base, sums, hit) = (ConstPtr::new(at.base, 0), MutPtr::new(at.sums, 0), MutPtr::new(at.hit, 0));
    let grid = blocks_of(count, d.vocab, HEAD_COLUMNS, device.properties().processors);
    let shared = TILE.shared_bytes(false, 2);
    let sizes = Sizes { m: count, n: d.vocab, k: d.hidden, out_bytes: 2, may_split: false };
    k.note_choice(o.name, sizes, cut(sizes, TILE, 1, device.properties().processors));
    let exps = match stored {
        true => Some(matrix(device, at.exps, (count, d.vocab), stride(d), 64)?),
        false => None,
    };
    let join = Join { at, rows: rows.start, count, stored };
    let sizes = (number, vocab, hidden_size);
    if let Some(stats) = o.stats {
        let [weighted, total, rival] = at.stats.map(|address| MutPtr::new(address, 0));
        let (rows, vocab, hidden) = sizes;
        match exps {
            Some(exps) => launch::HeadStatsPowersSm90 {
                packed,
                head,
                exps,
                target,
                base,
                sums,
                hit,
                weighted,
                total,
                rival,
                rows,
                vocab,
                hidden,
            }
            .launch(device, grid, shared)?,
            None => launch::HeadStatsSumsSm90 {
                packed,
                head,
                target,
                base,
                sums,
                hit,
                weighted,
                total,
                rival,
                rows,
                vocab,
                hidden,
            }
            .launch(device, grid, shared)?,
        }
        return join.launch_with_stats(k, o, target, stats);
    }
    let (rows, vocab, hidden) = sizes;
    match exps {
        Some(exps) => {
            launch::HeadPowersSm90 { packed, head, exps, target, base, sums, hit, rows, vocab, hidden }
                .launch(device, grid, shared)?;
        }
        None => {
            launch::HeadSumsSm90 { packed, head, target, base, sums, hit, rows, vocab, hidden }
                .launch(device, grid, shared)?;
        }
    }
    join.launch(k, o)
}

/// The last kernel of a chunk's forward.
struct Join<'a> {
    at: &'a Arrays,
    /// First row of the chunk in the results of the call.
    rows: usize,
    count: usize,
    /// Whether the exponentials are stored.
    stored: bool,
}

impl Join<'_> {
    fn grid<D: Device, A: Element>(&self, k: &Kernels<D, A>) -> usize {
        k.row_blocks(self.count, launch::HeadJoinSm90::WARPS * HEAD_JOIN_ROWS)
    }

    fn exps(&self) -> MutPtr<half::bf16> {
        if self.stored { MutPtr::new(self.at.exps, 0) } else { MutPtr::NONE }
    }

    fn launch<D: Device, A: Element>(&self, k: &Kernels<D, A>, o: &Operands) -> Result<()> {
        launch::HeadJoinSm90 {
            packed: ConstPtr::new(self.at.packed, 0),
            head: ConstPtr::new(o.head, 0),
            sums: ConstPtr::new(self.at.sums, 0),
            hit: ConstPtr::new(self.at.hit, 0),
            base: MutPtr::new(self.at.base, 0),
            total: MutPtr::new(self.at.total, 0),
            logp: MutPtr::new(o.logp.address(), self.rows),
            lse: MutPtr::new(o.lse.address(), self.rows),
            exps: self.exps(),
            hidden_size: int(o.d.hidden)?,
            vocab: int(o.d.vocab)?,
            rows: int(self.count)?,
            slices: int(slices(o.d))?,
            stride: int(stride(o.d))?,
        }
        .launch(&k.device, self.grid(k), 0)
    }

    fn launch_with_stats<D: Device, A: Element>(
        &self,
        k: &Kernels<D, A>,
        o: &Operands,
        target: ConstPtr<i32>,
        stats: MutPtr<f32>,
    ) -> Result<()> {
        let [weighted, logits, rival] = self.at.stats.map(|address| MutPtr::new(address, 0));
        launch::HeadStatsJoinSm90 {
            packed: ConstPtr::new(self.at.packed, 0),
            head: ConstPtr::new(o.head, 0),
            sums: ConstPtr::new(self.at.sums, 0),
            hit: ConstPtr::new(self.at.hit, 0),
            base: MutPtr::new(self.at.base, 0),
            total: MutPtr::new(self.at.total, 0),
            logp: MutPtr::new(o.logp.address(), self.rows),
            lse: MutPtr::new(o.lse.address(), self.rows),
            exps: self.exps(),
            weighted,
            logits,
            rival,
            target,
            stats: MutPtr::new(stats.address(), self.rows),
            hidden_size: int(o.d.hidden)?,
            vocab: int(o.d.vocab)?,
            rows: int(self.count)?,
            slices: int(slices(o.d))?,
            stride: int(stride(o.d))?,
            stats_stride: int(o.d.rows)?,
        }
        .launch(&k.device, self.grid(k), 0)
    }
}

/// Pairs of a tile and a number of splits over the vocabulary for the drows GEMM of `rows` rows, fastest
/// first.
fn drows_choices(d: HeadDims, rows: usize, splits: Range<usize>) -> (Sizes, Vec<Choice>) {
    let sizes = Sizes { m: rows, n: d.hidden, k: d.vocab, out_bytes: 4, may_split: true };
    let ways = launch::HeadDrowsSm90::TILE
        .into_iter()
        .flat_map(|tile| splits.clone().map(move |splits| (tile, splits)))
        .filter(|&(tile, splits)| splits == 1 || super::linear::may_split(rows, d.hidden, tile));
    let mut choices: Vec<Choice> = ways.map(|(tile, splits)| cut(sizes, tile, splits, PLANNED_PROCESSORS)).collect();
    choices.sort_by(|a, b| a.seconds.total_cmp(&b.seconds).then(a.splits.cmp(&b.splits)));
    (sizes, choices)
}

/// Splits over the vocabulary for the drows of a call. They fix the order of the sums, so they do
/// not depend on the rows of a chunk.
fn drows_splits(d: HeadDims) -> usize {
    drows_choices(d, d.rows.min(SPLIT_ROWS), 1..MAX_DROWS_SPLITS + 1).1[0].splits
}

/// Computes the drows of a chunk, in pieces small enough for the split-K semaphores.
fn drows<D: Device, A: Element>(k: &Kernels<D, A>, o: &Operands, at: &Arrays, count: usize, drows: u64) -> Result<()> {
    let (d, device) = (o.d, &k.device);
    let (splits, head) = (drows_splits(d), operand(device, o.head, true, (d.hidden, d.vocab), d.hidden, 64)?);
    let may_split = |rows: usize| !drows_choices(d, rows, splits..splits + 1).1.is_empty();
    let most = if may_split(count) { count } else { SPLIT_ROWS };
    for rows in chunks(count, most) {
        let (sizes, choices) = drows_choices(d, rows.len(), splits..splits + 1);
        let choice = cut(sizes, choices[0].tile, splits, device.properties().processors);
        k.note_choice(o.name, sizes, choice);
        let exps = at.exps + 2 * (rows.start * stride(d)) as u64;
        launch::HeadDrowsSm90 {
            exps: matrix(device, exps, (rows.len(), d.vocab), stride(d), ROWS)?,
            head,
            drows: f32_result(device, drows + 4 * (rows.start * d.hidden) as u64, (rows.len(), d.hidden))?,
            factor: ConstPtr::new(at.factor, rows.start),
            semaphores: MutPtr::new(super::linear::semaphores(k, &choice)?, 0),
            rows: int(rows.len())?,
            hidden: int(d.hidden)?,
            vocab: int(d.vocab)?,
            splits: int(choice.splits)?,
        }
        .launch(device, choice.tile, choice.grid, choice.tile.shared_bytes(true, 4))?;
    }
    Ok(())
}

/// Adds the carried rows and the `count` rows after them to dhead. The arrays of `at` start at the carried
/// rows. The last chunk adds all its rows. Other chunks add a multiple of [`WGMMA_DEPTH`] rows and carry the
/// rest.
pub(super) fn add_to_dhead<D: Device, A: Element>(
    k: &Kernels<D, A>,
    o: &Operands,
    at: &Arrays,
    count: usize,
    dhead: &mut Dhead,
    is_last: bool,
) -> Result<()> {
    let (d, device) = (o.d, &k.device);
    let ready = dhead.carry.rows + count;
    let depth = if is_last { ready } else { ready / WGMMA_DEPTH * WGMMA_DEPTH };
    if depth > 0 && dhead.carry.continues {
        let processors = device.properties().processors;
        let sizes = Sizes { m: d.vocab, n: d.hidden, k: depth, out_bytes: 4, may_split: false };
        k.note_choice(o.name, sizes, cut(sizes, TILE, 1, processors));
        launch::HeadDheadSm90 {
            exps: operand(device, at.exps, true, (d.vocab, depth), stride(d), ROWS)?,
            scaled: operand(device, at.packed, true, (d.hidden, depth), d.hidden, 64)?,
            map: f32_result(device, dhead.address, (d.vocab, d.hidden))?,
            dhead: ConstPtr::new(dhead.address, 0),
            vocab: int(d.vocab)?,
            hidden: int(d.hidden)?,
            rows: int(depth)?,
        }
        .launch(
            device,
            blocks_of(d.vocab, d.hidden, TILE.columns(), processors),
            TILE.shared_bytes(true, 4),
        )?;
    } else if depth > 0 {
        let gemm = super::Gemm::<A> {
            name: o.name,
            op: super::Op::Weight,
            a: ConstPtr::new(at.exps, 0),
            a_stride: stride(d),
            b: ConstPtr::new(at.packed, 0),
            c: dhead.address,
            bias: ConstPtr::NONE,
            residual: ConstPtr::NONE,
            norms: 0,
            m: d.vocab,
            n: d.hidden,
            k: depth,
            mode: Mode::Overwrite,
        };
        super::enqueue(k, &gemm, super::unsplit(k, &gemm))?;
    }
    dhead.carry = Carry { rows: ready - depth, continues: dhead.carry.continues || depth > 0 };
    if depth > 0 && dhead.carry.rows > 0 {
        launch::HeadCarrySm90 {
            exps: MutPtr::new(at.exps, 0),
            scaled: MutPtr::new(at.packed, 0),
            from: int(depth)?,
            rows: int(dhead.carry.rows)?,
            hidden_size: int(d.hidden)?,
            stride: int(stride(d))?,
        }
        .launch(device, k.row_blocks(dhead.carry.rows * stride(d), 8 * launch::HeadCarrySm90::THREADS), 0)?;
    }
    Ok(())
}

/// Computes the factors, `scaled` and the drows of a chunk from its exponentials. The drows go to `drows_at`.
/// The arrays of `at` start at the chunk's rows.
pub(super) fn chunk_backward<D: Device, A: Element>(
    k: &Kernels<D, A>,
    o: &Operands,
    at: &Arrays,
    rows: Range<usize>,
    dlogp: ConstPtr<f32>,
    drows_at: u64,
) -> Result<()> {
    let (d, count, device) = (o.d, rows.len(), &k.device);
    let (hidden_size, number) = (int(d.hidden)?, int(count)?);
    launch::HeadFactorsSm90 {
        packed: ConstPtr::new(at.packed, 0),
        target: offset(o.target, rows.start),
        hit: ConstPtr::new(at.hit, 0),
        base: ConstPtr::new(at.base, 0),
        total: ConstPtr::new(at.total, 0),
        dlogp: offset(dlogp, rows.start),
        factor: MutPtr::new(at.factor, 0),
        scaled: MutPtr::new(at.packed, 0),
        exps: MutPtr::new(at.exps, 0),
        hidden_size,
        rows: number,
        stride: int(stride(d))?,
    }
    .launch(device, k.row_blocks(count, launch::HeadFactorsSm90::WARPS), 0)?;
    drows(k, o, at, count, drows_at)
}

/// Splits the rows `0..rows` into chunks of at most `most` rows.
pub(super) fn chunks(rows: usize, most: usize) -> impl Iterator<Item = Range<usize>> {
    (0..rows).step_by(most.max(1)).map(move |first| first..rows.min(first + most))
}
