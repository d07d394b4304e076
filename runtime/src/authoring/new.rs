//! `toru plugin new`: a small project that is a whole plugin, with its tests and how to build it.
//!
//! Python and Node projects bring their SDK along, so that they run where nothing is installed.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use toru_plugin_api::metadata::Metadata;

use crate::demo::find_source;

/// The languages that there is a project in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Language {
    /// On the Python SDK, built into one file.
    Python,
    /// On the Node SDK.
    Node,
    /// On the Rust SDK.
    Rust,
    /// In shell, on `socat`.
    Shell,
}

/// Why there is no project; the message says what to do.
#[derive(Debug, thiserror::Error)]
pub enum NewError {
    /// The name is no id.
    #[error("`{name}` cannot be a plugin's id: {reason}")]
    Name {
        /// As given.
        name: String,
        /// From the metadata's rules.
        reason: String,
    },
    /// Something is in the way.
    #[error("{} is there already; choose another name, or another folder with --dir", .0.display())]
    Exists(PathBuf),
    /// The disk said no.
    #[error("cannot write {}: {error}", path.display())]
    Write {
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        error: io::Error,
    },
}

/// A file of a project: where, what, and whether it can be run.
struct File {
    path: String,
    text: String,
    runs: bool,
}

macro_rules! template {
    ($name:literal) => {
        include_str!(concat!("templates/", $name))
    };
}

macro_rules! embedded {
    ($folder:literal, $($name:literal),* $(,)?) => {
        &[$(($name, include_str!(concat!("../../../plugin-api/", $folder, "/", $name)))),*]
    };
}

/// The Python SDK as it is in this version.
const PYTHON_SDK: &[(&str, &str)] = embedded!(
    "python/src/toru_plugin",
    "__init__.py",
    "_adapter.py",
    "asgi.py",
    "context.py",
    "frames.py",
    "http.py",
    "listen.py",
    "messages.py",
    "metadata.py",
    "plugin.py",
    "py.typed",
    "results.py",
    "server.py",
    "wsgi.py",
);

/// The Node SDK as it is in this version.
const NODE_SDK: &[(&str, &str)] = embedded!(
    "node",
    "index.d.ts",
    "index.js",
    "lib/context.js",
    "lib/exchange.js",
    "lib/frames.js",
    "lib/listen.js",
    "lib/messages.js",
    "lib/metadata.js",
    "lib/serve.js",
    "node-http.d.ts",
    "node-http.js",
    "package.json",
);

/// Makes the project `name` in `parent`, and says on stdout what to do next.
pub fn run(name: &str, language: Language, parent: &Path) -> Result<(), NewError> {
    Metadata::new(name, name, "0.1.0")
        .check()
        .map_err(|error| NewError::Name { name: name.to_owned(), reason: error.to_string() })?;
    let folder = parent.join(name);
    if fs::symlink_metadata(&folder).is_ok() {
        return Err(NewError::Exists(folder));
    }
    for file in files(name, language) {
        let path = folder.join(&file.path);
        write(&path, &file).map_err(|error| NewError::Write { path, error })?;
    }
    let shown = folder.display();
    let first = match language {
        Language::Rust if find_source().is_none() => "In Cargo.toml, say where your clone of Toru is. ",
        _ => "",
    };
    let target = test_target(language);
    let _ = writeln!(
        io::stdout(),
        "{shown} is a plugin in {language:?}. {first}Then:\n\n  cd {shown}\n  ./build.sh\n  toru plugin test plugins/{name}.binary{target}\n  toru serve --plugins-dir plugins\n\nREADME.md there says the rest."
    );
    Ok(())
}

fn write(path: &Path, file: &File) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let mode = if file.runs { 0o755 } else { 0o644 };
    let mut opened = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    opened.write_all(file.text.as_bytes())
}

