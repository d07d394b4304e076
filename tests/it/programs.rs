//! Clients that others wrote.

use std::process::Command;

use serde_json::json;
use toru_tests::{Daemon, Stage, has_program, output};

/// Whether `program` is here; says so if it is not.
fn is_here(program: &str) -> bool {
    let here = has_program(program);
    if !here {
        println!("skipped: no {program} here");
    }
    here
}

fn started() -> (Daemon, String) {
    let daemon = Stage::new().faulty("p", &json!({})).start();
    daemon.wait_ready("p");
    let base = format!("http://{}/api/plugins/p", daemon.address());
    (daemon, base)
}

#[test]
fn curl_and_files() {
    if !is_here("curl") {
        return;
    }
    let stage = Stage::new();
    let web = stage.root().join("web");
    std::fs::create_dir(&web).unwrap();
    std::fs::write(web.join("index.html"), "<p>0123456789</p>").unwrap();
    let daemon = stage.argument("--web-root").argument(&web).start();
    let url = format!("http://{}/", daemon.address());
    let curl = |arguments: &[&str]| run("curl", &[&["-sS", "--max-time", "30"], arguments, &[&url]].concat());
    assert_eq!(curl(&[]), "<p>0123456789</p>");
    assert_eq!(curl(&["-r", "3-6"]), "0123");
    assert_eq!(curl(&["-r", "-5"]), "9</p>");
    let status = ["-o", "/dev/null", "-w", "%{http_code}"];
    assert_eq!(curl(&[&status[..], &["-r", "100-"]].concat()), "416");
    let etags = daemon.root().join("etags");
    let etags = etags.to_str().unwrap();
    assert_eq!(curl(&[&status[..], &["--etag-save", etags]].concat()), "200");
    assert_eq!(curl(&[&status[..], &["--etag-compare", etags]].concat()), "304");
    assert!(curl(&["-I"]).contains("content-length: 17\r\n"));
}

/// Runs a program that has to succeed; what it wrote to standard output.
#[track_caller]
fn run(program: &str, arguments: &[&str]) -> String {
    let output = output(Command::new(program).args(arguments));
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{program} {arguments:?}: {}\n{out}\n{err}", output.status);
    out.into_owned()
}

#[test]
fn curl() {
    if !is_here("curl") {
        return;
    }
    let (daemon, base) = started();
    let curl = |arguments: &[&str]| run("curl", &[&["-sS", "--max-time", "30"], arguments].concat());
    let x = format!("{base}/x");
    assert!(curl(&["-i", &x]).starts_with("HTTP/1.1 200 OK\r\n"));
    let old = curl(&["-i", "--http1.0", &x]);
    assert!(old.starts_with("HTTP/1.1 200 OK\r\n") && !old.contains("transfer-encoding"), "{old}");
    let head = curl(&["-I", &x]);
    assert!(head.contains("x-method: HEAD"), "{head}");

    // Uploads: with a length, chunked from a pipe that does not say how long it is, and after `100 Continue`.
    let file = daemon.root().join("upload");
    let content: String = (0..100_000).map(|number| format!("{number}\n")).collect();
    std::fs::write(&file, &content).unwrap();
    let at = |prefix: &str| format!("{prefix}{}", file.display());
    let mirror = format!("{base}/mirror");
    assert_eq!(curl(&["--data-binary", &at("@"), &mirror]), content);
    assert_eq!(curl(&["-T", &at(""), &mirror]), content);
    let chunked = ["-H", "transfer-encoding: chunked", "--data-binary"];
    assert_eq!(curl(&[&chunked[..], &[&at("@"), &mirror]].concat()), content);
    let verbose = output(Command::new("curl").args([
        "-sSv",
        "--max-time",
        "30",
        "-H",
        "expect: 100-continue",
        "--data-binary",
        &at("@"),
        &mirror,
    ]));
    assert_eq!(String::from_utf8_lossy(&verbose.stdout), content);
    assert!(String::from_utf8_lossy(&verbose.stderr).contains("100 Continue"), "{verbose:?}");

    // Several requests over one connection.
    let three = curl(&[
        "-w",
        "%{num_connects}\n",
        "-o",
        "/dev/null",
        &x,
        "-o",
        "/dev/null",
        &x,
        "-o",
        "/dev/null",
        &x,
    ]);
    assert_eq!(three, "1\n0\n0\n");

    let socket = daemon.root().join("control.sock");
    let socket = socket.to_str().unwrap();
    let status = curl(&["--unix-socket", socket, "http://toru/api/plugins/p"]);
    assert!(status.contains("\"running\":true"), "{status}");
    let metrics = curl(&["--unix-socket", socket, "http://toru/metrics"]);
    assert!(metrics.contains("# TYPE "), "{metrics}");
}

