//! The console on a real terminal, that of tmux, over a real core.

use std::{
    fs,
    path::Path,
    process::{Command, Output},
    time::Duration,
};

use rustix::process::{Pid, kill_process};
use tempfile::TempDir;
use toru_tests::{Daemon, Signal, Stage, binary, has_program, output, wait_for, wait_within};

/// A tmux server of its own with one shell in 80 columns and 24 rows.
struct Terminal {
    folder: TempDir,
}

impl Terminal {
    /// `None`, with a printed reason, where there is no tmux.
    fn start() -> Option<Self> {
        if !has_program("tmux") {
            println!("skipped: no tmux here");
            return None;
        }
        let folder = tempfile::Builder::new().prefix("tm").tempdir_in("/tmp").expect("/tmp can be written");
        let terminal = Self { folder };
        // The words of an operator's own shell and terminal shall not matter.
        let started =
            terminal.tmux(&["-f", "/dev/null", "new-session", "-d", "-x", "80", "-y", "24", "exec sh -i"]);
        assert!(started.status.success(), "{started:?}");
        Some(terminal)
    }

    fn tmux(&self, words: &[&str]) -> Output {
        let mut command = Command::new("tmux");
        command.env_remove("TMUX").env_remove("NO_COLOR").env("LC_ALL", "C.UTF-8").env("PS1", "$ ");
        output(command.args(["-u", "-S"]).arg(self.folder.path().join("server")).args(words))
    }

    fn screen(&self) -> String {
        let captured = self.tmux(&["capture-pane", "-p"]);
        assert!(captured.status.success(), "{captured:?}");
        String::from_utf8(captured.stdout).expect("the screen is text")
    }

    fn keys(&self, keys: &[&str]) {
        let sent = self.tmux(&[&["send-keys"], keys].concat());
        assert!(sent.status.success(), "{sent:?}");
    }

    fn wait_text(&self, text: &str) {
        self.wait("the words on the screen", |screen| screen.contains(text).then_some(()), text);
    }

    fn wait<T>(&self, what: &str, accept: impl Fn(&str) -> Option<T>, detail: &str) -> T {
        wait_for(&format!("{what} {detail:?}"), || accept(&self.screen()))
    }

    /// Starts the console over `daemon` in the shell; gives its pid.
    fn console(&self, daemon: &Daemon) -> Pid {
        self.console_with(daemon, "", "")
    }

    /// With variables, as a shell assigns them, and flags.
    fn console_with(&self, daemon: &Daemon, variables: &str, flags: &str) -> Pid {
        let pid_file = self.folder.path().join("pid");
        let _ = fs::remove_file(&pid_file);
        let line = format!(
            "clear; {variables} sh -c 'echo $$ > {}; exec {} --socket {} {flags}'; echo \"left with $?\"",
            pid_file.display(),
            binary("toru-console").display(),
            daemon.root().join("control.sock").display(),
        );
        self.keys(&[&line, "Enter"]);
        self.wait_text(" live");
        let pid = fs::read_to_string(pid_file).expect("the shell wrote it").trim().parse().expect("a pid");
        Pid::from_raw(pid).expect("not zero")
    }

    /// The console is gone with status 0, and the terminal is as the shell wants it.
    fn assert_intact(&self) {
        self.assert_intact_after(0);
    }

    fn assert_intact_after(&self, status: i32) {
        self.wait_text(&format!("left with {status}"));
        self.assert_shell();
    }

    /// The terminal is as the shell wants it.
    fn assert_shell(&self) {
        wait_for("screen, cursor and mouse as they were", || {
            let words = ["display-message", "-p", "#{alternate_on} #{cursor_flag} #{mouse_any_flag}"];
            (String::from_utf8_lossy(&self.tmux(&words).stdout).trim() == "0 1 0").then_some(())
        });
        self.keys(&[
            "clear; stty -a | tr ' ' '\\n' | grep -x -e icanon -e echo -e isig | sort | tr '\\n' +",
            "Enter",
        ]);
        self.wait_text("echo+icanon+isig+");
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the screen\n{}", self.screen());
        }
        self.tmux(&["kill-server"]);
    }
}