fn files(name: &str, language: Language) -> Vec<File> {
    let fill = |text: &str| text.replace("@ID@", name).replace("@NAME@", name);
    let plain = |path: &str, text: &str| File { path: path.to_owned(), text: fill(text), runs: false };
    let script = |path: &str, text: &str| File { path: path.to_owned(), text: fill(text), runs: true };
    // The SDK's own text is copied as it is.
    let sdk = |folder: &str, files: &[(&str, &str)]| {
        let copy = |(path, text): &(&str, &str)| File {
            path: format!("{folder}/{path}"),
            text: (*text).to_owned(),
            runs: false,
        };
        files.iter().map(copy).collect::<Vec<_>>()
    };
    let (test, note, mut files) = match language {
        Language::Python => (
            "python3 -m unittest",
            "`src/plugin.py` is the plugin; `src/toru_plugin` is the SDK, in the version of the `toru` that made this.\nThe built file needs Python 3.10 or later, and nothing else.",
            vec![
                plain("src/plugin.py", template!("python/plugin.py")),
                plain("src/__main__.py", template!("python/__main__.py")),
                plain("test_plugin.py", template!("python/test_plugin.py")),
                script("build.sh", template!("python/build.sh")),
            ],
        ),
        Language::Node => (
            "node --test",
            "`plugin.js` is the plugin; `toru-plugin` is the SDK, in the version of the `toru` that made this.\nThe built file runs this folder: build again after moving it. It needs Node 18.14 or later.",
            vec![
                plain("plugin.js", template!("node/plugin.js")),
                plain("main.js", template!("node/main.js")),
                plain("plugin.test.js", template!("node/plugin.test.js")),
                plain("package.json", template!("node/package.json")),
                script("build.sh", template!("node/build.sh")),
            ],
        ),
        Language::Rust => (
            "cargo test",
            "`src/main.rs` is the plugin; `Cargo.toml` says where the SDK, `toru-plugin-api`, comes from.",
            vec![
                plain("Cargo.toml", &template!("rust/Cargo.toml.in").replace("@SDK@", &rust_sdk())),
                plain("src/main.rs", template!("rust/main.rs.in")),
                script("build.sh", template!("rust/build.sh")),
            ],
        ),
        Language::Shell => (
            "./test.sh",
            "`plugin.sh` is the plugin, in protocol 1.0. It needs `socat`.",
            vec![
                script("plugin.sh", template!("shell/plugin.sh")),
                script("test.sh", template!("shell/test.sh")),
                script("build.sh", template!("shell/build.sh")),
            ],
        ),
    };
    match language {
        Language::Python => files.extend(sdk("src/toru_plugin", PYTHON_SDK)),
        Language::Node => files.extend(sdk("toru-plugin", NODE_SDK)),
        Language::Rust | Language::Shell => {}
    }
    let readme = template!("README.md").replace("@TEST@", test).replace("@NOTE@", note);
    files.push(plain("README.md", &readme.replace("@TARGET@", test_target(language))));
    files.push(plain(".gitignore", "plugins/\ntarget/\n__pycache__/\n"));
    files
}

/// What the conformance test is told besides, so that it leaves nothing out.
fn test_target(language: Language) -> &'static str {
    match language {
        Language::Python | Language::Node | Language::Rust => " --target /notes/a",
        Language::Shell => "",
    }
}

/// The line of the manifest: this source tree where there is one, else what its reader has to fill in.
fn rust_sdk() -> String {
    match find_source() {
        Some(root) => format!("toru-plugin-api = {{ path = {:?} }}", root.join("plugin-api")),
        None => "# Where your clone of Toru is; the SDK is on no registry.\n\
                 toru-plugin-api = { path = \"../toru/plugin-api\" }"
            .to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn sources(folder: &Path, below: &str, found: &mut BTreeSet<String>) {
        for entry in fs::read_dir(folder.join(below)).expect("the source tree").flatten() {
            let name = entry.file_name().into_string().expect("a plain name");
            let path = if below.is_empty() { name.clone() } else { format!("{below}/{name}") };
            if entry.path().is_dir() {
                if !["__pycache__", "test", "node_modules"].contains(&name.as_str()) {
                    sources(folder, &path, found);
                }
            } else if name != "README.md" {
                found.insert(path);
            }
        }
    }

    #[test]
    fn projects_bring_the_whole_sdk() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../plugin-api");
        for (folder, embedded) in [("python/src/toru_plugin", PYTHON_SDK), ("node", NODE_SDK)] {
            let mut found = BTreeSet::new();
            sources(&root.join(folder), "", &mut found);
            let brought: BTreeSet<String> = embedded.iter().map(|(path, _)| (*path).to_owned()).collect();
            assert_eq!(found, brought, "{folder}");
        }
    }
}
