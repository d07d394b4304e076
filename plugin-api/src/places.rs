//! Where a daemon, its commands and the console look for each other when nobody tells them.
//!
//! Here, since the console must find what the daemon has chosen, and knows nothing else of it.

use std::ffi::OsString;
use std::path::PathBuf;

/// The defaults that depend on who runs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Places {
    /// The configuration file.
    pub config: PathBuf,
    /// The folder of the logs.
    pub log: PathBuf,
    /// The folder of the database and the token.
    pub data: PathBuf,
    /// The daemon's control socket.
    pub control_socket: PathBuf,
}

impl Places {
    /// Those of this user; `variable` reads the environment.
    pub fn of(is_root: bool, variable: impl Fn(&str) -> Option<OsString>) -> Self {
        if is_root {
            return Self {
                config: "/etc/toru/toru.toml".into(),
                log: "/var/log/toru".into(),
                data: "/var/lib/toru".into(),
                control_socket: "/run/toru/control.sock".into(),
            };
        }
        let home = variable("HOME").map_or_else(|| PathBuf::from("/"), PathBuf::from);
        // The XDG base directory specification says to ignore relative paths.
        let xdg = |name: &str| variable(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let state = xdg("XDG_STATE_HOME").unwrap_or_else(|| home.join(".local/state")).join("toru");
        Self {
            config: xdg("XDG_CONFIG_HOME").unwrap_or_else(|| home.join(".config")).join("toru/toru.toml"),
            log: state.join("log"),
            control_socket: xdg("XDG_RUNTIME_DIR")
                .map_or_else(|| state.join("control.sock"), |runtime| runtime.join("toru/control.sock")),
            data: state,
        }
    }
}

/// The text of a configuration file.
///
/// Errors: it is no UTF-8; in words that stand behind the file's name.
pub fn config_text(bytes: Vec<u8>) -> Result<String, String> {
    String::from_utf8(bytes).map_err(|error| {
        let valid = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let (line, column) = line_and_column(str::from_utf8(valid).unwrap_or_default());
        format!("line {line}, column {column}: a byte that is no UTF-8, in which the file must be written")
    })
}

/// Where what follows `before` stands in its file, for people: both from 1 on, columns in characters.
pub fn line_and_column(before: &str) -> (usize, usize) {
    let last = before.rsplit('\n').next().unwrap_or_default();
    (before.matches('\n').count() + 1, last.chars().count() + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_utf_8_is_named_by_its_place() {
        assert_eq!(config_text("# ü\n".into()).as_deref(), Ok("# ü\n"));
        for (bytes, place) in [
            (&b"\xff\xfe[\0"[..], "line 1, column 1: "),
            (b"a = 1\n# \xc3\xbc\xe4", "line 2, column 4: "),
            (b"a = 1\r\n\n\xc3", "line 3, column 1: "),
        ] {
            let why = config_text(bytes.into()).unwrap_err();
            assert!(why.starts_with(place), "{bytes:?}: {why}");
        }
    }

    #[test]
    fn places_of_a_user_follow_the_environment_as_far_as_it_is_absolute() {
        let of = |set: &[(&str, &str)]| {
            let places =
                Places::of(false, |name| set.iter().find(|(key, _)| *key == name).map(|(_, v)| v.into()));
            let shown = |path: PathBuf| path.display().to_string();
            [shown(places.config), shown(places.data), shown(places.control_socket)]
        };
        assert_eq!(
            of(&[("HOME", "/h")]),
            ["/h/.config/toru/toru.toml", "/h/.local/state/toru", "/h/.local/state/toru/control.sock"]
        );
        let all = [("XDG_CONFIG_HOME", "/c"), ("XDG_STATE_HOME", "/s"), ("XDG_RUNTIME_DIR", "/r")];
        assert_eq!(of(&all), ["/c/toru/toru.toml", "/s/toru", "/r/toru/control.sock"]);
        let relative = [("HOME", "/h"), ("XDG_STATE_HOME", "s"), ("XDG_RUNTIME_DIR", "")];
        assert_eq!(of(&relative)[2], "/h/.local/state/toru/control.sock");
        let root = Places::of(true, |_| Some("/elsewhere".into()));
        assert_eq!(root.control_socket, PathBuf::from("/run/toru/control.sock"));
    }
}