/// What follows a plugin's id on its row: uptime, restarts, requests/s …
fn row(screen: &str, id: &str) -> Option<Vec<String>> {
    screen.lines().find_map(|line| {
        let mut words = line.split_whitespace().map(str::to_owned);
        words.any(|word| word == id).then(|| words.collect())
    })
}

fn restarts(screen: &str) -> Option<u64> {
    row(screen, "echo").filter(|_| screen.contains("PLUGIN"))?.get(1)?.parse().ok()
}

fn daemon() -> Daemon {
    let daemon = Stage::new().plugin("echo", "toru-plugin-echo").start();
    daemon.wait_running("echo");
    daemon
}

#[test]
fn a_kill_is_seen_a_restart_is_ordered_and_the_terminal_is_left_intact() {
    let daemon = daemon();
    let Some(terminal) = Terminal::start() else { return };
    terminal.console(&daemon);
    terminal.wait("the plugin's row", |screen| (restarts(screen)? == 0).then_some(()), "");

    kill_process(daemon.plugin_pid("echo"), Signal::KILL).expect("it runs");
    daemon.wait_status("echo", "again", |status| status["restarts"] == 1);
    wait_within(Duration::from_secs(3), "the restart on the screen", || {
        (restarts(&terminal.screen())? == 1).then_some(())
    });

    terminal.keys(&["r"]);
    terminal.wait_text("Restart echo?");
    terminal.keys(&["y"]);
    terminal.wait_text("restart echo: done in");
    daemon.wait_status("echo", "restarted by key", |status| status["restarts"] == 2);
    terminal.wait("the ordered restart", |screen| (restarts(screen)? == 2).then_some(()), "");

    terminal.keys(&["Enter"]);
    terminal.wait_text("killed by SIGKILL");
    terminal.keys(&["q"]);
    terminal.assert_intact();
}

#[test]
fn a_detail_opens_with_what_happened_before_anybody_looked() {
    let daemon = daemon();
    let Some(terminal) = Terminal::start() else { return };
    for _ in 0..20 {
        assert_eq!(daemon.get("/api/plugins/echo/").status, 200);
    }
    let kept = || daemon.control().get("/v1/plugins/echo/history").json();
    wait_for("a second with requests", || {
        let rates = kept()["requests_per_s"].as_array()?.clone();
        rates.iter().any(|rate| rate.as_f64() > Some(0.0)).then_some(())
    });
    terminal.console(&daemon);
    terminal.wait("the plugin's row", restarts, "");
    terminal.keys(&["Enter"]);
    terminal.wait_text("limits · 1.0k in flight");
    terminal.wait_text("workers · ");
    // The requests are over, so their bar is of the past: between the axis and the second chart's.
    terminal.wait(
        "the bar of a second before",
        |screen| {
            let plot = screen.lines().skip_while(|line| !line.starts_with("requests/s"));
            plot.skip(1).take(12).any(|line| line.chars().skip(7).take(18).any(|c| c == '█')).then_some(())
        },
        "",
    );
    terminal.keys(&["w"]);
    terminal.wait_text("SQLite · written");
    terminal.keys(&["l"]);
    terminal.wait_text("Logs of @core");
    terminal.wait_text("Listening");
    terminal.keys(&["q"]);
    terminal.assert_intact();
}

#[test]
fn every_screen_has_its_help_and_escape_goes_back() {
    let daemon = daemon();
    let Some(terminal) = Terminal::start() else { return };
    terminal.console(&daemon);
    terminal.wait("the plugin's row", restarts, "");
    for (key, title) in
        [("", "Plugins"), ("Enter", "Plugin echo"), ("l", "Logs of"), ("e", "Events"), ("w", "Workers")]
    {
        if !key.is_empty() {
            terminal.keys(&[key]);
        }
        terminal.wait_text(title);
        terminal.keys(&["?"]);
        terminal.wait_text("closes this");
        terminal.keys(&["Escape"]);
        terminal.wait("help gone", |screen| (!screen.contains("closes this")).then_some(()), title);
        if !key.is_empty() {
            terminal.keys(&["Escape"]);
            terminal.wait_text("PLUGIN");
        }
    }
    terminal.keys(&["q"]);
    terminal.assert_intact();
}

