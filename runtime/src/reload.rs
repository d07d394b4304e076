//! Which settings change while the daemon runs, and which wait for its next start.
//!
//! Pure: the caller reads the file and tells those whom the settings concern. Every field of [`Config`] is named here,
//! so that a new one does not compile before somebody has decided.

use crate::config::{Config, HttpConfig, LogConfig, SupervisorConfig};
use crate::site::Site;

/// What a reload comes to.
pub struct Reload {
    /// What the daemon runs by from now on.
    pub config: Config,
    /// Keys whose new value holds from now on.
    pub changed: Vec<&'static str>,
    /// Keys whose new value is not looked at before the next start.
    pub at_next_start: Vec<&'static str>,
}

impl Reload {
    /// From the settings that are in force and those of the file as it is now.
    pub fn new(running: &Config, new: Config) -> Self {
        let mut at_next_start = vec![];
        let mut changed = vec![];
        // Its default is the size of a message, and so is its bound.
        let follows_messages = new.http.body_bytes_max == new.message_bytes_max as u64;
        let mut config = new;
        // Sockets are bound, folders locked, threads started, and plugins told how large a message may be.
        macro_rules! keep {
            ($($field:ident: $key:literal),* $(,)?) => {$(
                if config.$field != running.$field {
                    at_next_start.push($key);
                    config.$field = running.$field.clone();
                }
            )*};
        }
        macro_rules! take {
            ($($($field:ident).+: $key:literal),* $(,)?) => {$(
                if config.$($field).+ != running.$($field).+ {
                    changed.push($key);
                }
            )*};
        }
        keep! {
            listen: "server.listen",
            workers: "server.workers",
            driver: "server.driver",
            pin: "server.pin",
            web_root: "server.web_root",
            web_fallback: "server.web_fallback",
            plugins_dir: "paths.plugins",
            sockets_dir: "paths.sockets",
            log_dir: "paths.logs",
            data_dir: "paths.data",
            control_socket: "paths.control_socket",
            message_bytes_max: "protocol.message_bytes_max",
            legacy_connections: "protocol.legacy_connections",
            token_file: "auth.token_file",
        }
        if config.store.synchronous != running.store.synchronous {
            at_next_start.push("kv.synchronous");
        }
        if config.store.quota_bytes != running.store.quota_bytes {
            at_next_start.push("kv.quota_bytes");
        }
        if config.store.events_kept != running.store.events_kept {
            at_next_start.push("events.keep_days");
        }
        if config.store.event_rows_max != running.store.event_rows_max {
            at_next_start.push("events.keep_rows");
        }
        config.store = running.store;
        let message_bytes_max = config.message_bytes_max as u64;
        if follows_messages || config.http.body_bytes_max > message_bytes_max {
            config.http.body_bytes_max = message_bytes_max;
        }
        take! {
            supervisor.health_interval: "supervisor.health_interval_ms",
            supervisor.unanswered_pings: "supervisor.unanswered_pings",
            supervisor.policy.ready_timeout: "supervisor.ready_timeout_ms",
            supervisor.policy.backoff: "supervisor.backoff_ms",
            supervisor.policy.restarts_max: "supervisor.max_restarts",
            supervisor.policy.stable_after: "supervisor.stable_after_ms",
            supervisor.policy.stop_grace: "supervisor.stop_grace_ms",
            supervisor.policy.term_grace: "supervisor.term_grace_ms",
            http.head_timeout: "http.head_timeout_ms",
            http.body_timeout: "http.body_timeout_ms",
            http.idle_timeout: "http.idle_timeout_ms",
            http.write_timeout: "http.write_timeout_ms",
            http.write_bytes_per_second_min: "http.write_bytes_per_second_min",
            http.request_timeout: "http.request_timeout_ms",
            http.half_close_timeout: "http.half_close_timeout_ms",
            http.body_bytes_per_second_min: "http.body_bytes_per_second_min",
            http.body_rate_after: "http.body_rate_after_ms",
            http.head_bytes_max: "http.head_bytes_max",
            http.body_bytes_max: "http.body_bytes_max",
            http.answer_head_bytes_max: "http.answer_head_bytes_max",
            http.answer_fields_max: "http.answer_fields_max",
            http.connections_max: "http.connections_max",
            http.trusted_proxies: "http.trusted_proxies",
            site.hosts: "server.hosts",
            site.origins: "server.origins",
            frame_timeout: "protocol.frame_timeout_ms",
            log.level: "log.level",
            log.access: "log.access",
            log.summary_interval: "log.summary_interval_s",
            log.rotate_bytes: "log.rotate_bytes",
            log.rotate_keep: "log.rotate_keep",
            plugins_need_token: "auth.plugins_need_token",
            notify_command: "notify.command",
            plugins: "plugins",
            processes: "plugins.ID.process",
        }
        all_named(&config);
        Self { config, changed, at_next_start }
    }
}

