#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| toru_plugin_api::frame::fuzz_decoder(data));