/// As on a terminal that can do nothing, of somebody who may do nothing.
#[test]
fn no_colour_no_sign_and_no_action_where_none_is_wanted() {
    let daemon = daemon();
    let Some(terminal) = Terminal::start() else { return };
    terminal.console_with(&daemon, "NO_COLOR=1", "--ascii --readonly");
    terminal.wait("the plugin's row", restarts, "");
    let pid = daemon.plugin_pid("echo");
    terminal.keys(&["r"]);
    terminal.wait_text("read-only: restart is off");
    terminal.keys(&[":disable echo", "Enter"]);
    terminal.wait_text("read-only: disable is off");
    assert!(terminal.screen().is_ascii(), "{}", terminal.screen());
    assert_eq!(colours(&terminal), [0; 0]);
    let flags = terminal.tmux(&["display-message", "-p", "#{mouse_any_flag}"]);
    assert_eq!(String::from_utf8_lossy(&flags.stdout).trim(), "0", "the mouse is the terminal's");
    terminal.keys(&["q"]);
    terminal.assert_intact();
    assert_eq!(daemon.plugin_pid("echo"), pid);
}

/// Numbers of the colours on the screen; 39 and 49, the terminal's own, are none.
fn colours(terminal: &Terminal) -> Vec<u32> {
    let captured = terminal.tmux(&["capture-pane", "-p", "-e"]);
    let screen = String::from_utf8(captured.stdout).expect("text");
    let codes = screen.split("\u{1b}[").skip(1).filter_map(|rest| rest.split_once('m'));
    let codes = codes.flat_map(|(codes, _)| codes.split(';').map(str::to_owned).collect::<Vec<_>>());
    codes.filter_map(|code| code.parse().ok()).filter(|code| !matches!(code, 0..=29 | 39 | 49)).collect()
}

#[test]
fn each_theme_has_its_colours_and_mono_has_none() {
    let daemon = daemon();
    let Some(terminal) = Terminal::start() else { return };
    for (variables, flags, expected) in [
        ("NO_COLOR=1", "", None),
        ("", "--theme mono", None),
        ("", "", Some(36)),
        ("NO_COLOR=", "", Some(36)),
        ("NO_COLOR=1", "--theme dark", Some(36)),
        ("", "--theme light", Some(34)),
    ] {
        terminal.console_with(&daemon, variables, flags);
        for (key, title) in [("", "PLUGIN"), ("Enter", "Plugin echo"), ("w", "WORKER"), ("?", "closes this")]
        {
            if !key.is_empty() {
                terminal.keys(&[key]);
            }
            terminal.wait_text(title);
            let seen = colours(&terminal);
            match expected {
                None => assert_eq!(seen, [0; 0], "{variables} {flags}: {title}"),
                // The colour of keys: cyan, or blue on white.
                Some(keys) => assert!(seen.contains(&keys), "{variables} {flags}: {title}: {seen:?}"),
            }
            let bright = seen.iter().any(|code| matches!(code, 33 | 36 | 91..=97));
            assert!(flags != "--theme light" || !bright, "not to be read on white: {title}: {seen:?}");
        }
        terminal.keys(&["Escape"]);
        terminal.wait("help gone", |screen| (!screen.contains("closes this")).then_some(()), "");
        terminal.keys(&["q"]);
        terminal.wait_text("left with 0");
    }
}

