//! The programs that the guide for authors and the READMEs of the SDKs show are whole plugins, and the commands are
//! commands.

use std::{fs, path::PathBuf, process::Command};

use serde_json::Value;
use toru_tests::{binary, has_program, long_output, output, repository, write_executable};

/// The fenced blocks of a document below `plugin-api`: the line before each, its language, its text.
fn blocks_of(document: &str) -> Vec<(String, String, String)> {
    let text = fs::read_to_string(repository().join("plugin-api").join(document)).unwrap();
    let mut blocks = vec![];
    let mut before = String::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if let Some(language) = line.strip_prefix("```") {
            let content: Vec<&str> = lines.by_ref().take_while(|line| *line != "```").collect();
            blocks.push((before.clone(), language.to_owned(), content.join("\n") + "\n"));
        }
        before = line.to_owned();
    }
    blocks
}

fn blocks() -> Vec<(String, String, String)> {
    blocks_of("GUIDE.md")
}

#[test]
fn whole_programs_of_the_documents_are_sound_plugins() {
    let folder = tempfile::tempdir_in("/tmp").unwrap();
    let modules = folder.path().join("node_modules");
    fs::create_dir(&modules).unwrap();
    std::os::unix::fs::symlink(repository().join("plugin-api/node"), modules.join("toru-plugin")).unwrap();
    let mut plugins = vec![];
    let mut tested = 0;
    let documents = ["GUIDE.md", "python/README.md", "node/README.md"];
    for (before, _, text) in documents.into_iter().flat_map(blocks_of) {
        if let Some(name) = before.strip_prefix("<!-- file: ").and_then(|rest| rest.strip_suffix(" -->")) {
            fs::write(folder.path().join(name), text).unwrap();
            continue;
        }
        if !text.starts_with("#!") {
            continue;
        }
        tested += 1;
        if text.contains("exec node") && !has_program("node") {
            println!("skipped: no node here");
            continue;
        }
        // As it has to be called: programs may go by that.
        let plugin = folder.path().join(format!("plugin-{tested}.binary"));
        write_executable(&plugin, &text);
        plugins.push((plugin, text));
    }
    // Each waits for most of its time.
    std::thread::scope(|scope| {
        for (plugin, text) in &plugins {
            scope.spawn(move || {
                let mut kit = Command::new(binary("toru"));
                kit.env("PYTHONPATH", repository().join("plugin-api/python/src"));
                let printed = long_output(kit.args(["plugin", "test", "--json"]).arg(plugin));
                let report: Value = serde_json::from_slice(&printed.stdout).unwrap();
                assert_eq!(report["sound"], true, "{text}\n{report:#}");
            });
        }
    });
    assert_eq!(tested, 7, "Python, an application, Node, in the guide and in the READMEs, and one ported");
}

/// Before a block of commands for the Rust project that is made by hand.
const IN_PACKAGE: &str = "<!-- in the folder of Cargo.toml -->";

