//! cuBLASLt as a peer of the GEMM kernels, on the same operands.

use super::measure::PreparedCall;
use super::operand::OperandSet;
use super::rates::{Peer, Peers};
use super::work::Work;
use super::work::linear::{Linear, Pass};
use crate::Result;
use crate::backend::contract::Precision;
use crate::backend::kernels::device::Element;
use crate::backend::kernels::driver::Driver;
use crate::backend::kernels::driver::cublaslt::{Addresses, CublasLt, Layout, Product, Spec};
use crate::backend::kernels::{Kernels, address};
use crate::backend::{Backend, View};

/// Runs `work` with cuBLASLt, if it can be loaded.
pub fn with_cublaslt<A: Element, R>(
    on: &Kernels<Driver, A>,
    work: impl FnOnce(&Peers<'_, Kernels<Driver, A>>) -> R,
) -> R {
    match CublasLt::new(on.device()) {
        Ok(library) => {
            let peer: Box<dyn Peer<Kernels<Driver, A>> + '_> = Box::new(CublasLtPeer { library: &library });
            work(&Peers { present: vec![peer], absent: Vec::new() })
        }
        Err(why) => work(&Peers { present: Vec::new(), absent: vec![("cuBLASLt".into(), why.to_string())] }),
    }
}

struct CublasLtPeer<'l, 'd> {
    library: &'l CublasLt<'d>,
}

/// GEMM of a linear layer's call.
fn spec(linear: &Linear, operands: Precision) -> Spec {
    let d = linear.dims;
    let (layout, m, n, k) = match linear.pass {
        Pass::Input => (Layout::Nn, d.tokens, d.inputs, d.outputs),
        Pass::Weight | Pass::Norms => (Layout::Tn, d.outputs, d.inputs, d.tokens),
        Pass::Forward | Pass::Bias | Pass::Residual => (Layout::Nt, d.tokens, d.outputs, d.inputs),
    };
    let (bias, residual) = (linear.pass == Pass::Bias, linear.pass == Pass::Residual);
    Spec { layout, m, n, k, operands, wide: matches!(linear.pass, Pass::Weight | Pass::Norms), bias, residual }
}

/// Operand addresses of a linear layer's call.
fn addresses<A: Element>(linear: &Linear, set: &mut OperandSet<Kernels<Driver, A>>) -> Result<Addresses> {
    let mut o = set.cursor();
    let act = |view: View<'_, <Kernels<Driver, A> as Backend>::Act>| address(view);
    let (a, b) = (act(o.act()?), act(o.act()?));
    let none = Addresses { a, b, c: 0, bias: 0, residual: 0 };
    Ok(match linear.pass {
        Pass::Weight | Pass::Norms => Addresses { c: address(o.acc()?), ..none },
        Pass::Bias => Addresses { bias: act(o.act()?), c: act(o.act()?), ..none },
        Pass::Residual => Addresses { residual: act(o.act()?), c: act(o.act()?), ..none },
        Pass::Forward | Pass::Input => Addresses { c: act(o.act()?), ..none },
    })
}

/// Calls per algorithm when the fastest of the proposed ones is selected.
const TRIALS: usize = 5;

/// Selects the fastest of the proposed algorithms on these operands.
fn choose<A: Element>(on: &Kernels<Driver, A>, gemm: &mut Product<'_, '_>, at: Addresses) -> Result<()> {
    let mut best = (f64::INFINITY, 0);
    for which in 0..gemm.algorithms() {
        gemm.choose(which);
        // SAFETY: these are the operands of the call that the GEMM was created for; `spec` and
        // `addresses` agree on their order.
        unsafe { gemm.call(at) }?;
        let from = on.stamp()?;
        for _ in 0..TRIALS {
            // SAFETY: as above.
            unsafe { gemm.call(at) }?;
        }
        let seconds = on.seconds_between(&from, &on.stamp()?)?;
        if seconds < best.0 {
            best = (seconds, which);
        }
    }
    gemm.choose(best.1);
    Ok(())
}

impl<A: Element> Peer<Kernels<Driver, A>> for CublasLtPeer<'_, '_> {
    fn name(&self) -> String {
        self.library.name()
    }

    fn prepare<'a>(
        &'a self,
        on: &'a Kernels<Driver, A>,
        work: &Work,
        set: &mut OperandSet<Kernels<Driver, A>>,
    ) -> Result<PreparedCall<'a, Kernels<Driver, A>>> {
        let Work::Linear(linear) = work else { return Ok(None) };
        let linear = linear.clone();
        let mut gemm = self.library.product(spec(&linear, A::PRECISION))?;
        choose(on, &mut gemm, addresses(&linear, set)?)?;
        Ok(Some(Box::new(move |_, set| {
            let at = addresses(&linear, set)?;
            // SAFETY: as in `choose`.
            unsafe { gemm.call(at) }
        })))
    }
}