#[test]
fn signals_and_suspension_give_the_terminal_back() {
    let daemon = daemon();
    let Some(terminal) = Terminal::start() else { return };
    for signal in [Signal::TERM, Signal::HUP, Signal::INT] {
        let pid = terminal.console(&daemon);
        kill_process(pid, signal).expect("it runs");
        terminal.assert_intact();
    }
    terminal.console(&daemon);
    terminal.keys(&["C-z"]);
    terminal.wait("the shell again", |screen| (!screen.contains("● live")).then_some(()), "");
    terminal.keys(&["fg", "Enter"]);
    terminal.wait("the plugin's row", restarts, "");
    // Another size, and nothing of the old picture is left over.
    terminal.tmux(&["resize-window", "-x", "60", "-y", "12"]);
    terminal.wait(
        "the footer in the last of twelve rows",
        |screen| screen.lines().nth(11)?.starts_with("? help").then_some(()),
        "",
    );
    terminal.keys(&["q"]);
    terminal.wait("the shell at last", |screen| (!screen.contains("PLUGIN")).then_some(()), "");
}

/// Sent by somebody else, not typed: a shell's `kill`, a supervisor's script.
#[test]
fn stops_and_quits_from_outside_give_the_terminal_back_first() {
    let daemon = daemon();
    let Some(terminal) = Terminal::start() else { return };
    let pid = terminal.console(&daemon);
    terminal.wait("the plugin's row", restarts, "");
    for (columns, rows) in [("60", "12"), ("80", "24")] {
        kill_process(pid, Signal::TSTP).expect("it runs");
        wait_for("the shell's own screen", || {
            let flags = terminal.tmux(&["display-message", "-p", "#{alternate_on} #{cursor_flag}"]);
            (String::from_utf8_lossy(&flags.stdout).trim() == "0 1").then_some(())
        });
        terminal.keys(&[
            "clear; stty -a | tr ' ' '\\n' | grep -x -e icanon -e echo | sort | tr '\\n' +",
            "Enter",
        ]);
        terminal.wait_text("echo+icanon+");
        // While it is stopped nobody tells it.
        terminal.tmux(&["resize-window", "-x", columns, "-y", rows]);
        terminal.keys(&["fg", "Enter"]);
        terminal.wait("the plugin's row", restarts, "");
        terminal.wait(
            "the footer in the last row",
            |screen| screen.lines().nth(rows.parse::<usize>().ok()? - 1)?.starts_with("? help").then_some(()),
            rows,
        );
        let flags = terminal.tmux(&["display-message", "-p", "#{alternate_on} #{cursor_flag}"]);
        assert_eq!(String::from_utf8_lossy(&flags.stdout).trim(), "1 0", "its screen again");
    }
    // One that runs is not hurt by it.
    kill_process(pid, Signal::CONT).expect("it runs");
    terminal.keys(&["w"]);
    terminal.wait_text("WORKER");
    terminal.keys(&["q"]);
    terminal.wait("the shell at last", |screen| (!screen.contains("WORKER")).then_some(()), "");
    terminal.assert_shell();

    // SIGQUIT is for a core file, which this folder needs none of.
    terminal.keys(&["ulimit -c 0", "Enter"]);
    let pid = terminal.console(&daemon);
    kill_process(pid, Signal::QUIT).expect("it runs");
    terminal.assert_intact_after(131);
}

/// As `ssh -t host toru-console` runs it.
#[test]
fn without_a_shell_to_continue_it_the_console_does_not_stop() {
    let daemon = daemon();
    let Some(terminal) = Terminal::start() else { return };
    let line = format!(
        "exec {} --socket {}",
        binary("toru-console").display(),
        daemon.root().join("control.sock").display()
    );
    let opened = terminal.tmux(&["new-window", &line]);
    assert!(opened.status.success(), "{opened:?}");
    terminal.wait_text("● live");
    terminal.keys(&["C-z"]);
    let pid = terminal.tmux(&["display-message", "-p", "#{pane_pid}"]);
    let pid = String::from_utf8_lossy(&pid.stdout).trim().parse().ok().and_then(Pid::from_raw);
    kill_process(pid.expect("the window has a process"), Signal::TSTP).expect("it runs");
    terminal.keys(&["w"]);
    terminal.wait_text("WORKER");
    terminal.keys(&["q"]);
    terminal.wait("the shell of the first window", |screen| (!screen.contains("WORKER")).then_some(()), "");
}

