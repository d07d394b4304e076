//! The example plugins spoken to by hand, without the core, as their authors do while debugging.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use serde_json::{Value, json};
use toru_tests::{
    Stage, binary, has_program, long_output, output, output_with, repository, spawn, wait_for,
    write_executable,
};

/// A plugin run by hand, stopped on drop.
pub struct ByHand {
    folder: tempfile::TempDir,
    child: Child,
}

impl ByHand {
    pub fn start(program: impl FnOnce(&Path) -> Command) -> Self {
        let folder = tempfile::tempdir_in("/tmp").unwrap();
        let socket = folder.path().join("s");
        let mut command = program(folder.path());
        command.env("TORU_PLUGIN_SOCKET", &socket).stdin(Stdio::null()).stdout(Stdio::null());
        let child = spawn(&mut command);
        wait_for("the plugin to listen", || socket.exists().then_some(()));
        Self { folder, child }
    }

    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("s")
    }

    /// The debugging recipe: one line into socat, what comes out of it.
    fn say(&self, line: &Value) -> Vec<Value> {
        let address = format!("UNIX-CONNECT:{}", self.socket().display());
        let printed = output_with(
            // It waits this long for answers after the end of its input, if none closes before.
            Command::new("socat").args(["-t", "20", "-", &address]),
            format!("{line}\n").as_bytes(),
        );
        assert!(printed.status.success(), "{printed:?}");
        String::from_utf8(printed.stdout)
            .unwrap()
            .lines()
            .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
            .collect()
    }
}

impl Drop for ByHand {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn hello_python(folder: &Path) -> Command {
    let path = folder.join("hello-python.binary");
    stage_hello_python(folder);
    Command::new(path)
}

/// The script and the package beside it, as the demo lays them out.
fn stage_hello_python(folder: &Path) {
    let plugin = repository().join("plugins/hello-python");
    let script = fs::read_dir(&plugin)
        .unwrap()
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.is_file() && fs::read(path).is_ok_and(|text| text.starts_with(b"#!")))
        .unwrap_or_else(|| panic!("no script in {}", plugin.display()));
    let text = fs::read_to_string(script).unwrap();
    write_executable(&folder.join("hello-python.binary"), &text);
    let package = repository().join("plugin-api/python/src/toru_plugin");
    let copied = output(Command::new("cp").arg("-r").arg(package).arg(folder.join("toru_plugin")));
    assert!(copied.status.success(), "{copied:?}");
}

#[test]
fn plugins_answer_a_person_with_socat() {
    if !has_program("socat") {
        println!("skipped: no socat here");
        return;
    }
    let rust = |_: &Path| Command::new(binary("toru-plugin-hello-rust"));
    for plugin in [ByHand::start(rust), ByHand::start(hello_python)] {
        let said = plugin.say(&json!({
            "type": "lifecycle",
            "timestamp": "2025-12-30T12:00:00Z",
            "payload": {"action": "init", "instance_id": "test", "protocol": "1.1"},
        }));
        assert_eq!(said[0]["payload"]["action"], "ready", "{said:?}");
        let said = plugin.say(&json!({
            "type": "lifecycle",
            "timestamp": "2025-12-30T12:00:00Z",
            "payload": {"action": "ping", "seq": 7},
        }));
        assert_eq!(said[0]["payload"]["seq"], 7, "{said:?}");
    }
}

#[test]
fn example_plugins_serve_under_the_core() {
    let stage =
        Stage::new().plugin("hello-rust", "toru-plugin-hello-rust").plugin("echo", "toru-plugin-echo");
    stage_hello_python(&stage.plugins());
    let daemon = stage.start();
    for id in ["hello-rust", "hello-python", "echo"] {
        daemon.wait_ready(id);
        let mut client = daemon.client();
        for _ in 0..20 {
            let answer = client.get(&format!("/api/plugins/{id}/"));
            assert_eq!(answer.status, 200, "{id}: {answer:?}");
            assert!(answer.json().is_object(), "{id}");
        }
        assert_eq!(daemon.status(id).unwrap()["protocol"], "1.1");
    }
    let bytes: Vec<u8> = (0..=255).collect();
    let answer =
        daemon.request("POST", "/api/plugins/echo/echo", &[("content-type", "application/x-test")], &bytes);
    assert_eq!(answer.body, bytes);
    assert_eq!(answer.field("content-type"), Some("application/x-test"));
    let answer = daemon.get("/api/plugins/echo/cookies");
    assert_eq!(answer.fields("set-cookie").count(), 2);
    assert_eq!(daemon.get("/api/plugins/echo/status/418").status, 418);
    for id in ["hello-rust", "hello-python", "echo"] {
        assert_eq!(daemon.status(id).unwrap()["restarts"], 0, "{id}");
    }
}

#[test]
fn the_python_sdk_passes_its_own_tests_on_a_bare_interpreter() {
    let package = repository().join("plugin-api/python");
    let printed = long_output(
        Command::new("python3")
            .args(["-m", "unittest", "discover", "-s", "tests"])
            .current_dir(&package)
            .env("PYTHONPATH", package.join("src"))
            .env("PYTHONDONTWRITEBYTECODE", "1"),
    );
    assert!(printed.status.success(), "{}", String::from_utf8_lossy(&printed.stderr));
}