#[test]
fn python_http_client() {
    if !is_here("python3") {
        return;
    }
    let (daemon, _) = started();
    let script = r#"
import http.client, json, sys
connection = http.client.HTTPConnection(sys.argv[1], timeout=30)
def ask(*arguments, **keywords):
    connection.request(*arguments, **keywords)
    answer = connection.getresponse()
    return answer, answer.read()
for number in range(50):
    answer, body = ask("GET", f"/api/plugins/p/{number}?a=%20b")
    assert answer.status == 200 and json.loads(body)["path"] == f"/{number}?a=%20b", body
answer, body = ask("HEAD", "/api/plugins/p/x")
assert answer.status == 200 and body == b"", body
every = bytes(range(256)) * 1000
answer, body = ask("POST", "/api/plugins/p/mirror", body=every)
assert body == every
answer, body = ask("POST", "/api/plugins/p/mirror", body=iter([b"a" * 1000, b"b" * 70000]), encode_chunked=True,
                   headers={"Transfer-Encoding": "chunked"})
assert body == b"a" * 1000 + b"b" * 70000, len(body)
answer, body = ask("GET", "/api/plugins/p/status/204")
assert answer.status == 204 and body == b""
answer, body = ask("GET", "/api/plugins/p/pieces")
assert json.loads(body)["path"] == "/pieces"
answer, body = ask("GET", "/nothing")
assert answer.status == 404 and answer.getheader("content-type") == "application/problem+json"
print("good")
"#;
    assert_eq!(run("python3", &["-c", script, &daemon.address().to_string()]), "good\n");
}

#[test]
fn node_fetch() {
    if !is_here("node") {
        return;
    }
    let (_daemon, base) = started();
    let script = r#"
const base = process.argv[1];
const assert = require('assert');
(async () => {
  const answers = await Promise.all(Array.from({ length: 50 }, (_, n) => fetch(`${base}/${n}`).then((a) => a.json())));
  answers.forEach((answer, n) => assert.strictEqual(answer.path, `/${n}`));
  const head = await fetch(`${base}/x`, { method: 'HEAD' });
  assert.strictEqual(head.status, 200);
  assert.strictEqual(await head.text(), '');
  const every = Uint8Array.from({ length: 256000 }, (_, n) => n % 256);
  const mirrored = await fetch(`${base}/mirror`, { method: 'POST', body: every });
  assert.deepStrictEqual(new Uint8Array(await mirrored.arrayBuffer()), every);
  const stream = new ReadableStream({
    start(controller) {
      for (let n = 0; n < 10; n++) controller.enqueue(new TextEncoder().encode('piece '.repeat(1000)));
      controller.close();
    },
  });
  const streamed = await fetch(`${base}/mirror`, { method: 'POST', body: stream, duplex: 'half' });
  assert.strictEqual(await streamed.text(), 'piece '.repeat(10000));
  const cookies = await fetch(`${base}/cookies`);
  assert.deepStrictEqual(cookies.headers.getSetCookie(), ['a=1; Path=/', 'b=2; HttpOnly']);
  const aborted = new AbortController();
  setTimeout(() => aborted.abort(), 50);
  await assert.rejects(fetch(`${base}/never`, { signal: aborted.signal }));
  assert.strictEqual((await fetch(`${base}/status/204`)).status, 204);
  console.log('good');
})().catch((error) => { console.error(error); process.exit(1); });
"#;
    assert_eq!(run("node", &["-e", script, &base]), "good\n");
}

#[test]
fn wrk() {
    if !is_here("wrk") {
        return;
    }
    let (_daemon, base) = started();
    let report = run("wrk", &["-t1", "-c32", "-d2s", &format!("{base}/x")]);
    assert!(report.contains("Requests/sec"), "{report}");
    assert!(!report.contains("Non-2xx") && !report.contains("Socket errors"), "{report}");
}

/// Text without the colours of a terminal.
fn plain(text: &str) -> String {
    let mut parts = text.split("\u{1b}[");
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |plain, part| plain + part.split_once('m').map_or(part, |(_, rest)| rest))
}

#[test]
fn slowhttptest() {
    if !is_here("slowhttptest") {
        return;
    }
    let daemon = Stage::new()
        .set("http.head_timeout_ms", 2000)
        .set("http.body_rate_after_ms", 1000)
        .set("http.write_timeout_ms", 2000)
        .faulty("p", &json!({}))
        .start();
    daemon.wait_ready("p");
    let url = format!("http://{}/api/plugins/p/bytes/1000000", daemon.address());
    // Heads that never end, contents that drip, answers that nobody reads: 200 connections each, for up to 8 s.
    for mode in
        [&["-H", "-i", "1"][..], &["-B", "-i", "1"], &["-X", "-w", "10", "-y", "20", "-n", "5", "-z", "16"]]
    {
        let common = ["-c", "200", "-r", "200", "-l", "8", "-p", "3", "-u", &url];
        let report = plain(&run("slowhttptest", &[mode, &common].concat()));
        // It probes with a plain request of its own meanwhile, and ends early when all of its connections are cut.
        assert!(report.contains("service available:   YES"), "{mode:?}: {report}");
        assert!(!report.contains("service available:   NO"), "{mode:?}: {report}");
        // Who hardly reads does not come to see that it was cut within that time.
        assert!(mode[0] == "-X" || report.contains("No open connections left"), "{mode:?}: {report}");
        let answer = daemon.get("/api/plugins/p/x");
        assert_eq!(answer.status, 200, "{mode:?}: {answer:?}");
    }
}
