//! Puts the code of a daemon at rest side by side; see `order.ld`.

use std::env;

fn main() {
    println!("cargo::rerun-if-changed=order.ld");
    // Other builds are for tests, where it would only cost time.
    if env::var("PROFILE").as_deref() == Ok("release") {
        let folder = env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
        println!("cargo::rustc-link-arg-bins=-Wl,-T,{folder}/order.ld");
    }
}
