//! Evaluation, benchmark records, step plans, the hardware sampler, kernel resources and machine code, import order
//! and documents.

mod bench_rows;
mod evaluation {
    //! Measures of scored data: statistics against scipy, measures and breakdowns by hand,
    //! prompt-blindness probes, and the paired comparison. Only the probes need a model.

    mod benchmarks;
    mod blindness;
    mod comparison;
    mod measures;
    mod statistics;
}
mod fault_coverage;
mod guard;
mod hardware;
mod imports;
mod kernel_resources;
mod own_op;
mod plan;
mod public_api;
mod readme;
mod sass;
mod test_names;
