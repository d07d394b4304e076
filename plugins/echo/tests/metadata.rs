//! The built binary introduces itself by the name it was copied to.

use std::path::Path;
use std::process::Command;

use toru_plugin_api::PluginMetadata;

fn metadata(binary: &Path) -> PluginMetadata {
    let output = Command::new(binary).arg("--metadata").output().expect("the binary was built for this test");
    assert!(output.status.success());
    PluginMetadata::parse(&output.stdout).expect("valid metadata")
}

#[test]
fn its_own_name_is_echo() {
    let metadata = metadata(Path::new(env!("CARGO_BIN_EXE_toru-plugin-echo")));
    assert_eq!((&*metadata.id, &*metadata.route), ("echo", "/echo"));
    assert_eq!(metadata.protocol.as_str(), "1.1");
}

#[test]
fn a_copy_is_another_plugin() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    for (name, id) in [("echo-17.binary", "echo-17"), ("e", "e"), ("not an id", "echo")] {
        let copy = dir.path().join(name);
        // A link and not a copy: only the name matters, and a file that is being written cannot run.
        std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_toru-plugin-echo"), &copy).expect("a link");
        let metadata = metadata(&copy);
        assert_eq!((&*metadata.id, metadata.route), (id, format!("/{id}")));
    }
}
