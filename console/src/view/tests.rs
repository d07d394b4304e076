//! Every screen as it looks, the unhappy ones too.

use ratatui::style::{Color, Modifier};

use super::{Look, Theme};
use crate::model::{Sort, Verb};
use crate::testing::{Session, crashed, plugin};
use crate::update::{Key, Msg, News};

/// A small installation with some of everything, four seconds long.
fn busy(columns: u16, rows: u16) -> Session {
    let mut session = Session::new(columns, rows);
    for second in 0..4u64 {
        let mut acme = plugin("acme");
        (acme.requests, acme.errors, acme.in_flight) = (second * (100 + second * 40), second * 2, 3);
        let mut bolt = plugin("bolt");
        (bolt.requests, bolt.restarts, bolt.last_exit) = (second * 7, 1, Some("exit code 1".into()));
        let mut idle = plugin("idle");
        (idle.enabled, idle.running, idle.state, idle.health) =
            (false, false, "stopped".into(), "stopped".into());
        (idle.pid, idle.uptime_ms, idle.cpu_percent, idle.rss_bytes) = (None, None, None, None);
        session.snapshot(vec![acme, bolt, idle]);
    }
    session
}

fn trouble(columns: u16, rows: u16) -> Session {
    let mut session = busy(columns, rows);
    let mut hung = plugin("hung");
    hung.health = "unresponsive".into();
    let before = crashed("zebra", 3);
    session.snapshot(vec![plugin("acme"), hung.clone(), before]);
    session.event(1, "zebra", "crashed", r#"{"exit":"killed by SIGKILL","failures":3,"next_start_ms":4000}"#);
    session.event(
        2,
        "zebra",
        "crashed",
        r#"{"exit":"killed by SIGKILL","failures":4,"next_start_ms":4000,"stderr":["opening store","panicked at \u001b[31mlib.rs:7"]}"#,
    );
    session.snapshot(vec![plugin("acme"), hung, crashed("zebra", 4)]);
    session
}

#[test]
fn plugins() {
    insta::assert_snapshot!("plugins_80", busy(80, 16).picture());
    insta::assert_snapshot!("plugins_200", busy(200, 10).picture());
    insta::assert_snapshot!("plugins_40", busy(40, 10).picture());
    let mut session = busy(80, 10);
    session.typed("R").key(Key::Down).typed(" ");
    insta::assert_snapshot!("plugins_sorted_and_marked", session.picture());
    session.typed("!acm");
    insta::assert_snapshot!("plugins_while_filtering", session.picture());
}

#[test]
fn trouble_is_what_the_eye_meets() {
    let session = trouble(80, 14);
    insta::assert_snapshot!("trouble_80", session.picture());
    let buffer = session.buffer();
    let line = |row: u16| (0..80).map(|column| buffer[(column, row)].symbol()).collect::<String>();
    assert!(line(2).contains("zebra"), "the alarm comes right after the header");
    assert!((0..80).all(|column| buffer[(column, 2)].bg == Color::Red), "over the whole width");
    assert!(line(4).contains("zebra"), "and the worst is the first row, though its id is the last");
    insta::assert_snapshot!("trouble_40", trouble(40, 14).picture());
}

#[test]
fn a_hundred_plugins_scroll() {
    let mut session = Session::new(80, 12);
    let plugins = || (0..100).map(|number| plugin(&format!("plugin-{number:03}"))).collect::<Vec<_>>();
    session.snapshot(plugins()).snapshot(plugins());
    insta::assert_snapshot!("hundred_top", session.picture());
    session.typed("G").key(Key::PageUp);
    insta::assert_snapshot!("hundred_bottom", session.picture());
}

#[test]
fn without_plugins_and_without_a_core() {
    let mut session = Session::new(80, 8);
    insta::assert_snapshot!("connecting", session.picture());
    session.news(News::Lost { reason: "no core at /run/toru/control.sock".into() });
    insta::assert_snapshot!("no_core", session.picture());
    session.snapshot(vec![]);
    insta::assert_snapshot!("no_plugins", session.picture());
}

#[test]
fn a_lost_core_leaves_its_last_picture_grey() {
    let mut session = trouble(80, 12);
    session.news(News::Lost { reason: "the core closed the line".into() });
    session.seconds += 75;
    session.send(Msg::Tick);
    insta::assert_snapshot!("lost", session.picture());
    let buffer = session.buffer();
    for position in (super::Rect { x: 0, y: 2, width: 80, height: 9 }).positions() {
        let cell = &buffer[position];
        assert!(cell.fg == Color::DarkGray && cell.bg == Color::Reset, "{position}: {cell:?}");
    }
}

#[test]
fn detail() {
    let mut session = busy(80, 24);
    session.event(1, "acme", "ready", r#"{"pid":4000,"startup_ms":12}"#);
    session.event(2, "bolt", "ready", r#"{"pid":4001}"#);
    session.key(Key::Enter);
    insta::assert_snapshot!("detail_80", session.picture());
    let mut session = trouble(100, 30);
    session.key(Key::Home).key(Key::Enter);
    insta::assert_snapshot!("detail_crash_loop", session.picture());
    let mut session = busy(40, 24);
    session.key(Key::Enter);
    insta::assert_snapshot!("detail_40", session.picture());
    session.snapshot(vec![]);
    insta::assert_snapshot!("detail_gone", session.picture());
}

#[test]
fn logs() {
    let mut session = busy(80, 10);
    session.typed(":logs acme bolt").key(Key::Enter);
    insta::assert_snapshot!("logs_empty", session.picture());
    session.log("acme", "debug", "not shown at first").log("acme", "info", "listening");
    session.log("bolt", "warn", "disk is 91% full").log(
        "acme",
        "error",
        "cannot open \u{1b}[2J\u{7}database",
    );
    session.log("bolt", "info", &"a long line ".repeat(12));
    insta::assert_snapshot!("logs_merged", session.picture());
    session.typed("w1/open").key(Key::Enter);
    insta::assert_snapshot!("logs_search_wrapped", session.picture());
}

#[test]
fn events_and_workers() {
    let mut session = trouble(80, 8);
    session.typed("e");
    insta::assert_snapshot!("events", session.picture());
    session.key(Key::Esc).typed("w");
    insta::assert_snapshot!("workers", session.picture());
    let mut session = busy(80, 8);
    session.news(News::EventsUnavailable { reason: "This core gives no events.".into() }).typed("e");
    insta::assert_snapshot!("events_unavailable", session.picture());
}

#[test]
fn questions_help_and_outcomes() {
    let mut session = busy(80, 16);
    session.typed("r");
    insta::assert_snapshot!("confirm", session.picture());
    session.typed("y");
    insta::assert_snapshot!("on_its_way", session.picture());
    session.news(News::Outcome {
        verb: Verb::Restart.word().into(),
        plugin: "acme".into(),
        after_ms: 312,
        error: None,
    });
    insta::assert_snapshot!("outcome", session.picture());
    for (screen, keys) in [("plugins", "?"), ("logs", "xl?"), ("workers", "xw?")] {
        let mut session = busy(80, 22);
        // The first key of two closes nothing and asks nothing: it answers the question of `x`.
        for key in keys.chars() {
            session.typed(&key.to_string());
            if key == 'x' {
                session.typed("n");
            }
        }
        insta::assert_snapshot!(format!("help_{screen}"), session.picture());
    }
    let mut session = busy(80, 8);
    session.typed(":re");
    insta::assert_snapshot!("command_line", session.picture());
}

#[test]
fn ascii_draws_nothing_else() {
    for keys in ["", "?", "r", "w", "e", "l", "/x"] {
        let mut session = trouble(80, 16);
        session.look = Look { ascii: true, ..Look::default() };
        session.typed(keys);
        assert!(session.picture().is_ascii(), "{keys}: {}", session.picture());
    }
    let mut session = trouble(80, 12);
    session.look.ascii = true;
    insta::assert_snapshot!("ascii", session.picture());
    session.key(Key::Enter);
    assert!(session.picture().is_ascii(), "{}", session.picture());
}

#[test]
fn mono_has_no_colour_and_keeps_the_alarm() {
    for keys in ["", "?", "r", "w", "e"] {
        let mut session = trouble(80, 16);
        session.look.theme = Theme::Mono;
        session.typed(keys);
        let buffer = session.buffer();
        for cell in &buffer.content {
            assert!(cell.fg == Color::Reset && cell.bg == Color::Reset, "{keys}: {cell:?}");
        }
        if keys.is_empty() {
            assert!(buffer[(0, 2)].modifier.contains(Modifier::REVERSED | Modifier::BOLD));
        }
    }
}

#[test]
fn colours_are_of_the_sixteen() {
    for theme in [Theme::Dark, Theme::Light] {
        let mut session = trouble(100, 30);
        session.look.theme = theme;
        for keys in ["", "?", "re", "w"] {
            session.typed(keys);
            for cell in &session.buffer().content {
                for color in [cell.fg, cell.bg] {
                    assert!(!matches!(color, Color::Rgb(..) | Color::Indexed(_)), "{cell:?}");
                    assert!(theme == Theme::Dark || color != Color::Yellow, "yellow on white: {cell:?}");
                }
            }
        }
    }
}

#[test]
fn no_size_and_no_screen_panics_or_lets_a_control_character_through() {
    for columns in [1, 2, 19, 20, 33, 40, 74, 75, 80, 131, 240] {
        for rows in [1, 5, 6, 7, 9, 24, 60] {
            for keys in ["", "?", "r", "w", "e", "l", ":", "/a", "d"] {
                let mut session = trouble(columns, rows);
                let mut evil = plugin("evil");
                evil.last_exit = Some("\u{1b}[2J\u{9b}31m\u{202e}".into());
                evil.version = "\u{7}\u{0}".into();
                session.snapshot(vec![evil.clone()]).snapshot(vec![evil]);
                match keys {
                    "d" => session.key(Key::Enter),
                    keys => session.typed(keys),
                };
                session.log("evil", "info", "\u{1b}]0;title\u{7}");
                for cell in &session.buffer().content {
                    assert!(!cell.symbol().contains(char::is_control), "{columns}x{rows} {keys}: {cell:?}");
                }
            }
        }
    }
}

#[test]
fn every_column_can_lead() {
    let mut session = trouble(200, 12);
    for column in crate::columns::Column::ALL {
        session.typed(&column.key().to_string());
        let Sort { column: chosen, .. } = session.model.sort;
        assert_eq!(chosen, column);
        assert!(
            session.picture().lines().nth(3).is_some_and(|titles| titles.contains(['▼', '▲'])),
            "{column:?}"
        );
    }
}
