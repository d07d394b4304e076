//! Static files: what stands under the web root is served as RFC 9110 has it, and nothing else is.

use std::{
    fs,
    io::Read,
    os::unix::fs::{PermissionsExt, symlink},
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use serde_json::json;
use toru_tests::{
    Client, DEADLINE, Daemon, Killed, OPENAT2, Response, Stage, has_program, output, refuse, spawn, wait_for,
};

use crate::http::assert_problem;

/// A stage with an empty web root.
fn stage() -> Stage {
    let stage = Stage::new();
    let web = stage.root().join("web");
    fs::create_dir(&web).unwrap();
    stage.argument("--web-root").argument(web)
}

fn put(daemon_or_stage: &Path, name: &str, content: impl AsRef<[u8]>) {
    let path = daemon_or_stage.join("web").join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
}

/// Bytes that tell their place, so that a piece out of order shows.
fn pattern(count: usize) -> Vec<u8> {
    (0..count as u32 / 4).flat_map(u32::to_be_bytes).collect()
}

#[track_caller]
fn assert_file(answer: &Response, status: u16, content: &str) {
    assert_eq!(
        (answer.status, String::from_utf8_lossy(&answer.body).as_ref()),
        (status, content),
        "{answer:?}"
    );
    assert_eq!(answer.field("x-content-type-options"), Some("nosniff"));
    assert_eq!(answer.field("server"), Some("toru"));
}

#[test]
fn static_files_stand_under_the_web_root_alone() {
    let stage = stage();
    let root = stage.root().to_owned();
    put(&root, "index.html", "<h1>front</h1>");
    put(&root, "sub/app.js", "let x = 1;");
    put(&root, "a b/é.txt", "name");
    put(&root, ".env", "SECRET=1");
    put(&root, ".git/config", "secret");
    put(&root, ".well-known/security.txt", "contact");
    put(&root, "empty.css", "");
    fs::create_dir(root.join("web/bare")).unwrap();
    fs::write(root.join("secret"), "not for you").unwrap();
    symlink(root.join("secret"), root.join("web/link")).unwrap();
    symlink("../secret", root.join("web/out")).unwrap();
    symlink("..", root.join("web/up")).unwrap();
    symlink("sub/app.js", root.join("web/inside.js")).unwrap();
    nix_fifo(&root.join("web/pipe"));
    let daemon = stage.start();

    let answer = daemon.get("/");
    assert_file(&answer, 200, "<h1>front</h1>");
    assert_eq!(answer.field("content-type"), Some("text/html; charset=utf-8"));
    assert_file(&daemon.get("/index.html"), 200, "<h1>front</h1>");
    let answer = daemon.get("/sub/app.js?v=3");
    assert_file(&answer, 200, "let x = 1;");
    assert_eq!(answer.field("content-type"), Some("text/javascript; charset=utf-8"));
    assert_eq!(answer.field("accept-ranges"), Some("bytes"));
    assert!(answer.field("vary").is_none(), "there is one version of it");
    for same in
        ["/sub//app.js", "//sub/app.js", "/x/../sub/app.js", "/sub/./app.js", "/s%75b/app%2ejs", "/inside.js"]
    {
        assert_file(&daemon.get(same), 200, "let x = 1;");
    }
    assert_file(&daemon.get("/a%20b/%C3%A9.txt"), 200, "name");
    assert_file(&daemon.get("/.well-known/security.txt"), 200, "contact");
    let answer = daemon.get("/empty.css");
    assert_file(&answer, 200, "");
    assert_eq!(answer.field("content-length"), Some("0"));
    let head = daemon.request("HEAD", "/sub/app.js", &[], b"");
    assert_eq!((head.status, head.field("content-length")), (200, Some("10")));
    assert_eq!(head.field("etag"), daemon.get("/sub/app.js").field("etag"));

    for escape in
        ["/../secret", "/sub/../../secret", "/%2e%2e/secret", "//../../secret", "/app.js%00", "/%zz", "/%"]
    {
        assert_problem(&daemon.get(escape), 400);
    }
    for nothing in [
        "/sub/%2e%2e%2f%2e%2e%2fsecret",
        "/..%2fsecret",
        "/sub%2fapp.js",
        "/%252e%252e/secret",
        "/sub/..%5c..%5csecret",
        "/link",
        "/out",
        "/up/secret",
        "/pipe",
        "/.env",
        "/%2eenv",
        "/.git/config",
        "/.well-known/../.env",
        "/sub/app.js/",
        "/sub/app.js/x",
        "/bare",
        "/bare/",
        "/missing",
        &format!("/{}", "x".repeat(300)),
    ] {
        assert_problem(&daemon.get(nothing), 404);
    }
    for method in ["POST", "PUT", "DELETE", "OPTIONS"] {
        let answer = daemon.request(method, "/index.html", &[], b"x");
        assert_problem(&answer, 405);
        assert_eq!(answer.field("allow"), Some("GET, HEAD"));
    }
    // The control socket is for management.
    assert_problem(&daemon.control().get("/index.html"), 404);
}

fn nix_fifo(path: &Path) {
    let made = output(Command::new("mkfifo").arg(path));
    assert!(made.status.success(), "{made:?}");
}

#[test]
fn a_file_without_permission_is_403_and_a_web_root_may_come_late() {
    if rustix::process::geteuid().is_root() {
        println!("skipped in part: root may read everything");
    } else {
        let stage = stage();
        put(stage.root(), "private", "x");
        fs::set_permissions(stage.root().join("web/private"), fs::Permissions::from_mode(0o000)).unwrap();
        let daemon = stage.start();
        assert_problem(&daemon.get("/private"), 403);
    }
    let stage = Stage::new();
    let web = stage.root().join("web");
    let daemon = stage.argument("--web-root").argument(&web).start();
    assert_problem(&daemon.get("/page"), 404);
    wait_for("the warning", || (!daemon.stderr.containing("web root").is_empty()).then_some(()));
    put(daemon.root(), "page", "late");
    wait_for("the page", || (daemon.get("/page").status == 200).then_some(()));
    assert_file(&daemon.get("/page"), 200, "late");
    assert_eq!(daemon.stderr.containing("web root").len(), 1, "{:?}", daemon.stderr.all());
}

#[test]
fn folders_have_a_page_or_are_not_there() {
    let stage = stage();
    put(stage.root(), "docs/index.html", "docs");
    put(stage.root(), "docs/deep/index.html", "deep");
    let daemon = stage.start();
    assert_file(&daemon.get("/docs/"), 200, "docs");
    for (target, location) in [
        ("/docs", "/docs/"),
        ("/docs?a=b&c", "/docs/?a=b&c"),
        ("/docs/deep", "/docs/deep/"),
        ("//docs//deep", "/docs/deep/"),
        ("/x/../d%6fcs", "/d%6fcs/"),
    ] {
        let answer = daemon.get(target);
        assert_eq!((answer.status, answer.field("location")), (301, Some(location)), "{target}");
    }
    // Not the web root itself, which has no page here.
    assert_problem(&daemon.get("/"), 404);
}

#[test]
fn conditions_are_judged_as_rfc_9110_says() {
    let stage = stage();
    put(stage.root(), "page.txt", "0123456789");
    let daemon = stage.start();
    let ask = |method: &str, fields: &[(&str, &str)]| daemon.request(method, "/page.txt", fields, b"");
    let whole = ask("GET", &[]);
    let etag = whole.field("etag").unwrap().to_owned();
    let modified = whole.field("last-modified").unwrap().to_owned();
    assert!(etag.starts_with('"') && etag.ends_with('"') && etag.len() > 10, "{etag} is a strong tag");
    let weak = format!("W/{etag}");
    const LONG_AGO: &str = "Sun, 06 Nov 1994 08:49:37 GMT";

    for method in ["GET", "HEAD"] {
        for (fields, status) in [
            (vec![("if-none-match", etag.as_str())], 304),
            (vec![("if-none-match", &weak)], 304),
            (vec![("if-none-match", "\"other\"")], 200),
            (vec![("if-modified-since", &modified)], 304),
            (vec![("if-modified-since", LONG_AGO)], 200),
            (vec![("if-none-match", "\"other\""), ("if-modified-since", &modified)], 200),
            (vec![("if-match", &etag)], 200),
            (vec![("if-match", "*")], 200),
            (vec![("if-match", &weak)], 412),
            (vec![("if-unmodified-since", LONG_AGO)], 412),
            (vec![("if-match", &etag), ("if-unmodified-since", LONG_AGO)], 200),
        ] {
            let answer = ask(method, &fields);
            assert_eq!(answer.status, status, "{method} {fields:?}: {answer:?}");
            if status == 304 {
                assert_eq!(answer.field("etag"), Some(etag.as_str()));
                assert!(answer.body.is_empty() && answer.field("content-length").is_none());
                assert!(answer.field("content-type").is_none());
            }
        }
    }
    for (range, status, content, content_range) in [
        ("bytes=0-3", 206, "0123", "bytes 0-3/10"),
        ("bytes=7-", 206, "789", "bytes 7-9/10"),
        ("bytes=-2", 206, "89", "bytes 8-9/10"),
        ("bytes=5-100", 206, "56789", "bytes 5-9/10"),
        ("bytes=0-1,4-5", 200, "0123456789", ""),
        ("bytes=5-1", 200, "0123456789", ""),
        ("lines=1-2", 200, "0123456789", ""),
    ] {
        let answer = ask("GET", &[("range", range)]);
        assert_file(&answer, status, content);
        assert_eq!(answer.field("content-range").unwrap_or_default(), content_range, "{range}");
        assert_eq!(answer.field("etag"), Some(etag.as_str()));
    }
    let answer = ask("GET", &[("range", "bytes=10-")]);
    assert_problem(&answer, 416);
    assert_eq!(answer.field("content-range"), Some("bytes */10"));
    let answer = ask("HEAD", &[("range", "bytes=0-3")]);
    assert_eq!((answer.status, answer.field("content-length")), (200, Some("10")), "a range is for GET");
    assert_eq!(ask("GET", &[("range", "bytes=0-3"), ("if-range", &etag)]).status, 206);
    assert_eq!(ask("GET", &[("range", "bytes=0-3"), ("if-range", "\"other\"")]).status, 200);
    assert_eq!(ask("GET", &[("range", "bytes=0-3"), ("if-none-match", &etag)]).status, 304);

    // Another content, another tag, and the old one's range is refused the new content.
    put(daemon.root(), "page.txt", "abcdefghij");
    let changed = wait_for("the change to be seen by every worker", || {
        let mut answers = (0..16).map(|_| ask("GET", &[]));
        answers.all(|answer| answer.text() == "abcdefghij").then(|| ask("GET", &[]))
    });
    assert_ne!(changed.field("etag"), Some(etag.as_str()));
    assert_file(&ask("GET", &[("range", "bytes=0-3"), ("if-range", &etag)]), 200, "abcdefghij");
    assert_file(&ask("GET", &[("if-none-match", &etag)]), 200, "abcdefghij");
}

#[test]
fn what_is_compressed_beforehand_is_preferred_as_the_client_prefers() {
    let stage = stage();
    put(stage.root(), "app.js", "plain");
    put(stage.root(), "app.js.gz", "gzipped");
    put(stage.root(), "app.js.br", "brotli");
    put(stage.root(), "only.css", "plain");
    put(stage.root(), "only.css.gz", "gzipped");
    let daemon = stage.start();
    for (target, accept, content, coding) in [
        ("/app.js", "", "plain", None),
        ("/app.js", "gzip, deflate, br", "brotli", Some("br")),
        ("/app.js", "gzip", "gzipped", Some("gzip")),
        ("/app.js", "br;q=0.5, gzip", "gzipped", Some("gzip")),
        ("/app.js", "br;q=0, gzip;q=0", "plain", None),
        ("/app.js", "identity", "plain", None),
        ("/only.css", "br, gzip;q=0.1", "gzipped", Some("gzip")),
        ("/only.css", "br", "plain", None),
    ] {
        let answer = daemon.request("GET", target, &[("accept-encoding", accept)], b"");
        assert_file(&answer, 200, content);
        assert_eq!(answer.field("content-encoding"), coding, "{target} {accept}");
        assert_eq!(answer.field("vary"), Some("accept-encoding"));
        let kind = if target.ends_with("js") { "text/javascript" } else { "text/css" };
        assert!(answer.field("content-type").unwrap().starts_with(kind));
    }
    let etag = |accept: &str| {
        let answer = daemon.request("HEAD", "/app.js", &[("accept-encoding", accept)], b"");
        answer.field("etag").unwrap().to_owned()
    };
    assert!(etag("") != etag("gzip") && etag("gzip") != etag("br"), "each its own tag");
    // By its own name it is a file like any other.
    let answer = daemon.get("/app.js.gz");
    assert_file(&answer, 200, "gzipped");
    assert!(answer.field("content-encoding").is_none() && answer.field("vary").is_none());
    let fields = [("accept-encoding", "gzip"), ("range", "bytes=0-3")];
    assert_file(&daemon.request("GET", "/app.js", &fields, b""), 206, "gzip");
}

#[test]
fn an_application_of_one_page_has_it_everywhere() {
    let stage = stage().set("server.web_fallback", "\"app.html\"");
    put(stage.root(), "app.html", "the app");
    put(stage.root(), "logo.svg", "<svg/>");
    let daemon = stage.start();
    for page in ["/", "/users", "/users/7/edit?tab=1", "/docs/"] {
        let answer = daemon.get(page);
        assert_file(&answer, 200, "the app");
        assert_eq!(answer.field("content-type"), Some("text/html; charset=utf-8"));
    }
    assert_file(&daemon.get("/logo.svg"), 200, "<svg/>");
    // A script that is missing is missing; a name with a dot that a browser navigates to is a page.
    assert_problem(&daemon.get("/main.7f3a.js"), 404);
    let html = [("accept", "text/html,application/xhtml+xml;q=0.9,*/*;q=0.8")];
    assert_file(&daemon.request("GET", "/users/jo.doe", &html, b""), 200, "the app");
    for nothing in ["/api/nothing", "/.env", "/api/"] {
        assert_problem(&daemon.get(nothing), 404);
    }
    assert_problem(&daemon.request("POST", "/users", &[], b"x"), 405);
}

#[test]
fn bundle_js_comes_from_the_folder_and_then_from_the_plugin() {
    let stage = Stage::new();
    for (folder, text) in [("a", "// a"), ("b/frontend", "// b"), ("down", "// down")] {
        let folder = stage.plugins().join(folder);
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("bundle.js"), text).unwrap();
    }
    fs::write(stage.root().join("secret.js"), "outside").unwrap();
    fs::create_dir(stage.plugins().join("c")).unwrap();
    symlink(stage.root().join("secret.js"), stage.plugins().join("c/bundle.js")).unwrap();
    let daemon = stage
        .set("supervisor.max_restarts", 1000)
        .faulty("a", &json!({}))
        .faulty("b", &json!({}))
        .faulty("c", &json!({}))
        .faulty("down", &json!({}))
        .start();
    for id in ["a", "b", "c", "down"] {
        daemon.wait_ready(id);
    }
    let requests = |id: &str| daemon.status(id).unwrap()["requests"].as_u64().unwrap();
    let before = requests("a");
    for (id, text) in [("a", "// a"), ("b", "// b")] {
        let answer = daemon.get(&format!("/api/plugins/{id}/bundle.js?v=1"));
        assert_file(&answer, 200, text);
        assert_eq!(answer.field("content-type"), Some("text/javascript; charset=utf-8"));
        let etag = answer.field("etag").unwrap();
        let target = format!("/api/plugins/{id}/bundle.js");
        assert_eq!(daemon.request("GET", &target, &[("if-none-match", etag)], b"").status, 304);
        assert_problem(&daemon.request("POST", &target, &[], b"x"), 405);
    }
    assert_eq!(requests("a"), before, "the plugin was not asked");
    let answer = daemon.get("/api/plugins/c/bundle.js?v=1");
    assert_eq!(answer.json()["path"], "/bundle.js?v=1", "the plugin's own, and no link out of the folder");
    assert_eq!(daemon.get("/api/plugins/route/a/bundle.js").json()["path"], "/bundle.js");
    // 503 as long as the plugins folder is being read.
    wait_for("the plugins to be read", || {
        (daemon.get("/api/plugins/nobody/bundle.js").status == 404).then_some(())
    });
    // The bundle of a plugin that is disabled is none.
    assert_eq!(daemon.manage("POST", "/api/plugins/down/disable", b"").status, 200);
    wait_for("every worker to know", || {
        let all = (0..8).all(|_| daemon.get("/api/plugins/down/bundle.js").status == 404);
        all.then_some(())
    });
}

