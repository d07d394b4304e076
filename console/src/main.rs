//! `toru-console`, the live view of a running daemon.
//!
//! Reads the control socket and owns nothing: quitting it, or losing its line, harms nobody.
//! This file is the shell around model, update and view: arguments, the terminal, signals, the loop.

#![forbid(unsafe_code)]

mod columns;
mod feed;
mod model;
mod once;
mod record;
mod sheet;
mod terminal;
#[cfg(test)]
mod testing;
mod text;
mod update;
mod view;

use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use clap::{Parser, ValueEnum};
use ratatui::crossterm::{event, style::force_color_output};
use serde::Deserialize;
use signal_hook::consts::{SIGCONT, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTSTP};
use toru_plugin_api::places::{Places, config_text};

use feed::{Feed, Tell};
use model::{Model, Now};
use record::Recorder;
use terminal::{Screen, translate};
use update::{Command, Msg, News, update};
use view::{Look, Theme};

/// `EX_UNAVAILABLE` of sysexits.h: the daemon cannot be reached.
const UNAVAILABLE: u8 = 69;
/// `EX_CONFIG` of sysexits.h.
const BAD_CONFIG: u8 = 78;
/// A slow line gets ten pictures a second at most, however much happens.
const FRAME: Duration = Duration::from_millis(100);
/// What waits for a screen that is slow; beyond it the core is read no further.
const INPUTS_MAX: usize = 4096;
/// How long a terminal that takes nothing may keep the console from ending.
const END_GRACE: Duration = Duration::from_secs(2);
/// What counts up or down is shown anew this often.
const TICK: Duration = Duration::from_secs(1);
/// Snapshots come every second and are shown at once; only one that is late needs a tick beside them.
const TICK_AFTER_SNAPSHOT: Duration = Duration::from_millis(1250);

/// Live view of a running Toru daemon.
///
/// Press ? inside for the keys.
#[derive(Parser)]
#[command(name = "toru-console", version)]
struct Arguments {
    /// Socket of the running daemon [default: as its configuration says]
    #[arg(long, visible_alias = "socket", env = "TORU_CONTROL_SOCKET", value_name = "PATH")]
    control_socket: Option<PathBuf>,
    /// Configuration file of the daemon
    #[arg(long, env = "TORU_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print one plain table and exit; 69 if the daemon cannot be reached
    #[arg(long)]
    once: bool,
    /// No action on a plugin can be taken
    #[arg(long)]
    readonly: bool,
    /// Draw with ASCII alone: always, never, or auto, where the locale is not UTF-8 or the terminal is Linux's own
    #[arg(long, value_name = "WHEN", num_args = 0..=1, require_equals = true, default_value = "auto", default_missing_value = "always")]
    ascii: When,
    /// Colours; without this, NO_COLOR in the environment means mono
    #[arg(long, value_name = "THEME")]
    theme: Option<ThemeName>,
    /// Wheel and clicks; selecting text then needs Shift
    #[arg(long)]
    mouse: bool,
    /// Keep what the daemon says in a new file, as far as --record-max
    #[arg(long, value_name = "FILE", conflicts_with_all = ["once", "replay"])]
    record: Option<PathBuf>,
    /// The most that the recording may take, with K, M or G; then it ends, and the screen and the exit code say so
    #[arg(long, value_name = "SIZE", default_value = "1G", value_parser = record_size)]
    record_max: u64,
    /// Show a recording instead of a daemon
    #[arg(long, value_name = "FILE", conflicts_with = "once")]
    replay: Option<PathBuf>,
}

/// Room for what a core of a hundred plugins says first, and for some minutes of it.
fn record_size(text: &str) -> Result<u64, String> {
    const LEAST: u64 = 1 << 20;
    match text::parse_bytes(text)? {
        bytes @ LEAST.. => Ok(bytes),
        _ => Err("at least 1M".into()),
    }
}

