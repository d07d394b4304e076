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

#[cfg(test)]
mod tests {
    use super::*;

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
