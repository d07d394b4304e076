#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| toru_plugin_api::metadata::fuzz_metadata(data));