/// Does nothing but fail to compile when a setting is added that nobody has looked at.
fn all_named(config: &Config) {
    let Config {
        listen: _,
        workers: _,
        driver: _,
        pin: _,
        web_root: _,
        web_fallback: _,
        site: Site { hosts: _, origins: _ },
        plugins_dir: _,
        sockets_dir: _,
        log_dir: _,
        data_dir: _,
        control_socket: _,
        supervisor: SupervisorConfig { policy: _, health_interval: _, unanswered_pings: _ },
        http:
            HttpConfig {
                head_timeout: _,
                body_timeout: _,
                idle_timeout: _,
                write_timeout: _,
                write_bytes_per_second_min: _,
                request_timeout: _,
                half_close_timeout: _,
                head_bytes_max: _,
                body_bytes_max: _,
                answer_head_bytes_max: _,
                answer_fields_max: _,
                connections_max: _,
                body_bytes_per_second_min: _,
                body_rate_after: _,
                trusted_proxies: _,
            },
        message_bytes_max: _,
        frame_timeout: _,
        legacy_connections: _,
        log: LogConfig { level: _, echo: _, access: _, summary_interval: _, rotate_bytes: _, rotate_keep: _ },
        store: _,
        token_file: _,
        plugins_need_token: _,
        notify_command: _,
        plugins: _,
        processes: _,
    } = config;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Overrides;

    fn load(text: &str) -> Config {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("toru.toml");
        std::fs::write(&path, text).expect("write");
        Config::load(&Overrides { config: Some(path), ..Overrides::default() }).expect("valid")
    }

    #[test]
    fn the_same_file_changes_nothing() {
        let text = "[plugins.a]\nx = { z = 1, y = 2 }\n[plugins.a.process]\nenv = { B = \"1\", A = \"2\", C = \"3\" }\n";
        for _ in 0..20 {
            let reload = Reload::new(&load(text), load(text));
            assert_eq!((reload.changed.len(), reload.at_next_start.len()), (0, 0), "{:?}", reload.changed);
        }
    }

    #[test]
    fn what_cannot_change_stays_as_it_is_and_is_named() {
        let running = load("");
        let new = "[server]\nlisten = \"127.0.0.1:1\"\nworkers = 9\n[paths]\nlogs = \"/x\"\n\
                   [protocol]\nmessage_bytes_max = 2048\n[kv]\nquota_bytes = 1\n\
                   [http]\nrequest_timeout_ms = 7\n[supervisor]\nmax_restarts = 3\n[plugins.a]\nx = 1\n";
        let reload = Reload::new(&running, load(new));
        assert_eq!(
            reload.at_next_start,
            ["server.listen", "server.workers", "paths.logs", "protocol.message_bytes_max", "kv.quota_bytes"]
        );
        assert!(reload.changed.contains(&"http.request_timeout_ms"), "{:?}", reload.changed);
        assert!(reload.changed.contains(&"supervisor.max_restarts") && reload.changed.contains(&"plugins"));
        assert_eq!((reload.config.listen, reload.config.workers), (running.listen, running.workers));
        assert_eq!(reload.config.message_bytes_max, running.message_bytes_max);
        assert_eq!(reload.config.store.quota_bytes, running.store.quota_bytes);
        assert_eq!(reload.config.http.request_timeout.as_millis(), 7);
        assert_eq!(reload.config.plugins["a"], "{\"x\":1}");
    }

    #[test]
    fn a_content_never_outgrows_the_messages_that_plugins_were_told_of() {
        let new = "[protocol]\nmessage_bytes_max = 8388608\n[http]\nbody_bytes_max = 4194304\n";
        let reload = Reload::new(&load(""), load(new));
        assert_eq!(reload.config.http.body_bytes_max, 1_048_576);
        assert_eq!(reload.changed, Vec::<&str>::new(), "nothing that holds has changed");
    }
}