/// Each `rust` block with the `toml` block before it, a package each; the first with the commands that build it.
#[test]
fn rust_programs_of_the_guide_are_sound_plugins() {
    let folder = tempfile::tempdir_in("/tmp").unwrap();
    let target = toru_tests::profile_folder().join("toru-test-projects");
    let mut dependencies = String::new();
    let mut packages = vec![];
    let mut plugins = vec![];
    for (before, language, text) in blocks() {
        if language == "toml" {
            let sdk = repository().join("plugin-api");
            assert!(text.contains("../toru/plugin-api"), "{text}");
            dependencies = text.replace("../toru/plugin-api", &sdk.to_string_lossy());
        }
        let in_package = |package: &PathBuf, script: &str| {
            let mut command = Command::new("/bin/sh");
            command.args(["-ec", script]).current_dir(package).env("CARGO_TARGET_DIR", &target);
            let printed = long_output(&mut command);
            assert!(printed.status.success(), "{script}\n{}", String::from_utf8_lossy(&printed.stderr));
        };
        if before == IN_PACKAGE {
            let package: &PathBuf = packages.last().unwrap();
            // Runs until Ctrl-C.
            let script = text.replace("toru serve --plugins-dir plugins\n", "");
            // Unoptimised, and in a folder that other tests have built in.
            let script =
                script.replace("target/release/", "$CARGO_TARGET_DIR/debug/").replace("--release", "--quiet");
            in_package(package, &script);
            plugins.push(package.join("plugins/guide-rust.binary"));
        }
        if language != "rust" {
            continue;
        }
        let package = folder.path().join(format!("package-{}", packages.len()));
        fs::create_dir_all(package.join("src")).unwrap();
        let is_whole = dependencies.contains("[package]");
        let start = "[package]\nname = \"guide-part\"\nversion = \"1.0.0\"\nedition = \"2024\"\n\n";
        let manifest = if is_whole { dependencies.clone() } else { format!("{start}{dependencies}") };
        fs::write(package.join("Cargo.toml"), manifest).unwrap();
        fs::write(package.join("src/main.rs"), text).unwrap();
        // What the workspace has been built with is there already, so no registry is asked.
        fs::copy(repository().join("Cargo.lock"), package.join("Cargo.lock")).unwrap();
        if !is_whole {
            in_package(&package, "cargo build --quiet");
            plugins.push(target.join("debug/guide-part"));
        }
        packages.push(package);
    }
    assert_eq!(plugins.len(), 2, "the trait, an axum router");
    for plugin in plugins {
        let printed =
            long_output(Command::new(binary("toru")).args(["plugin", "test", "--json"]).arg(&plugin));
        let report: Value = serde_json::from_slice(&printed.stdout).unwrap();
        assert_eq!(report["sound"], true, "{report:#}");
    }
}

/// The blocks for a shell, in their order and in one folder, as a reader types them.
#[test]
fn the_commands_of_the_guide_work() {
    if !has_program("socat") {
        println!("skipped: no socat here");
        return;
    }
    let folder = tempfile::tempdir_in("/tmp").unwrap();
    let mut script = String::from("set -e\n");
    for (before, language, text) in blocks() {
        if language != "sh" || text.starts_with("#!") || before == IN_PACKAGE {
            continue;
        }
        for line in text.lines() {
            // These two run until Ctrl-C; other tests run them.
            if line.starts_with("toru serve ") || line.starts_with("toru plugin run ") {
                continue;
            }
            script.push_str(&line.replace("/tmp/notes.sock", "./notes.sock"));
            script.push('\n');
            if line.ends_with(" &") {
                script.push_str("trap 'kill $!' EXIT\nuntil [ -S ./notes.sock ]; do sleep 0.01; done\n");
            }
        }
    }
    let folders = [binary("toru").parent().unwrap().to_owned()];
    let path = std::env::var_os("PATH").unwrap();
    let path = std::env::join_paths(folders.into_iter().chain(std::env::split_paths(&path))).unwrap();
    let printed = long_output(
        Command::new("/bin/sh").args(["-c", &script]).current_dir(folder.path()).env("PATH", path),
    );
    let said = String::from_utf8_lossy(&printed.stdout);
    assert!(printed.status.success(), "{script}\n{said}\n{}", String::from_utf8_lossy(&printed.stderr));
    assert_eq!(said.matches("is a sound 1.1 plugin").count(), 2, "{said}");
    assert!(said.lines().last().unwrap().contains(r#""request_id":"r1""#), "{said}");
}

#[test]
fn commands_of_the_guide_are_commands() {
    let help = output(Command::new(binary("toru")).args(["plugin", "--help"]));
    let help = String::from_utf8(help.stdout).unwrap();
    let mut seen = 0;
    for (_, language, text) in blocks() {
        for line in text.lines().filter(|_| language == "sh") {
            let Some(rest) = line.strip_prefix("toru plugin ") else { continue };
            let verb = rest.split(' ').next().unwrap();
            assert!(help.lines().any(|line| line.trim_start().starts_with(verb)), "{line}");
            seen += 1;
        }
    }
    assert!(seen > 1, "{seen}");
}