#[test]
fn a_large_file_flows_as_its_reader_reads() {
    let stage = stage();
    let content = pattern(24 << 20);
    put(stage.root(), "large.bin", &content);
    let daemon = stage.start();
    let answer = daemon.get("/large.bin");
    assert_eq!(answer.field("content-type"), Some("application/octet-stream"));
    assert!(answer.body == content, "{answer:?}");
    let answer = daemon.request("GET", "/large.bin", &[("range", "bytes=1000001-9000000")], b"");
    assert_eq!(answer.status, 206);
    assert!(answer.body == content[1_000_001..=9_000_000], "{answer:?}");
    assert_eq!(daemon.request("HEAD", "/large.bin", &[], b"").field("content-length"), Some("25165824"));

    // Readers that do not read: a piece for each in memory, not a file for each.
    let before = daemon.memory_kib("VmRSS");
    let mut readers: Vec<_> = (0..50)
        .map(|_| {
            let mut client = daemon.client();
            client.send(b"GET /large.bin HTTP/1.1\r\nhost: localhost\r\n\r\n").unwrap();
            client
        })
        .collect();
    for client in &mut readers {
        assert!(client.line().unwrap().contains(" 200 "));
    }
    let grown = daemon.memory_kib("VmRSS").saturating_sub(before);
    assert!(grown < 50 * 512, "{grown} KiB for fifty readers");
    assert_eq!(daemon.get("/large.bin").body.len(), content.len(), "others are served meanwhile");
    let mut last = readers.pop().unwrap();
    while !last.line().unwrap().is_empty() {}
    let mut rest = vec![0; content.len()];
    read_exactly(&mut last, &mut rest);
    assert!(rest == content, "a reader that pauses misses nothing");
}

