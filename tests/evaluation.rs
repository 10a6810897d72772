//! Measures of scored data: statistics against scipy, measures and divisions by hand, probes of prompt-blindness, and
//! the paired comparison. No model is needed but for the probes.

mod evaluation {
    mod blindness;
    mod comparison;
    mod measures;
    mod statistics;
}