#[derive(Clone, Copy, ValueEnum)]
enum ThemeName {
    Dark,
    Light,
    Mono,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum When {
    Auto,
    Always,
    Never,
}

impl When {
    /// Whether only ASCII may be drawn. `variable` reads the environment.
    fn only_ascii(self, variable: impl Fn(&str) -> Option<String>) -> bool {
        match self {
            Self::Always => return true,
            Self::Never => return false,
            Self::Auto => {}
        }
        // The font of Linux's own terminal has 256 or 512 signs, and those of a sparkline are not among them.
        if variable("TERM").is_some_and(|term| term == "linux") {
            return true;
        }
        let locale = ["LC_ALL", "LC_CTYPE", "LANG"]
            .into_iter()
            .find_map(|name| variable(name).filter(|value| !value.is_empty()));
        let locale = locale.unwrap_or_default().to_ascii_lowercase();
        !(locale.contains("utf-8") || locale.contains("utf8"))
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    // A recording has no daemon to be found.
    let socket = if arguments.replay.is_some() { Ok(PathBuf::new()) } else { control_socket(&arguments) };
    let socket = match socket {
        Ok(socket) => socket,
        Err(error) => {
            eprintln!("toru-console: {error}");
            return ExitCode::from(BAD_CONFIG);
        }
    };
    let outcome = if arguments.once { once(&arguments, socket) } else { run(&arguments, socket) };
    outcome.unwrap_or_else(|error| {
        eprintln!("toru-console: {error}");
        ExitCode::FAILURE
    })
}

/// Where the daemon listens, found as `toru` commands find it. Whoever names the socket needs no configuration, which may
/// be what is being mended.
///
/// Of the file only this key is read, so what is wrong elsewhere in it hides no running daemon.
///
/// Errors: the configuration cannot be read, in words for people.
fn control_socket(arguments: &Arguments) -> Result<PathBuf, String> {
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct File {
        paths: Paths,
    }
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Paths {
        control_socket: Option<PathBuf>,
    }
    if let Some(path) = &arguments.control_socket {
        return Ok(path.clone());
    }
    let places = Places::of(rustix::process::geteuid().is_root(), |name| std::env::var_os(name));
    let path = arguments.config.as_ref().unwrap_or(&places.config);
    let text = match std::fs::read(path) {
        Ok(bytes) => config_text(bytes).map_err(|reason| format!("{}: {reason}", path.display()))?,
        Err(error) if error.kind() == io::ErrorKind::NotFound && arguments.config.is_none() => String::new(),
        Err(error) => return Err(format!("cannot read {}: {error}", path.display())),
    };
    let file: File = toml::from_str(&text)
        .map_err(|error| format!("{}: {}", path.display(), error.to_string().trim_end()))?;
    Ok(file.paths.control_socket.unwrap_or(places.control_socket))
}

fn environment(name: &str) -> Option<String> {
    std::env::var_os(name).map(|value| value.to_string_lossy().into_owned())
}

fn once(arguments: &Arguments, socket: PathBuf) -> io::Result<ExitCode> {
    let mut model = Model::new(Clock::start(None).now(), (80, 24), true, false);
    if let Err(error) = once::look(&socket, &mut model) {
        eprintln!("toru-console: {}", feed::in_words(&socket, &error));
        return Ok(ExitCode::from(UNAVAILABLE));
    }
    let mut table = once::table(&model);
    if arguments.ascii.only_ascii(environment) {
        table = table.lines().map(text::to_ascii).collect::<Vec<_>>().join("\n") + "\n";
    }
    match io::stdout().write_all(table.as_bytes()) {
        // `toru-console --once | head -1` is no failure.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error),
        _ => Ok(ExitCode::SUCCESS),
    }
}

/// Both clocks; that of a recording goes on from when it was made.
struct Clock {
    started: Instant,
    unix_ms_at_start: u64,
}

impl Clock {
    fn start(unix_ms: Option<u64>) -> Self {
        let wall = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64;
        Self { started: Instant::now(), unix_ms_at_start: unix_ms.unwrap_or_else(wall) }
    }

