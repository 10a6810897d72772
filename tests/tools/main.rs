//! Evaluation statistics, benchmark records, plans, the hardware sampler, and the documents.

mod bench_rows;
mod evaluation {
    //! Measures of scored data: statistics against scipy, measures and divisions by hand, probes of prompt-blindness, and
    //! the paired comparison. No model is needed but for the probes.

    mod blindness;
    mod comparison;
    mod measures;
    mod statistics;
}
mod hardware;
mod imports;
mod kernel_resources;
mod plan;
mod readme;