#[test]
fn a_lost_core_is_said_to_be_lost_and_is_found_again() {
    let mut daemon = daemon();
    let Some(terminal) = Terminal::start() else { return };
    terminal.console(&daemon);
    terminal.wait("the plugin's row", restarts, "");
    daemon.kill();
    terminal.wait_text("LOST since");
    assert!(restarts(&terminal.screen()).is_some(), "the last picture stays: {}", terminal.screen());
    let daemon = daemon.start_again();
    terminal.wait_text("● live");
    daemon.wait_running("echo");
    terminal.keys(&["q"]);
    terminal.assert_intact();
}

#[test]
fn what_a_plugin_prints_never_steers_the_terminal() {
    let evil = "#!/bin/sh\nif [ \"$1\" = --metadata ]; then\n\
        echo '{\"id\":\"evil\",\"name\":\"Evil\",\"version\":\"1.0.0\",\"icon\":\"x\",\"route\":\"/evil\",\"author\":null}'\n\
        exit 0\nfi\nprintf 'wipe \\033[2J\\033[?1049l title \\033]0;gotcha\\007\\n' >&2\nsleep 0.3\nexit 1\n";
    let daemon = Stage::new().script("evil", evil).start();
    daemon.wait_event("evil", "crashed", 1);
    let Some(terminal) = Terminal::start() else { return };
    terminal.console(&daemon);
    terminal.keys(&[":logs evil", "Enter"]);
    terminal.wait_text("wipe ^[[2J^[[?1049l title ^[]0;gotcha^G");
    terminal.keys(&["Escape"]);
    // Apart, since together they would be Alt and Enter.
    terminal.wait_text("PLUGIN");
    terminal.keys(&["Enter"]);
    terminal.wait_text("Last words on stderr");
    terminal.keys(&["e"]);
    terminal.wait_text("Events of evil");
    terminal.keys(&["Enter"]);
    terminal.wait_text("plugin         evil");
    let state = terminal.tmux(&["display-message", "-p", "#{alternate_on} #{pane_title}"]);
    let state = String::from_utf8_lossy(&state.stdout).into_owned();
    assert!(state.starts_with("1 ") && !state.contains("gotcha"), "{state}");
    terminal.keys(&["q"]);
    terminal.assert_intact();
}

#[test]
fn once_says_what_the_daemon_says() {
    let daemon = daemon();
    // The socket by its name, by the older word for that, and as the configuration of the daemon has it.
    let once = |socket: &Path| {
        output(Command::new(binary("toru-console")).arg("--once").arg("--control-socket").arg(socket))
    };
    let config = daemon.root().join("named.toml");
    let line = format!("[paths]\ncontrol_socket = {:?}\n", daemon.root().join("control.sock"));
    fs::write(&config, line).expect("a file in the stage");
    let socket = daemon.root().join("control.sock");
    for words in [["--socket", socket.to_str().expect("text")], ["--config", config.to_str().expect("text")]]
    {
        let seen = output(
            Command::new(binary("toru-console"))
                .arg("--once")
                .args(words)
                .env_remove("TORU_CONTROL_SOCKET")
                .env_remove("TORU_CONFIG"),
        );
        assert!(seen.status.success(), "{words:?}: {seen:?}");
    }
    let seen = once(&daemon.root().join("control.sock"));
    assert!(seen.status.success(), "{seen:?}");
    let table = String::from_utf8(seen.stdout).expect("text");
    assert!(row(&table, "echo").is_some(), "{table}");
    let pid = daemon.plugin_pid("echo").as_raw_nonzero().to_string();
    assert!(table.contains(&pid), "{table}");
    kill_process(daemon.plugin_pid("echo"), Signal::KILL).expect("it runs");
    daemon.wait_status("echo", "again", |status| status["restarts"] == 1 && status["state"] == "running");
    let seen = once(&daemon.root().join("control.sock"));
    let table = String::from_utf8(seen.stdout).expect("text");
    let after = row(&table, "echo").expect("its row");
    assert!(after[1] == "1" && after[2].len() == 8 && after[2].contains(':'), "restarts and when: {table}");
    assert!(table.contains("killed by SIGKILL"), "{table}");
}
