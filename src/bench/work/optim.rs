//! Gradient norm and AdamW update.

use std::sync::Arc;

use super::{Call, Part, stored_as_acc};
use crate::Result;
use crate::backend::Backend;
use crate::backend::contract::*;
use crate::bench::operand::{Axis, Cursor, Fill, ONE, Operand, Selection, spread};

/// Norm of a gradient.
#[derive(Clone, Debug)]
pub struct GradientNorm {
    pub len: usize,
}

/// Control vector before an update: learning rate, number of updates, norm, clip factor, apply,
/// skipped.
const CONTROLS: [f64; CONTROL] = [1e-6, 10.0, 1.0, 0.5, 1.0, 0.0];

fn control() -> Operand {
    Operand::acc("control", (Axis::Whole, CONTROL), ONE, Fill::Values(Arc::new(CONTROLS.to_vec())))
}

impl Call for GradientNorm {
    fn op(&self) -> &'static str {
        "grad_norm"
    }

    fn sizes(&self) -> Vec<(&'static str, usize)> {
        vec![("len", self.len)]
    }

    fn operands(&self) -> Vec<Operand> {
        vec![Operand::acc("grads", (Axis::Whole, self.len), ONE, Fill::Normal(0.01)), control().written()]
    }

    fn call<B: Backend>(&self, on: &B, mut o: Cursor<'_, B>) -> Result<()> {
        on.grad_norm(GradNorm { len: self.len, max_norm: 1.0, grads: o.acc()?, known: None, control: o.acc_out()? })
    }

    /// Squares do not cancel. They are summed within slices, then over slices.
    fn tolerance(&self, precision: Precision, _: &str) -> Tolerance {
        Tolerance::dot(stored_as_acc(precision), 1024)
    }

    fn parts(&self) -> Vec<Part<Self>> {
        Part::whole(self)
    }
}

/// An AdamW update.
#[derive(Clone, Debug)]
pub struct AdamWUpdate {
    pub len: usize,
    pub decayed: usize,
    /// Whether there is a master copy of the weights in the accumulation precision.
    pub master: bool,
}

impl Call for AdamWUpdate {
    fn op(&self) -> &'static str {
        "adamw"
    }

    fn sizes(&self) -> Vec<(&'static str, usize)> {
        vec![("len", self.len)]
    }

    fn operands(&self) -> Vec<Operand> {
        let l = (Axis::Output, self.len);
        let state = |name, fill| Operand::acc(name, l, ONE, fill).written();
        let mut operands = vec![
            control(),
            Operand::acc("grads", l, ONE, Fill::Normal(0.01)),
            state("m", Fill::Normal(1e-3)),
            state("v", Fill::Square(1e-2)),
        ];
        if self.master {
            operands.push(state("master", Fill::CopyOf("params", 0.02)));
        }
        operands.push(Operand::act("params", l, ONE, Fill::Normal(0.02)).written());
        operands
    }

    fn call<B: Backend>(&self, on: &B, mut o: Cursor<'_, B>) -> Result<()> {
        let (control, grads, m, v) = (o.acc()?, o.acc()?, o.acc_out()?, o.acc_out()?);
        on.adamw(AdamW {
            len: self.len,
            decayed: self.decayed,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.01,
            control,
            grads,
            m,
            v,
            master: self.master.then(|| o.acc_out()).transpose()?,
            params: o.act_out()?,
        })
    }

    fn tolerance(&self, precision: Precision, name: &str) -> Tolerance {
        Tolerance::dot(if name == "params" { precision } else { stored_as_acc(precision) }, 4)
    }

    fn parts(&self) -> Vec<Part<Self>> {
        let places = spread(self.len, 4096);
        let decayed = places.iter().filter(|&&place| place < self.decayed).count();
        let call = Self { len: places.len(), decayed, ..*self };
        vec![Part { call, selection: Selection::default().with(Axis::Output, places), compared: &[] }]
    }
}
