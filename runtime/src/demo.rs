//! `toru demo`: from a fresh clone to plugins that answer, in one command.

use std::io::{self, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};
use std::{env, fs};

use toru_supervisor::{Handle, Level};

use crate::RunError;
use crate::config::{Config, ConfigError, Overrides};

/// The port that the documents name; the next free one above it is taken where it is in use.
const PORT: u16 = 3000;
const PORTS_TRIED: u16 = 100;
/// How long the examples may take to start before the demo says what it has.
const START_PATIENCE: Duration = Duration::from_secs(15);

/// Why there is no demo; the message says what to do.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    #[error("{0}")]
    Stage(String),
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Run(#[from] RunError),
}

/// An example plugin, and what to try with it.
struct Example {
    id: &'static str,
    curl: &'static str,
}

const EXAMPLES: [Example; 4] = [
    Example { id: "hello-rust", curl: "curl -s {url}" },
    Example { id: "hello-python", curl: "curl -s {url}" },
    Example { id: "hello-shell", curl: "curl -s {url}" },
    Example { id: "echo", curl: "curl -s -d 'hello' {url}echo" },
];

/// Builds and stages the examples, serves them until Ctrl-C, and cleans up.
pub fn run() -> Result<(), DemoError> {
    let root = find_source().ok_or_else(|| {
        DemoError::Stage("the example plugins' sources are not here; run it in a clone, with `cargo run --release -- demo`".into())
    })?;
    let staged = tempfile::Builder::new()
        .prefix("toru-demo-")
        .permissions(fs::Permissions::from_mode(0o700))
        .tempdir()
        .map_err(|error| DemoError::Stage(format!("cannot make a temporary folder: {error}")))?;
    stage(&root, &staged.path().join("plugins"))?;

    let listen = free_address()?;
    let config = private_config(staged.path(), None, listen)?;
    let folder = staged.path().to_owned();
    crate::run(config, None, move |address, supervisor| {
        let _ = std::thread::Builder::new()
            .name("toru-demo".into())
            .spawn(move || introduce(address, &supervisor, &folder));
    })?;
    say("stopped; the temporary folder is removed");
    Ok(())
}

/// For a core whose files are all below `folder`, and whose plugins in `plugins` there.
///
/// Only what goes wrong is echoed. Errors: of the configuration `file`; an empty one is taken where there is none.
pub(crate) fn private_config(
    folder: &Path,
    file: Option<PathBuf>,
    listen: SocketAddr,
) -> Result<Config, DemoError> {
    let place = |name: &str| folder.join(name);
    // A machine's own configuration is not meant.
    let empty = place("toru.toml");
    fs::write(&empty, "").map_err(|error| failed("write", &empty, &error))?;
    let mut config = Config::load(&Overrides {
        config: Some(file.unwrap_or(empty)),
        listen: Some(listen),
        plugins_dir: Some(place("plugins")),
        socket_dir: Some(place("sockets")),
        log_dir: Some(place("log")),
        data_dir: Some(place("data")),
        control_socket: Some(place("control.sock")),
        ..Overrides::default()
    })?;
    config.log.echo = Level::Warn;
    Ok(config)
}

