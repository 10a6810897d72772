//! The preference loss (`kernels/preference.cu`).

use super::device::{Device, Element};
use super::launchers::{self as launch, SumField};
use super::{Kernels, Piece, Scratch, int, read, read_option, write};
use crate::Result;
use crate::backend::contract::*;

const _: () = {
    assert!(TERMS == launch::TERMS && KINDS == launch::KINDS && SUM_FIELDS == launch::SUM_FIELDS);
    assert!(SUM_FIELDS == SumField::ALL.len());
    assert!(SUM_LOSS == SumField::SumLoss as usize && SUM_COUNT == SumField::SumCount as usize);
    assert!(SUM_CORRECT == SumField::SumCorrect as usize && SUM_TIES == SumField::SumTies as usize);
    assert!(SUM_LOGIT == SumField::SumLogit as usize);
};

/// Gradients of each comparison: by its argument, and by its centring term.
fn gradient_pieces<D: Device>(scratch: &mut Scratch<'_, D>, comparisons: usize) -> [Piece; 2] {
    [scratch.request::<f32>(comparisons), scratch.request::<f32>(comparisons)]
}

/// Bytes of scratch memory of [`preference_fwd`].
pub(super) fn preference_scratch<D: Device, A: Element>(k: &Kernels<D, A>, comparisons: usize) -> Result<usize> {
    let mut scratch = k.scratch()?;
    gradient_pieces(&mut scratch, comparisons);
    Ok(scratch.requested())
}

pub(super) fn preference_fwd<D: Device, A: Element>(
    k: &Kernels<D, A>,
    mut a: PreferenceFwd<'_, Kernels<D, A>>,
) -> Result<()> {
    let (curve, smoothing) = match a.curve {
        Curve::Sigmoid { smoothing } => (launch::Curve::Sigmoid, smoothing),
        Curve::Robust { smoothing } => (launch::Curve::Robust, smoothing),
        Curve::Hinge => (launch::Curve::Hinge, 0.0),
        Curve::Ipo => (launch::Curve::Ipo, 0.0),
    };
    let mut scratch = k.scratch()?;
    let [slopes, center_slopes] = gradient_pieces(&mut scratch, a.comparisons);
    scratch.take()?;
    let t = &a.table;
    launch::PreferenceFwd {
        score: read(a.score),
        reference: read_option(a.reference),
        term_sequence: read(t.term_sequence),
        term_sign: read(t.term_sign),
        kind: read(t.kind),
        scale: read(t.scale),
        margin: read(t.margin),
        weight: read(t.weight),
        detached_clip: read(t.detached_clip),
        kind_scale: read(t.kind_scale),
        use_offsets: read(t.use_offsets),
        uses: read(t.uses),
        direct: read_option(a.direct),
        loss: write(&mut a.loss),
        logit: write(&mut a.logit),
        dscore: write(&mut a.dscore),
        sums: write(&mut a.sums),
        slopes: scratch.write(slopes),
        center_slopes: scratch.write(center_slopes),
        seqs: int(a.seqs)?,
        comparisons: int(a.comparisons)?,
        curve,
        smoothing: smoothing as f32,
        rest: (1.0 - smoothing) as f32,
        norm: (1.0 - 2.0 * smoothing) as f32,
        center: a.center as f32,
    }
    .launch(&k.device, 1, 0)
}

#[cfg(test)]
mod tests {
    use std::ffi::c_void;

    use super::super::device::Grid;
    use super::super::emulator::Emulator;
    use super::*;

    #[test]
    fn an_unknown_curve_traps() {
        let Ok(device) = Emulator::new() else {
            println!("SKIPPED: this build has no emulator");
            return;
        };
        // One comparison of weight 1 without terms, over no sequences.
        let memory = |values: &[u32]| {
            let mut memory = device.allocate(64).unwrap();
            device.upload(&mut memory, 0, bytemuck::cast_slice(values)).unwrap();
            memory
        };
        let (unused_terms, ones, zeros) = (memory(&[u32::MAX; 4]), memory(&[1.0f32.to_bits(); 4]), memory(&[0; 8]));
        let out: Vec<_> = (0..5).map(|_| memory(&[0; 15])).collect();
        let run = |curve: i32| {
            let [terms, ones, zeros] = [&unused_terms, &ones, &zeros].map(Emulator::address);
            let [loss, logit, sums, slopes, center_slopes] = [0, 1, 2, 3, 4].map(|i| Emulator::address(&out[i]));
            let pointers = [
                zeros,
                0,
                terms,
                zeros,
                zeros,
                ones,
                zeros,
                ones,
                zeros,
                zeros,
                zeros,
                zeros,
                0,
                loss,
                logit,
                zeros,
                sums,
                slopes,
                center_slopes,
            ];
            let (numbers, factors) = ([0, 1, curve], [0.0f32, 1.0, 1.0, 0.0]);
            let mut parameters: Vec<*mut c_void> = pointers.iter().map(|p| (&raw const *p).cast_mut().cast()).collect();
            parameters.extend(numbers.iter().map(|n| (&raw const *n).cast_mut().cast::<c_void>()));
            parameters.extend(factors.iter().map(|x| (&raw const *x).cast_mut().cast::<c_void>()));
            let kernel = launch::PreferenceFwd::kernel();
            assert_eq!(parameters.len(), kernel.parameters.len());
            // SAFETY: the parameters have the order and types of the kernel's fields, except that
            // the curve may be no enumerator, and the arrays cover one comparison.
            unsafe { device.launch(kernel, Grid([1, 1, 1]), 0, &mut parameters) }
        };
        for curve in launch::Curve::ALL {
            run(curve as i32).unwrap();
        }
        let error = run(launch::Curve::ALL.len() as i32).unwrap_err().to_string();
        assert!(error.contains("unknown curve"), "{error}");
    }
}