    fn now(&self) -> Now {
        let elapsed = self.started.elapsed();
        Now { elapsed, unix_ms: self.unix_ms_at_start + elapsed.as_millis() as u64 }
    }
}

/// What the loop waits for.
enum Input {
    Msg(Msg),
    Signal(i32),
    /// The terminal is gone.
    Hangup,
}

fn run(arguments: &Arguments, socket: PathBuf) -> io::Result<ExitCode> {
    if !io::stdout().is_terminal() {
        eprintln!("toru-console: stdout is no terminal; --once prints a table");
        return Ok(ExitCode::from(2));
    }
    if environment("TERM").is_some_and(|term| term == "dumb") {
        eprintln!("toru-console: this terminal cannot move its cursor (TERM=dumb); --once prints a table");
        return Ok(ExitCode::from(2));
    }
    let mono = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let theme = match arguments.theme {
        Some(ThemeName::Dark) => Theme::Dark,
        Some(ThemeName::Light) => Theme::Light,
        Some(ThemeName::Mono) => Theme::Mono,
        None if mono => Theme::Mono,
        None => Theme::Dark,
    };
    if arguments.theme.is_some() {
        // Who asks for colours by name gets them; the terminal library would heed NO_COLOR by itself.
        force_color_output(true);
    }
    let look = Look { theme, ascii: arguments.ascii.only_ascii(environment) };
    let mut recorder = match &arguments.record {
        Some(path) => Some(Recorder::create(path, arguments.record_max).map_err(|error| named(path, error))?),
        None => None,
    };

    let (sender, inputs) = mpsc::sync_channel(INPUTS_MAX);
    let tell: Tell = {
        let sender = sender.clone();
        Arc::new(move |news| sender.send(Input::Msg(Msg::News(news))).is_ok())
    };
    let (feed, clock) = match &arguments.replay {
        Some(path) => {
            (None, Clock::start(Some(record::play(path, tell).map_err(|error| named(path, error))?)))
        }
        None => (Some(Feed::start(socket, tell)), Clock::start(None)),
    };
    {
        let sender = sender.clone();
        let mut signals = signal_hook::iterator::Signals::new([SIGTERM, SIGHUP, SIGINT, SIGQUIT, SIGCONT])?;
        if !terminal::ignores_stops() {
            signals.add_signal(SIGTSTP)?;
        }
        thread::spawn(move || {
            for signal in signals.forever() {
                if !matches!(signal, SIGCONT | SIGTSTP) {
                    thread::spawn(move || {
                        thread::sleep(END_GRACE);
                        terminal::abandon(signal);
                    });
                }
                if sender.send(Input::Signal(signal)).is_err() {
                    return;
                }
            }
        });
    }

    let mut screen = Screen::enter(arguments.mouse)?;
    thread::spawn(move || {
        loop {
            let input = match event::read() {
                Ok(event) => match translate(event) {
                    Some(msg) => Input::Msg(msg),
                    None => continue,
                },
                Err(_) => Input::Hangup,
            };
            let last = matches!(input, Input::Hangup);
            if sender.send(input).is_err() || last {
                return;
            }
        }
    });

    let mut model = Model::new(clock.now(), screen.size()?, arguments.readonly, arguments.replay.is_some());
    model.mouse = arguments.mouse;
    let mut drawn: Option<Instant> = None;
    let mut tick_at = Instant::now() + TICK;
    let mut dirty = true;
    loop {
        let draw_in = drawn.map_or(Duration::ZERO, |at| FRAME.saturating_sub(at.elapsed()));
        if dirty && draw_in.is_zero() {
            screen.draw(|frame| view::draw(&model, look, frame))?;
            (drawn, dirty) = (Some(Instant::now()), false);
        }
        let tick_in = tick_at.saturating_duration_since(Instant::now());
        let wait = if dirty { draw_in.min(tick_in) } else { tick_in };
        let mut input = match inputs.recv_timeout(wait) {
            Ok(input) => Some(input),
            Err(mpsc::RecvTimeoutError::Timeout) => None,
            Err(mpsc::RecvTimeoutError::Disconnected) => return Ok(ExitCode::SUCCESS),
        };
        if Instant::now() >= tick_at {
            tick_at = Instant::now() + TICK;
            // A second asks for nothing.
            let _ = update(&mut model, clock.now(), Msg::Tick);
            dirty = true;
        }
        // What has come together is shown together.
        while let Some(next) = input.take() {
            dirty = true;
            let command = match next {
                Input::Msg(msg) => {
                    let now = clock.now();
                    if matches!(msg, Msg::News(News::Snapshot(_))) {
                        tick_at = Instant::now() + TICK_AFTER_SNAPSHOT;
                    }
                    if let (Msg::News(news), Some(open)) = (&msg, &mut recorder)
                        && let Err(error) = open.write(now, news)
                    {
                        // A full disk is when somebody has to see what goes on.
                        recorder = None;
                        let path = arguments.record.as_deref().unwrap_or(Path::new(""));
                        let why = named(path, error).to_string();
                        let _ = update(&mut model, now, Msg::Unrecorded(why));
                    }
                    update(&mut model, now, msg)
                }
                Input::Signal(signal @ (SIGCONT | SIGTSTP)) => {
                    match signal {
                        SIGCONT => screen.resume()?,
                        _ => screen.stop()?,
                    }
                    // The terminal may have another size by now.
                    let (columns, rows) = screen.size()?;
                    update(&mut model, clock.now(), Msg::Resize(columns, rows))
                }
                Input::Signal(SIGQUIT) => {
                    // Who asks for a core file gets it, on a terminal that can be used.
                    screen.leave()?;
                    signal_hook::low_level::emulate_default_handler(SIGQUIT)?;
                    Some(Command::Quit)
                }
                Input::Signal(_) | Input::Hangup => Some(Command::Quit),
            };
            match (command, &feed) {
                (None, _) => {}
                (Some(Command::Quit), _) => {
                    return match model.unrecorded {
                        // The screen that said so is gone.
                        Some(why) => Err(io::Error::other(format!("not all is recorded: {why}"))),
                        None => Ok(ExitCode::SUCCESS),
                    };
                }
                (Some(Command::Suspend), _) => {
                    screen.suspend()?;
                    let (columns, rows) = screen.size()?;
                    let _ = update(&mut model, clock.now(), Msg::Resize(columns, rows));
                }
                (Some(Command::Repaint), _) => screen.repaint()?,
                (Some(Command::Order { verb, plugin }), Some(feed)) => feed.order(verb, plugin),
                (Some(Command::FollowLogs { generation, plugins }), Some(feed)) => {
                    feed.follow_logs(generation, plugins);
                }
                (Some(Command::StopLogs), Some(feed)) => feed.stop_logs(),
                (Some(Command::AskEvents { plugin }), Some(feed)) => feed.ask_events(plugin),
                // A recording has nobody to tell.
                (
                    Some(
                        Command::Order { .. }
                        | Command::FollowLogs { .. }
                        | Command::StopLogs
                        | Command::AskEvents { .. },
                    ),
                    None,
                ) => {}
            }
            input = if dirty && drawn.is_some_and(|at| at.elapsed() >= FRAME) {
                None
            } else {
                inputs.try_recv().ok()
            };
        }
    }
}

fn named(path: &Path, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signs_beyond_ascii_need_a_terminal_that_shows_them() {
        let only_ascii = |when: When, set: &[(&str, &str)]| {
            when.only_ascii(|name| {
                set.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
            })
        };
        let cases: [(&[(&str, &str)], bool); 7] = [
            (&[("LANG", "en_GB.UTF-8")], false),
            (&[("LANG", "C.utf8"), ("TERM", "xterm-256color")], false),
            (&[], true),
            (&[("LANG", "C")], true),
            (&[("LANG", "de_DE.UTF-8"), ("LC_ALL", "C")], true),
            (&[("LANG", "C"), ("LC_ALL", ""), ("LC_CTYPE", "C.UTF-8")], false),
            (&[("LANG", "C.UTF-8"), ("TERM", "linux")], true),
        ];
        for (set, expected) in cases {
            assert_eq!(only_ascii(When::Auto, set), expected, "{set:?}");
            assert!(only_ascii(When::Always, set) && !only_ascii(When::Never, set));
        }
    }
}