/// Waits for the plugins to start, then prints what to try.
fn introduce(address: SocketAddr, supervisor: &Handle, folder: &Path) {
    let began = Instant::now();
    let plugins = loop {
        let (tell, told) = channel();
        supervisor.send(toru_supervisor::Command::Snapshot(Box::new(move |plugins| {
            let _ = tell.send(plugins);
        })));
        let Ok(plugins) = told.recv() else { return };
        let expected = fs::read_dir(folder.join("plugins"))
            .map(|entries| {
                entries.flatten().filter(|e| e.path().extension().is_some_and(|x| x == "binary")).count()
            })
            .unwrap_or(0);
        let running = plugins.iter().filter(|plugin| plugin.state == "running").count();
        if running == expected || began.elapsed() > START_PATIENCE {
            break plugins;
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    let mut text = format!("\nToru serves at http://{address}; its files are in {}\n\n", folder.display());
    for example in EXAMPLES {
        let url = format!("http://{address}/api/plugins/{}/", example.id);
        match plugins.iter().find(|plugin| plugin.metadata.id == example.id) {
            Some(plugin) if plugin.state == "running" => {
                text.push_str(&format!("  {:13} {url}\n", example.id));
                text.push_str(&format!("                {}\n", example.curl.replace("{url}", &url)));
            }
            Some(plugin) => {
                let why = plugin.last_exit.as_deref().unwrap_or("see the messages above");
                text.push_str(&format!("  {:13} is {} ({why})\n", example.id, plugin.state));
            }
            None => {}
        }
    }
    text.push_str(&format!(
        "\nAll plugins at a glance, in another terminal:\n                \
         cargo run --release -p toru-console -- --control-socket {control}\n                \
         curl -s --unix-socket {control} http://toru/api/plugins\n",
        control = folder.join("control.sock").display()
    ));
    text.push_str("\nCtrl-C stops it and cleans up.\n");
    let mut out = io::stdout();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// The workspace that this binary was built from.
pub(crate) fn find_source() -> Option<PathBuf> {
    let is_source = |path: &Path| path.join("plugins/hello-rust/Cargo.toml").is_file();
    // `cargo run` names the package's folder; a binary started by hand lies in target/<profile>/ below the workspace.
    let from_cargo = env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from);
    let from_binary = env::current_exe().ok();
    let from_here = env::current_dir().ok();
    [from_cargo, from_binary, from_here]
        .into_iter()
        .flatten()
        .flat_map(|start| start.ancestors().map(Path::to_owned).collect::<Vec<_>>())
        .find(|path| is_source(path))
}

/// Puts the example plugins into `plugins`, building those that need it.
fn stage(root: &Path, plugins: &Path) -> Result<(), DemoError> {
    fs::create_dir_all(plugins).map_err(|error| failed("make", plugins, &error))?;
    let built = build(root)?;
    copy(&built.join("toru-plugin-hello-rust"), &plugins.join("hello-rust.binary"))?;
    copy(&built.join("toru-plugin-echo"), &plugins.join("echo.binary"))?;
    if in_path("python3") {
        copy(&root.join("plugins/hello-python/hello-python.py"), &plugins.join("hello-python.binary"))?;
        copy_folder(&root.join("plugin-api/python/src/toru_plugin"), &plugins.join("toru_plugin"))?;
    } else {
        say("python3 is not installed: hello-python is left out");
    }
    if in_path("socat") {
        copy(&root.join("plugins/hello-shell/hello-shell.sh"), &plugins.join("hello-shell.binary"))?;
    } else {
        say("socat is not installed: hello-shell is left out");
    }
    Ok(())
}

/// Builds the Rust examples with the profile of this binary; cargo shows its progress. Gives the folder with the results.
fn build(root: &Path) -> Result<PathBuf, DemoError> {
    let binary =
        env::current_exe().map_err(|error| DemoError::Stage(format!("cannot find this binary: {error}")))?;
    let (Some(folder), Some(target)) = (binary.parent(), binary.parent().and_then(Path::parent)) else {
        return Err(DemoError::Stage(format!("{} lies in no target folder", binary.display())));
    };
    let profile = match folder.file_name().and_then(|name| name.to_str()) {
        Some("debug") | None => "dev",
        Some(profile) => profile,
    };
    say("building the example plugins");
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let outcome = Command::new(&cargo)
        .current_dir(root)
        .args(["build", "--locked", "--profile", profile, "--target-dir"])
        .arg(target)
        .args(["-p", "toru-plugin-hello-rust", "-p", "toru-plugin-echo"])
        .status();
    match outcome {
        Ok(status) if status.success() => Ok(folder.to_owned()),
        Ok(status) => Err(DemoError::Stage(format!("building the example plugins failed: {status}"))),
        Err(error) => Err(DemoError::Stage(format!("cannot run {}: {error}", cargo.display()))),
    }
}

fn free_address() -> Result<SocketAddr, DemoError> {
    (PORT..PORT + PORTS_TRIED)
        .map(|port| SocketAddr::from(([127, 0, 0, 1], port)))
        .find(|&address| TcpListener::bind(address).is_ok())
        .ok_or_else(|| DemoError::Stage(format!("no port from {PORT} to {} is free", PORT + PORTS_TRIED - 1)))
}

fn in_path(program: &str) -> bool {
    env::var_os("PATH")
        .is_some_and(|path| env::split_paths(&path).any(|folder| folder.join(program).is_file()))
}

fn copy(from: &Path, to: &Path) -> Result<(), DemoError> {
    fs::copy(from, to).map_err(|error| failed("copy", from, &error))?;
    fs::set_permissions(to, fs::Permissions::from_mode(0o755))
        .map_err(|error| failed("make executable", to, &error))
}

fn copy_folder(from: &Path, to: &Path) -> Result<(), DemoError> {
    fs::create_dir_all(to).map_err(|error| failed("make", to, &error))?;
    for entry in fs::read_dir(from).map_err(|error| failed("read", from, &error))?.flatten() {
        if entry.path().is_file() {
            let to = to.join(entry.file_name());
            fs::copy(entry.path(), &to).map_err(|error| failed("copy", &entry.path(), &error))?;
        }
    }
    Ok(())
}

fn failed(what: &str, path: &Path, error: &io::Error) -> DemoError {
    DemoError::Stage(format!("cannot {what} {}: {error}", path.display()))
}

fn say(text: &str) {
    let _ = writeln!(io::stderr(), "toru demo: {text}");
}
