//! The preference loss (`kernels/preference.cu`).

use super::device::{Device, Element};
use super::launchers::{self as launch, SumField};
use super::{Kernels, Piece, Scratch, int, own_curve, read, read_option, write};
use crate::Result;
use crate::backend::contract::*;

const _: () = {
    assert!(TERMS == launch::TERMS && KINDS == launch::KINDS && SUM_FIELDS == launch::SUM_FIELDS);
    assert!(SUM_FIELDS == SumField::ALL.len());
    assert!(SUM_LOSS == SumField::SumLoss as usize && SUM_COUNT == SumField::SumCount as usize);
    assert!(SUM_CORRECT == SumField::SumCorrect as usize && SUM_TIES == SumField::SumTies as usize);
    assert!(SUM_LOGIT == SumField::SumLogit as usize);
    assert!(ALPHA_BOUND == launch::ALPHA_LIMIT as f64);
};

/// Gradients of each comparison with respect to its positive terms, its negative terms and its centring term.
fn gradient_pieces<D: Device>(scratch: &mut Scratch<'_, D>, comparisons: usize) -> [Piece; 3] {
    std::array::from_fn(|_| scratch.request::<f32>(comparisons))
}

/// Returns the kernel's curve, its label smoothing (0 if it has none) and its temperature (1 if it has none).
/// Returns `None` for a user-defined curve, which no kernel implements.
fn curve_parameters(curve: Curve) -> Option<(launch::Curve, f64, f64)> {
    Some(match curve {
        Curve::Own(_) => return None,
        Curve::Sigmoid { smoothing } => (launch::Curve::Sigmoid, smoothing, 1.0),
        Curve::Robust { smoothing } => (launch::Curve::Robust, smoothing, 1.0),
        Curve::Hinge => (launch::Curve::Hinge, 0.0, 1.0),
        Curve::Ipo => (launch::Curve::Ipo, 0.0, 1.0),
        Curve::Exo { smoothing } => (launch::Curve::Exo, smoothing, 1.0),
        Curve::DiscoPop { temperature } => (launch::Curve::DiscoPop, 0.0, temperature),
        Curve::ApoZero => (launch::Curve::ApoZero, 0.0, 1.0),
        Curve::ApoDown => (launch::Curve::ApoDown, 0.0, 1.0),
        Curve::NcaPair => (launch::Curve::NcaPair, 0.0, 1.0),
        Curve::BcoPair => (launch::Curve::BcoPair, 0.0, 1.0),
        Curve::SppoHard => (launch::Curve::SppoHard, 0.0, 1.0),
        Curve::Aot { smoothing } => (launch::Curve::Aot, smoothing, 1.0),
        Curve::AotUnpaired { smoothing } => (launch::Curve::AotUnpaired, smoothing, 1.0),
        Curve::Kto => (launch::Curve::Kto, 0.0, 1.0),
        Curve::ApoZeroUnpaired => (launch::Curve::ApoZeroUnpaired, 0.0, 1.0),
    })
}

