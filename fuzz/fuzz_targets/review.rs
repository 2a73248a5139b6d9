#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| wfe_fuzz::review(bytes));
