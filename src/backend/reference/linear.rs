//! Linear layers and their gradients.

use super::{Reference, dot};
use crate::backend::Write;
use crate::backend::contract::*;

type R = Reference;

pub fn linear_fwd(a: LinearFwd<'_, R>) {
    let (d, x, weight, y) = (a.dims, a.x.slice(), a.weight.slice(), a.y.into_slice());
    let (bias, residual) = (a.bias.map(|b| b.slice()), a.residual.map(|r| r.slice()));
    for t in 0..d.tokens {
        for o in 0..d.outputs {
            let product = dot(&x[t * d.inputs..][..d.inputs], &weight[o * d.inputs..][..d.inputs]);
            let residual = residual.map_or(0.0, |r| r[t * d.outputs + o]);
            y[t * d.outputs + o] = product + bias.map_or(0.0, |b| b[o]) + residual;
        }
    }
}

pub fn linear_bwd_input(a: LinearBwdInput<'_, R>) {
    let (d, dy, weight, dx) = (a.dims, a.dy.slice(), a.weight.slice(), a.dx.into_slice());
    if a.write == Write::Overwrite {
        dx.fill(0.0);
    }
    for t in 0..d.tokens {
        for o in 0..d.outputs {
            for i in 0..d.inputs {
                dx[t * d.inputs + i] += dy[t * d.outputs + o] * weight[o * d.inputs + i];
            }
        }
    }
}

pub fn linear_bwd_weight(a: LinearBwdWeight<'_, R>) {
    let (d, dy, x, dweight) = (a.dims, a.dy.slice(), a.x.slice(), a.dweight.into_slice());
    if a.write == Write::Overwrite {
        dweight.fill(0.0);
    }
    for t in 0..d.tokens {
        for o in 0..d.outputs {
            for i in 0..d.inputs {
                dweight[o * d.inputs + i] += dy[t * d.outputs + o] * x[t * d.inputs + i];
            }
        }
    }
    if let Some(norms) = a.norms {
        let (norms, across) = (norms.into_slice(), d.inputs.div_ceil(PATCH.1));
        norms.fill(0.0);
        for o in 0..d.outputs {
            for i in 0..d.inputs {
                norms[o / PATCH.0 * across + i / PATCH.1] += dweight[o * d.inputs + i].powi(2);
            }
        }
        norms.iter_mut().for_each(|norm| *norm = norm.sqrt());
    }
}

pub fn bias_bwd(a: BiasBwd<'_, R>) {
    let (d, dy, dbias) = (a.dims, a.dy.slice(), a.dbias.into_slice());
    if a.write == Write::Overwrite {
        dbias.fill(0.0);
    }
    for t in 0..d.tokens {
        for o in 0..d.outputs {
            dbias[o] += dy[t * d.outputs + o];
        }
    }
}