/// Returns the kernel's link, and its alpha - 1 (0 if it has no alpha).
fn link_parameters(link: Link) -> (launch::Link, f64) {
    match link {
        Link::Identity => (launch::Link::Identity, 0.0),
        Link::ForwardKl => (launch::Link::ForwardKl, 0.0),
        Link::JensenShannon => (launch::Link::JensenShannon, 0.0),
        Link::Alpha { alpha } => (launch::Link::Alpha, alpha - 1.0),
        Link::Odds => (launch::Link::Odds, 0.0),
    }
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
    let Some(curves) = a.curves.iter().map(|part| curve_parameters(part.curve)).collect::<Option<Vec<_>>>() else {
        return own_curve::preference_fwd(k, a);
    };
    let mut scratch = k.scratch()?;
    let [positive_slopes, negative_slopes, center_slopes] = gradient_pieces(&mut scratch, a.comparisons);
    let sorts = a.curves.iter().any(|part| part.curve.sorts());
    let keys = if sorts { a.comparisons } else { 0 };
    let [x_of, y_of, sorted_x, sorted_y] = std::array::from_fn(|_| scratch.request::<f32>(keys));
    scratch.take()?;
    let (link, power) = link_parameters(a.link);
    let t = &a.table;
    for (number, (part, (curve, smoothing, temperature))) in a.curves.iter().zip(curves).enumerate() {
        let is_first = number == 0;
        launch::PreferenceFwd {
            score: read(a.score),
            reference: read_option(a.reference),
            inverse_rows: read_option(a.inverse_rows.filter(|_| part.per_token)),
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
            doubled: read_option(a.pair_weights.map(|of| of.doubled)),
            plain: read_option(a.pair_weights.map(|of| of.plain)),
            // Later curves add to the gradient of the earlier ones.
            direct: if is_first { read_option(a.direct) } else { read(a.dscore.as_view()) },
            loss: write(&mut a.loss),
            logit: write(&mut a.logit),
            dscore: write(&mut a.dscore),
            sums: write(&mut a.sums),
            positive_slopes: scratch.write(positive_slopes),
            negative_slopes: scratch.write(negative_slopes),
            center_slopes: scratch.write(center_slopes),
            x_of: scratch.write(x_of),
            y_of: scratch.write(y_of),
            sorted_x: scratch.write(sorted_x),
            sorted_y: scratch.write(sorted_y),
            seqs: int(a.seqs)?,
            comparisons: int(a.comparisons)?,
            curve,
            smoothing: smoothing as f32,
            rest: (1.0 - smoothing) as f32,
            norm: (1.0 - 2.0 * smoothing) as f32,
            temperature: temperature as f32,
            link,
            power: power as f32,
            curve_weight: part.weight as f32,
            is_first: i32::from(is_first),
            // The centring term occurs once per comparison, so only the first curve adds it.
            center: if is_first { a.center as f32 } else { 0.0 },
        }
        .launch(&k.device, 1, 0)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::ffi::c_void;

    use super::super::device::Grid;
    use super::super::emulator::Emulator;
    use super::*;

    #[test]
    fn unknown_curves_and_links_trap() {
        let Ok(device) = Emulator::new() else {
            println!("SKIPPED: this build has no emulator");
            return;
        };
        // One comparison of weight 1 without terms, and one sequence that no comparison uses.
        let memory = |values: &[u32]| {
            let mut memory = device.allocate(64).unwrap();
            device.upload(&mut memory, 0, bytemuck::cast_slice(values)).unwrap();
            memory
        };
        let (unused_terms, ones, zeros) = (memory(&[u32::MAX; 4]), memory(&[1.0f32.to_bits(); 4]), memory(&[0; 8]));
        let out: Vec<_> = (0..10).map(|_| memory(&[0; 15])).collect();
        let run = |curve: i32, link: i32| {
            let [terms, ones, zeros] = [&unused_terms, &ones, &zeros].map(Emulator::address);
            let [loss, logit, sums, positive, negative, center] =
                [0, 1, 2, 3, 4, 5].map(|i| Emulator::address(&out[i]));
            let keys = [6, 7, 8, 9].map(|i: usize| Emulator::address(&out[i]));
            let pointers = [
                zeros, 0, 0, terms, zeros, zeros, ones, zeros, ones, zeros, zeros, zeros, zeros, 0, 0, 0, loss, logit,
                zeros, sums, positive, negative, center, keys[0], keys[1], keys[2], keys[3],
            ];
            let (numbers, factors) = ([1, 1, curve], [0.25f32, 0.75, 0.5, 1.0]);
            let (linked, rest) = ([link], [1.0f32, 1.0]);
            let (first, last) = ([1], [0.0f32]);
            let mut parameters: Vec<*mut c_void> = pointers.iter().map(|p| (&raw const *p).cast_mut().cast()).collect();
            parameters.extend(numbers.iter().map(|n| (&raw const *n).cast_mut().cast::<c_void>()));
            parameters.extend(factors.iter().map(|x| (&raw const *x).cast_mut().cast::<c_void>()));
            parameters.extend(linked.iter().map(|n| (&raw const *n).cast_mut().cast::<c_void>()));
            parameters.extend(rest.iter().map(|x| (&raw const *x).cast_mut().cast::<c_void>()));
            parameters.extend(first.iter().map(|n: &i32| (&raw const *n).cast_mut().cast::<c_void>()));
            parameters.extend(last.iter().map(|x| (&raw const *x).cast_mut().cast::<c_void>()));
            let kernel = launch::PreferenceFwd::kernel();
            assert_eq!(parameters.len(), kernel.parameters.len());
            // SAFETY: the parameters have the order and types of the kernel's fields, and the arrays cover
            // one comparison. The kernel traps on a curve or link outside of the enumeration.
            unsafe { device.launch(kernel, Grid([1, 1, 1]), 0, &mut parameters) }
        };
        for curve in launch::Curve::ALL {
            run(curve as i32, 0).unwrap();
        }
        for link in launch::Link::ALL {
            run(0, link as i32).unwrap();
        }
        let error = run(launch::Curve::ALL.len() as i32, 0).unwrap_err().to_string();
        assert!(error.contains("unknown curve"), "{error}");
        let error = run(0, launch::Link::ALL.len() as i32).unwrap_err().to_string();
        assert!(error.contains("unknown link"), "{error}");
    }
}
