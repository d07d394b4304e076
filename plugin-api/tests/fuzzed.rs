//! The entry functions of the fuzz targets over their kept corpora.
#![cfg(feature = "core")]

use std::path::{Path, PathBuf};

use toru_plugin_api::frame::fuzz_decoder;
use toru_plugin_api::from_core::fuzz_core_message;
use toru_plugin_api::from_plugin::fuzz_plugin_message;
use toru_plugin_api::metadata::fuzz_metadata;

#[path = "../../http/tests/it/corpus.rs"]
mod corpus;

fn folder(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target)
}

#[test]
fn frames() {
    corpus::replay(&folder("frame"), fuzz_decoder);
}

#[test]
fn messages_of_plugins() {
    corpus::replay(&folder("plugin_message"), fuzz_plugin_message);
}

#[test]
fn messages_of_the_core() {
    corpus::replay(&folder("core_message"), fuzz_core_message);
}

#[test]
fn metadata() {
    corpus::replay(&folder("metadata"), fuzz_metadata);
}
