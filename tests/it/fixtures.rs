//! The fixtures tried alone: a test that trusts a broken fixture shows nothing.

use std::{
    fs,
    io::{BufReader, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use serde_json::{Value, json};
use toru_tests::{
    IO_URING, binary, output, spawn, stage_faulty, wait_for,
    wire::{Framing, frame, read_frame},
};

/// A plugin started by hand, killed on drop.
struct Alone {
    folder: tempfile::TempDir,
    child: Child,
}

impl Alone {
    fn start(name: &str, stage: impl Fn(&Path)) -> Self {
        let folder = tempfile::tempdir_in("/tmp").unwrap();
        stage(folder.path());
        let socket = folder.path().join("s");
        let child = spawn(
            Command::new(folder.path().join(format!("{name}.binary")))
                .env("TORU_PLUGIN_SOCKET", &socket)
                .stderr(Stdio::inherit()),
        );
        let alone = Self { folder, child };
        wait_for("the plugin to listen", || alone.try_connect());
        alone
    }

    fn faulty(command: Value) -> Self {
        Self::start("f", |folder| stage_faulty(folder, "f", &command))
    }

    fn try_connect(&self) -> Option<UnixStream> {
        UnixStream::connect(self.folder.path().join("s")).ok()
    }

    fn connect(&self) -> (UnixStream, BufReader<UnixStream>) {
        let stream = self.try_connect().unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let reader = BufReader::new(stream.try_clone().unwrap());
        (stream, reader)
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn http(id: &str, path: &str) -> Value {
    json!({
        "type": "http",
        "timestamp": "2026-01-01T00:00:00.000Z",
        "request_id": id,
        "payload": {
            "type": "http",
            "request_id": id,
            "payload": {"method": "GET", "path": path, "headers": {}, "body": null},
        },
    })
}

fn send(stream: &mut UnixStream, message: &Value) {
    stream.write_all(&frame(message.to_string().as_bytes(), Framing::Length)).unwrap();
}

fn receive(reader: &mut BufReader<UnixStream>) -> Value {
    let text = read_frame(reader, Framing::Length, usize::MAX).unwrap().unwrap();
    serde_json::from_slice(&text).unwrap()
}

#[test]
fn faulty_says_ready_and_answers() {
    let plugin = Alone::faulty(json!({}));
    let (mut stream, mut reader) = plugin.connect();
    send(&mut stream, &json!({"type": "lifecycle", "payload": {"action": "init"}}));
    assert_eq!(receive(&mut reader)["payload"]["action"], "ready");
    send(&mut stream, &json!({"type": "lifecycle", "payload": {"action": "ping", "seq": 9}}));
    assert_eq!(receive(&mut reader)["payload"]["seq"], 9);
    send(&mut stream, &http("r1", "/x?y"));
    let answer = receive(&mut reader);
    assert_eq!(answer["request_id"], "r1");
    assert!(answer["payload"]["body"].as_str().unwrap().contains("/x?y"));
}

#[test]
fn faulty_answers_out_of_order() {
    let plugin = Alone::faulty(json!({"do": "unordered"}));
    let (mut stream, mut reader) = plugin.connect();
    let asked: Vec<String> = (0..50).map(|number| format!("r{number}")).collect();
    for id in &asked {
        send(&mut stream, &http(id, &format!("/{id}")));
    }
    let mut answered: Vec<String> =
        asked.iter().map(|_| receive(&mut reader)["request_id"].as_str().unwrap().into()).collect();
    assert_ne!(answered, asked, "in order by chance is one in 50!");
    answered.sort();
    let mut sorted = asked;
    sorted.sort();
    assert_eq!(answered, sorted);
}

#[test]
fn faulty_dies_in_the_middle_of_a_frame() {
    let mut plugin = Alone::faulty(json!({}));
    let (mut stream, mut reader) = plugin.connect();
    send(&mut stream, &http("r1", "/exit-mid-frame"));
    let error = read_frame(&mut reader, Framing::Length, usize::MAX).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::UnexpectedEof);
    assert_eq!(plugin.child.wait().unwrap().code(), Some(9));
}

#[test]
fn faulty_closes_its_socket_and_lives() {
    let mut plugin = Alone::faulty(json!({}));
    let (mut stream, mut reader) = plugin.connect();
    send(&mut stream, &http("r1", "/close-socket"));
    assert!(
        read_frame(&mut reader, Framing::Length, usize::MAX).unwrap().is_none(),
        "closed without an answer"
    );
    wait_for("the socket to go", || plugin.try_connect().is_none().then_some(()));
    assert!(plugin.child.try_wait().unwrap().is_none());
}

fn stage_legacy_rust(folder: &Path) {
    toru_tests::stage_binary(folder, "old", "legacy-rust");
}

fn stage_legacy_python(folder: &Path) {
    // Through a stage, so that the script is the one the daemon gets.
    let stage = toru_tests::Stage::new().legacy_python("old");
    fs::copy(stage.plugins().join("old.binary"), folder.join("old.binary")).unwrap();
}

#[test]
fn legacy_plugins_answer_one_exchange() {
    for stage in [stage_legacy_rust, stage_legacy_python] {
        let plugin = Alone::start("old", stage);
        let (mut stream, mut reader) = plugin.connect();
        send(&mut stream, &http("r1", "/x?y=1"));
        let answer = receive(&mut reader);
        assert_eq!(answer["request_id"], "r1");
        assert!(answer.to_string().contains("/x?y=1"), "{answer}");
    }
}

#[test]
fn legacy_rust_loses_what_follows_the_first_message() {
    let plugin = Alone::start("old", stage_legacy_rust);
    let (mut stream, mut reader) = plugin.connect();
    let mut both = frame(http("r1", "/1").to_string().as_bytes(), Framing::Length);
    both.extend(frame(http("r2", "/2").to_string().as_bytes(), Framing::Length));
    stream.write_all(&both).unwrap();
    assert_eq!(receive(&mut reader)["request_id"], "r1");
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    assert!(
        read_frame(&mut reader, Framing::Length, usize::MAX).unwrap().is_none(),
        "the second message is lost"
    );
}

#[test]
fn legacy_rust_drops_the_connection_over_what_it_does_not_know() {
    let mut half_known = http("r1", "/");
    half_known["payload"].as_object_mut().unwrap().remove("request_id");
    let mut arrays = http("r1", "/");
    arrays["payload"]["payload"]["headers"] = json!({"x": ["1", "2"]});
    for message in
        [json!({"type": "cancel", "timestamp": "", "request_id": "r1", "payload": {}}), half_known, arrays]
    {
        let plugin = Alone::start("old", stage_legacy_rust);
        let (mut stream, mut reader) = plugin.connect();
        send(&mut stream, &message);
        assert!(read_frame(&mut reader, Framing::Length, usize::MAX).unwrap().is_none(), "{message}");
    }
}

#[test]
fn metadata_of_every_fixture_is_one_object() {
    let folder = tempfile::tempdir_in("/tmp").unwrap();
    stage_legacy_rust(folder.path());
    stage_faulty(folder.path(), "f", &json!({"metadata": {"version": null}}));
    for (file, id) in [("old.binary", "old"), ("f.binary", "f")] {
        let path: PathBuf = folder.path().join(file);
        let printed = output(Command::new(path).arg("--metadata"));
        assert!(printed.status.success());
        let metadata: Value = serde_json::from_slice(&printed.stdout).unwrap();
        assert_eq!(metadata["id"], id);
    }
}

#[test]
fn no_uring_refuses_the_ring_and_nothing_else() {
    // Exec worked, files open, and the one syscall fails: python is the shortest caller of it.
    let program = "import ctypes, os, sys\n\
                   libc = ctypes.CDLL(None, use_errno=True)\n\
                   assert libc.syscall(425, 2, 0) == -1\n\
                   print(ctypes.get_errno(), os.path.exists('/proc'))";
    let printed = output(
        Command::new(binary("refuse")).args([IO_URING, "python3", "-c", program]).stdin(Stdio::null()),
    );
    assert_eq!(String::from_utf8_lossy(&printed.stdout).trim(), "1 True", "{printed:?}");
}