/// Reads so many bytes of content, however they come.
fn read_exactly<S: Read + std::io::Write>(client: &mut Client<S>, into: &mut [u8]) {
    let got = client.bytes(into.len()).unwrap();
    into.copy_from_slice(&got);
}

#[test]
fn a_file_that_changes_under_way_cuts_the_connection() {
    for change in ["truncate", "rewrite"] {
        let stage = stage();
        put(stage.root(), "large.bin", pattern(24 << 20));
        let daemon = stage.start();
        let mut client = daemon.client();
        client.send(b"GET /large.bin HTTP/1.1\r\nhost: localhost\r\n\r\n").unwrap();
        assert!(client.line().unwrap().contains(" 200 "));
        let file = fs::OpenOptions::new().write(true).open(daemon.root().join("web/large.bin")).unwrap();
        match change {
            "truncate" => file.set_len(1000).unwrap(),
            _ => std::os::unix::fs::FileExt::write_all_at(&file, b"other", 20 << 20).unwrap(),
        }
        while !client.line().unwrap().is_empty() {}
        let got = client.rest().unwrap();
        assert!(got.len() < 24 << 20, "{change}: {} bytes", got.len());
        assert!(got == pattern(24 << 20)[..got.len()], "{change}: what came is what was announced");
        // Removing the name of a file changes nothing for who has it already.
        assert_eq!(daemon.get("/large.bin").body.len(), if change == "truncate" { 1000 } else { 24 << 20 });
    }
}

