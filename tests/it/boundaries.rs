//! Who may know whom: the few lines of architecture that a reviewer would miss in a diff.
//!
//! Taste is left to review.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use toru_tests::{output, repository};

/// Names under every `[…dependencies]` table of a manifest.
fn dependencies(folder: &str) -> BTreeSet<String> {
    let path = repository().join(folder).join("Cargo.toml");
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mut found = BTreeSet::new();
    let mut inside = false;
    for line in text.lines() {
        let line = line.trim();
        if let Some(table) = line.strip_prefix('[') {
            let table = table.trim_matches(['[', ']']);
            inside = table.ends_with("dependencies");
            if let Some((before, name)) = table.rsplit_once('.')
                && before.ends_with("dependencies")
            {
                found.insert(name.to_owned());
            }
            continue;
        }
        if inside
            && !line.starts_with('#')
            && let Some((name, _)) = line.split_once('=')
        {
            let name = name.trim().split('.').next().unwrap_or_default();
            found.insert(name.trim_matches('"').to_owned());
        }
    }
    found
}

/// Rust files under a folder, tests included.
fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in
            fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())).flatten()
        {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    assert!(!files.is_empty(), "no sources in {}", folder.display());
    files
}

/// A file without comments and without its unit tests, which may do what the code may not.
fn code(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let text = text.split("#[cfg(test)]\nmod ").next().unwrap_or_default();
    text.lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .map(|line| line.split(" // ").next().unwrap_or_default())
        .collect::<Vec<_>>()
        .join("\n")
}

#[track_caller]
fn assert_absent(path: &Path, words: &[&str]) {
    let code = code(path);
    for word in words {
        let lines: Vec<&str> = code.lines().filter(|line| line.contains(word)).collect();
        assert!(lines.is_empty(), "{}: {word} in {lines:#?}", path.display());
    }
}

const OURS: [&str; 8] = [
    "toru-http",
    "toru-plugin-api",
    "toru-runtime",
    "toru-supervisor",
    "toru-console",
    "toru-benches",
    "toru-plugin-echo",
    "toru-plugin-hello-rust",
];

fn ours(folder: &str) -> Vec<String> {
    dependencies(folder).into_iter().filter(|name| OURS.contains(&name.as_str())).collect()
}

#[test]
fn arrows_between_crates_go_one_way() {
    assert_eq!(ours("http"), [""; 0], "http knows no plugins");
    assert_eq!(ours("plugin-api"), ["toru-plugin-api"], "itself with all features, for its tests");
    assert_eq!(ours("supervisor"), ["toru-plugin-api"]);
    assert_eq!(ours("runtime"), ["toru-http", "toru-plugin-api", "toru-supervisor"]);
    assert_eq!(ours("tests"), [""; 0], "a user has no crate of ours either");
    for plugin in ["plugins/echo", "plugins/hello-rust"] {
        assert_eq!(ours(plugin), ["toru-plugin-api"], "{plugin}");
    }
    for name in ours("console") {
        assert_eq!(name, "toru-plugin-api", "the console sees what is on the wire");
    }
    for name in ours("benches") {
        assert!(
            ["toru-http", "toru-plugin-api", "toru-runtime", "toru-supervisor"].contains(&name.as_str()),
            "{name}"
        );
    }
}

#[test]
fn sans_io_crates_touch_no_world() {
    let world = [
        "monoio",
        "tokio",
        "TcpStream",
        "TcpListener",
        "UdpSocket",
        "UnixStream",
        "std::fs",
        "std::os",
        "std::process",
        "std::thread",
        "Instant::now",
        "SystemTime::now",
        "rustix",
        "nix::",
    ];
    for path in rust_files(&repository().join("http/src")) {
        assert_absent(&path, &world);
    }
    let wire = repository().join("plugin-api/src");
    for file in rust_files(&wire) {
        let relative = file.strip_prefix(&wire).unwrap();
        // All input and output of that crate is in the SDK.
        if !relative.to_string_lossy().starts_with("sdk") {
            assert_absent(&file, &world);
        }
    }
    for name in ["monoio", "tokio", "rustix", "nix", "libc"] {
        assert!(!dependencies("http").contains(name), "http: {name}");
    }
}

#[test]
fn the_policy_of_the_supervisor_is_a_function() {
    let path = repository().join("supervisor/src/state.rs");
    assert_absent(
        &path,
        &[
            "Instant::now",
            "SystemTime",
            "rustix",
            "nix::",
            "libc",
            "std::fs",
            "std::process",
            "println!",
            "eprintln!",
            "thread::",
            "_ =>",
        ],
    );
}

