#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| toru_http::fuzz_connection(data));