#[test]
fn a_disk_that_hangs_holds_up_no_worker() {
    if !has_program("strace") {
        println!("skipped: no strace here");
        return;
    }
    let stage = stage().set("server.workers", 1).faulty("p", &json!({}));
    put(stage.root(), "page", "x");
    let daemon = stage.start();
    daemon.wait_ready("p");
    assert_file(&daemon.get("/page"), 200, "x");
    let tasks = format!("/proc/{}/task", daemon.pid().as_raw_nonzero());
    let readers = wait_for("both threads to have their name", || {
        let found: Vec<String> = fs::read_dir(&tasks)
            .unwrap()
            .flatten()
            .filter(|task| {
                fs::read_to_string(task.path().join("comm")).is_ok_and(|name| name.trim() == "toru-files")
            })
            .map(|task| task.file_name().into_string().unwrap())
            .collect();
        (found.len() == 2).then_some(found)
    });
    let mut strace = Command::new("strace");
    strace.args(["-qq", "-o", "/dev/null", "-e", "inject=openat2:delay_enter=600000000"]);
    for reader in &readers {
        strace.args(["-p", reader]);
    }
    let mut strace = Killed(spawn(&mut strace));
    let attached = wait_for("strace to attach", || {
        let traced = |id: &String| {
            let status = fs::read_to_string(format!("/proc/{id}/status")).unwrap_or_default();
            !status.contains("TracerPid:\t0\n")
        };
        if strace.0.try_wait().unwrap().is_some() {
            return Some(false);
        }
        readers.iter().all(traced).then_some(true)
    });
    if !attached {
        println!("skipped: strace may not attach here");
        return;
    }
    // A reader that strace has seized goes on until strace stops it for the first time, and may open
    // files in between: each client asks for a file of its own, and who is answered does not count.
    let mut waiting = Vec::new();
    let mut number = 0;
    wait_for("strace to hold both readers up", || {
        number += 1;
        put(daemon.root(), &format!("other{number}"), "x");
        let mut client = daemon.client();
        client.send(format!("GET /other{number} HTTP/1.1\r\nhost: localhost\r\n\r\n").as_bytes()).unwrap();
        for round in 0..50 {
            let answer = daemon.get(&format!("/api/plugins/p/{round}"));
            assert_eq!(answer.json()["path"], format!("/{round}"));
        }
        if !client.has_answer() {
            waiting.push(client);
        }
        (waiting.len() == 4).then_some(())
    });
    assert!(waiting.iter().all(|client| !client.has_answer()), "nothing can have been read");
    // Its end lets the readers go on.
    drop(strace);
    for client in &mut waiting {
        assert_file(&client.response("GET").unwrap(), 200, "x");
    }
}

