//! The programs that the guide for authors shows are whole plugins, and the commands are commands.

use std::{fs, process::Command};

use serde_json::Value;
use toru_tests::{binary, has_program, output, repository, write_executable};

/// A fenced block: the line before it, its language, its text.
fn blocks() -> Vec<(String, String, String)> {
    let text = fs::read_to_string(repository().join("plugin-api/GUIDE.md")).unwrap();
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

#[test]
fn whole_programs_of_the_guide_are_sound_plugins() {
    let folder = tempfile::tempdir_in("/tmp").unwrap();
    let modules = folder.path().join("node_modules");
    fs::create_dir(&modules).unwrap();
    std::os::unix::fs::symlink(repository().join("plugin-api/node"), modules.join("toru-plugin")).unwrap();
    fs::write(folder.path().join("package.json"), r#"{"type":"module"}"#).unwrap();
    let mut tested = 0;
    for (before, language, text) in blocks() {
        if let Some(name) = before.strip_prefix("<!-- file: ").and_then(|rest| rest.strip_suffix(" -->")) {
            fs::write(folder.path().join(name), text).unwrap();
            continue;
        }
        if !text.starts_with("#!") {
            continue;
        }
        tested += 1;
        if language == "js" && !has_program("node") {
            println!("skipped: no node here");
            continue;
        }
        let suffix = if language == "js" { ".js" } else { "" };
        let plugin = folder.path().join(format!("plugin-{tested}{suffix}"));
        write_executable(&plugin, &text);
        let printed = output(
            Command::new(binary("toru"))
                .args(["plugin", "test", "--json"])
                .arg(&plugin)
                .env("PYTHONPATH", repository().join("plugin-api/python/src")),
        );
        let report: Value = serde_json::from_slice(&printed.stdout).unwrap();
        assert_eq!(report["sound"], true, "{text}\n{report:#}");
    }
    assert_eq!(tested, 3, "Python, an application, Node");
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