#[test]
fn one_file_makes_processes_and_reaps_them() {
    let words =
        ["Command::new", "fn spawn_process", "waitid", "waitpid", "pidfd_send_signal", "kill_process"];
    for folder in ["supervisor/src", "runtime/src"] {
        for path in rust_files(&repository().join(folder)) {
            // The demo runs cargo to its end before there is a supervisor to reap anything, and what authors of plugins
            // run is built and tested without one, or as a `Helper`.
            let own = [
                "supervisor/src/process.rs",
                "runtime/src/demo.rs",
                "runtime/src/authoring/subject.rs",
                "runtime/src/authoring/run.rs",
            ];
            if !own.iter().any(|own| path.ends_with(own)) {
                assert_absent(&path, &words);
            }
        }
    }
}

#[test]
fn no_worker_touches_a_disk() {
    for name in ["answer", "client", "exchange", "gate", "legacy", "link", "route", "worker"] {
        let path = repository().join(format!("runtime/src/{name}.rs"));
        assert_absent(&path, &["fs::", "File::", "openat"]);
    }
}

#[test]
fn one_file_opens_sqlite() {
    for folder in ["supervisor/src", "runtime/src", "http/src", "plugin-api/src"] {
        for path in rust_files(&repository().join(folder)) {
            let store = repository().join("runtime/src/kv");
            if !path.ends_with("runtime/src/kv.rs") && !path.starts_with(store) {
                assert_absent(&path, &["rusqlite::", "use rusqlite"]);
            }
        }
    }
    for folder in ["http", "plugin-api", "supervisor", "console"] {
        assert!(!dependencies(folder).contains("rusqlite"), "{folder}");
    }
}

#[test]
fn nobody_takes_a_lock_on_the_way_of_a_request() {
    for name in ["worker.rs", "client.rs", "work.rs", "link.rs", "route.rs"] {
        let path = repository().join("runtime/src").join(name);
        assert_absent(&path, &["Mutex", "RwLock", ".lock()", "Condvar", "block_on"]);
    }
}

#[test]
fn unsafe_code_stands_where_it_must_and_says_why() {
    for folder in ["http", "plugin-api", "console", "tests"] {
        let source = repository().join(folder).join("src");
        for path in rust_files(&source) {
            assert_absent(&path, &["unsafe {", "unsafe fn", "unsafe impl"]);
        }
    }
    for root in ["http/src/lib.rs", "plugin-api/src/lib.rs", "tests/src/lib.rs"] {
        let text = fs::read_to_string(repository().join(root)).unwrap();
        assert!(text.contains("#![forbid(unsafe_code)]"), "{root}");
    }
}

#[test]
fn the_python_sdk_needs_python_alone() {
    let source = repository().join("plugin-api/python/src/toru_plugin");
    let names = output(Command::new("python3").args(["-c", "import sys; print(*sys.stdlib_module_names)"]));
    let names = String::from_utf8(names.stdout).unwrap();
    let standard: BTreeSet<&str> = names.split_whitespace().collect();
    assert!(standard.contains("json"), "{names}");
    // What a plugin host may have besides; each import of it stands inside a `try`.
    let optional = ["uvloop", "orjson"];
    for entry in fs::read_dir(source).unwrap().flatten() {
        let path = entry.path();
        if path.extension().is_none_or(|extension| extension != "py") {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        for line in text.lines() {
            let unindented = !line.starts_with([' ', '\t']);
            let mut words = line.split_whitespace();
            let module = match (words.next(), words.next()) {
                (Some("import"), Some(module)) => module,
                (Some("from"), Some(module)) if line.contains(" import ") => module,
                _ => continue,
            };
            let top = module.split(['.', ',']).next().unwrap_or_default();
            if top.is_empty() || top == "toru_plugin" {
                continue;
            }
            if optional.contains(&top) {
                assert!(!unindented, "{}: {line}", path.display());
                continue;
            }
            assert!(standard.contains(top), "{}: {line}", path.display());
        }
    }
    let project = fs::read_to_string(repository().join("plugin-api/python/pyproject.toml")).unwrap();
    for line in project.lines().filter(|line| line.starts_with("dependencies")) {
        assert_eq!(line.replace(' ', ""), "dependencies=[]");
    }
}

#[test]
fn no_test_is_switched_off_and_nothing_is_left_to_do() {
    // Put together here, so that this file does not find itself.
    let words = [["#[ig", "nore"].concat(), ["to", "do!("].concat(), ["unimpl", "emented!("].concat()];
    for folder in ["http", "plugin-api", "supervisor", "runtime", "console", "tests", "plugins", "benches"] {
        for path in rust_files(&repository().join(folder)) {
            let text = fs::read_to_string(&path).unwrap();
            for word in &words {
                assert!(!text.contains(word.as_str()), "{}: {word}", path.display());
            }
        }
    }
}