#[test]
fn without_openat2_no_link_is_followed() {
    let stage = stage();
    let root = stage.root().to_owned();
    put(&root, "sub/page", "inside");
    fs::write(root.join("secret"), "outside").unwrap();
    symlink("../secret", root.join("web/out")).unwrap();
    symlink("..", root.join("web/up")).unwrap();
    symlink("sub/page", root.join("web/link")).unwrap();
    let daemon = stage.under(refuse(OPENAT2)).start();
    assert_file(&daemon.get("/sub/page"), 200, "inside");
    for nothing in ["/out", "/up/secret", "/link", "/missing"] {
        assert_problem(&daemon.get(nothing), 404);
    }
}

#[test]
fn many_clients_read_many_files_while_they_change() {
    let stage = stage();
    for number in 0..40 {
        put(stage.root(), &format!("{number}.txt"), format!("{number} 0"));
    }
    let daemon = stage.start();
    // It listens before each of its threads has opened what it needs.
    wait_for("readiness", || (daemon.get("/readyz").status == 200).then_some(()));
    assert_eq!(daemon.get("/0.txt").status, 200);
    let descriptors = daemon.descriptors();
    thread::scope(|scope| {
        for thread in 0..8 {
            let daemon = &daemon;
            scope.spawn(move || {
                let mut client = daemon.client();
                for round in 0..200 {
                    let number = (thread * 7 + round) % 40;
                    let answer = client.get(&format!("/{number}.txt"));
                    assert_eq!(answer.status, 200, "{answer:?}");
                    assert_eq!(answer.text().split(' ').next(), Some(number.to_string().as_str()));
                }
            });
        }
        for round in 1..20 {
            for number in 0..40 {
                // As a deployment does: the new file takes the old one's name whole.
                put(daemon.root(), "new", format!("{number} {round}"));
                let web = daemon.root().join("web");
                fs::rename(web.join("new"), web.join(format!("{number}.txt"))).unwrap();
            }
        }
    });
    for number in 0..40 {
        wait_for("the last content", || {
            (daemon.get(&format!("/{number}.txt")).text() == format!("{number} 19")).then_some(())
        });
    }
    let waits = Instant::now();
    // Far fewer than a leak in any of 1 600 requests would leave.
    while daemon.descriptors() > descriptors + 8 {
        assert!(waits.elapsed() < DEADLINE, "{descriptors} before, now {:#?}", daemon.open_files());
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn flags_win_over_environment_over_file() {
    let staged = || {
        let stage = Stage::new();
        for name in ["file", "environment", "flag"] {
            let folder = stage.root().join(name);
            fs::create_dir(&folder).unwrap();
            fs::write(folder.join("who"), name).unwrap();
        }
        let file = json!(stage.root().join("file"));
        stage.set("server.web_root", file)
    };
    let who = |daemon: Daemon| daemon.get("/who").text().to_owned();
    assert_eq!(who(staged().start()), "file");

    let stage = staged();
    let environment = stage.root().join("environment");
    assert_eq!(who(stage.environment("TORU_WEB_ROOT", environment).start()), "environment");

    let stage = staged();
    let environment = stage.root().join("environment");
    let flag = stage.root().join("flag");
    let stage = stage.environment("TORU_WEB_ROOT", environment).argument("--web-root").argument(flag);
    assert_eq!(who(stage.start()), "flag");
}
