//! The built binary introduces itself as its documentation says.

use std::process::Command;

use toru_plugin_api::PluginMetadata;

#[test]
fn metadata() {
    let output = Command::new(env!("CARGO_BIN_EXE_toru-plugin-hello-rust"))
        .arg("--metadata")
        .output()
        .expect("the binary was built for this test");
    assert!(output.status.success());
    let metadata = PluginMetadata::parse(&output.stdout).expect("valid metadata");
    assert_eq!((&*metadata.id, &*metadata.route), ("hello-rust", "/hello-rust"));
    assert_eq!(metadata.protocol.as_str(), "1.1");
}
