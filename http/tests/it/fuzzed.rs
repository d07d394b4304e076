//! The entry functions of the fuzz targets over their kept corpora.

use std::path::Path;

use toru_http::{fuzz_chunked, fuzz_connection, fuzz_target};

use crate::corpus::replay;

fn corpus(target: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target)
}

#[test]
fn connections() {
    replay(&corpus("connection"), fuzz_connection);
}

#[test]
fn chunked_content() {
    replay(&corpus("chunked"), fuzz_chunked);
}

#[test]
fn targets() {
    replay(&corpus("target"), fuzz_target);
}
