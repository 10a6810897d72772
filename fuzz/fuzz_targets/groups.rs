#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| mapl_fuzz::groups(bytes));
