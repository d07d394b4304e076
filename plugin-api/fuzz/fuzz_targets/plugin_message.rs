#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| toru_plugin_api::from_plugin::fuzz_plugin_message(data));
