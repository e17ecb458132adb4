#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| airbundle::fuzzing::settings(bytes));
