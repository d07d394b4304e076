//! Every screen as it looks, the unhappy ones too.

use ratatui::style::{Color, Modifier};

use super::{Look, Theme};
use crate::model::{Sort, Verb};
use crate::testing::{Rig, crashed, plugin};
use crate::update::{Key, Msg, News};
use toru_plugin_api::status::PluginStatus;

/// A small installation with some of everything, four seconds long.
fn busy(columns: u16, rows: u16) -> Rig {
    let mut rig = Rig::new(columns, rows);
    let restarted = rig.unix_ms() - 3_600_000;
    for second in 0..4u64 {
        let mut acme = plugin("acme");
        (acme.requests, acme.errors, acme.in_flight) = (second * (100 + second * 40), second * 2, 3);
        let mut bolt = plugin("bolt");
        (bolt.requests, bolt.restarts, bolt.last_exit) = (second * 7, 1, Some("exit code 1".into()));
        bolt.last_restart = Some(restarted);
        let mut idle = plugin("idle");
        (idle.enabled, idle.running, idle.state, idle.health) =
            (false, false, "stopped".into(), "stopped".into());
        (idle.pid, idle.uptime_ms, idle.cpu_percent, idle.rss_bytes) = (None, None, None, None);
        rig.snapshot(vec![acme, bolt, idle]);
    }
    rig
}

fn trouble(columns: u16, rows: u16) -> Rig {
    let mut rig = busy(columns, rows);
    let mut hung = plugin("hung");
    hung.health = "unresponsive".into();
    let before = crashed("zebra", 3);
    rig.snapshot(vec![plugin("acme"), hung.clone(), before]);
    rig.event(1, "zebra", "crashed", r#"{"exit":"killed by SIGKILL","failures":3,"next_start_ms":4000}"#);
    rig.event(
        2,
        "zebra",
        "crashed",
        r#"{"exit":"killed by SIGKILL","failures":4,"next_start_ms":4000,"stderr":["opening store","panicked at \u001b[31mlib.rs:7"]}"#,
    );
    let next_start = Some(rig.unix_ms() + 4000);
    rig.snapshot(vec![plugin("acme"), hung, PluginStatus { next_start, ..crashed("zebra", 4) }]);
    rig
}

#[test]
fn plugins() {
    insta::assert_snapshot!("plugins_80", busy(80, 16).picture());
    insta::assert_snapshot!("plugins_200", busy(200, 10).picture());
    insta::assert_snapshot!("plugins_40", busy(40, 10).picture());
    let mut rig = busy(80, 10);
    rig.typed("R").key(Key::Down).typed(" ");
    insta::assert_snapshot!("plugins_sorted_and_marked", rig.picture());
    rig.typed("!acm");
    insta::assert_snapshot!("plugins_while_filtering", rig.picture());
}

#[test]
fn trouble_is_what_the_eye_meets() {
    let rig = trouble(80, 14);
    insta::assert_snapshot!("trouble_80", rig.picture());
    let buffer = rig.buffer();
    let line = |row: u16| (0..80).map(|column| buffer[(column, row)].symbol()).collect::<String>();
    assert!(line(2).contains("zebra"), "the alarm comes right after the header");
    assert!((0..80).all(|column| buffer[(column, 2)].bg == Color::Red), "over the whole width");
    assert!(line(3).contains("hung"), "the other kind of trouble has its own");
    assert!(line(5).contains("zebra"), "and the worst is the first row, though its id is the last");
    insta::assert_snapshot!("trouble_40", trouble(40, 14).picture());
}

#[test]
fn a_hundred_plugins_scroll() {
    let mut rig = Rig::new(80, 12);
    let plugins = || (0..100).map(|number| plugin(&format!("plugin-{number:03}"))).collect::<Vec<_>>();
    rig.snapshot(plugins()).snapshot(plugins());
    insta::assert_snapshot!("hundred_top", rig.picture());
    rig.typed("G").key(Key::PageUp);
    insta::assert_snapshot!("hundred_bottom", rig.picture());
}

/// Everything that a detail of this size shows when one goes through it by this key.
fn paged(rig: &mut Rig, key: Key) -> String {
    rig.key(Key::Home);
    let mut seen = rig.picture();
    let mut pages = 1;
    while rig.model.hidden().1 > 0 {
        rig.key(key);
        seen.push_str(&rig.picture());
        pages += 1;
        assert!(pages < 200, "there is no end: {seen}");
    }
    seen
}

#[test]
fn whatever_has_no_room_on_a_detail_can_be_reached() {
    let exit = "init failed: the licence of this installation has run out and nobody has renewed it";
    let lines: Vec<String> =
        (0..20).map(|number| format!("line {number:02} {}.", "of many words ".repeat(5))).collect();
    let details = serde_json::json!({ "exit": exit, "stderr": lines }).to_string();
    for (columns, rows) in [(40, 24), (20, 6), (80, 24), (80, 9), (60, 24), (200, 70), (75, 8), (100, 30)] {
        let mut rig = busy(columns, rows);
        for id in 0..12 {
            rig.event(id, "acme", "crashed", &details);
        }
        rig.snapshot(vec![PluginStatus { last_exit: Some(exit.into()), ..crashed("acme", 1) }]);
        rig.key(Key::Enter);
        let whole = columns == 200;
        assert_eq!(rig.model.hidden() == (0, 0), whole, "{columns}x{rows}: {}", rig.picture());
        for key in [Key::Down, Key::PageDown] {
            let seen = paged(&mut rig, key);
            // Words may be broken over rows; everything but blanks is there.
            let dense: String = seen.split_whitespace().collect();
            let facts = ["The acme plugin", "256 files", "workers", "requests/s", "renewed it"];
            // Of three rows none holds these whole.
            let long = ["/tmp/toru-plugins/acme.sock", exit];
            for part in facts.iter().chain(long.iter().filter(|_| rows > 6)) {
                let part: String = part.split_whitespace().collect();
                assert!(dense.contains(&part), "{columns}x{rows} {key:?}: no {part} in {seen}");
            }
            assert!(seen.contains("memory -") && seen.contains("p50"), "{columns}x{rows} {key:?}: {seen}");
            for number in 0..20 {
                assert!(
                    seen.contains(&format!("line {number:02}")),
                    "{columns}x{rows} {key:?}: {number}: {seen}"
                );
            }
            assert!(
                dense.contains("ofmanywords."),
                "the ends of the lines: {columns}x{rows} {key:?}: {seen}"
            );
        }
        if whole {
            continue;
        }
        let mark = |rig: &Rig| rig.picture().lines().nth(1).unwrap_or_default().to_owned();
        assert!(mark(&rig).contains('▲') && !mark(&rig).contains('▼'), "{}", mark(&rig));
        rig.typed("k");
        assert!(mark(&rig).contains("▼1"), "the end is the end, not beyond it: {}", mark(&rig));
        rig.typed("g");
        assert!(!mark(&rig).contains('▲') && mark(&rig).contains('▼'), "{}", mark(&rig));
        // More room, and what was scrolled to is not beyond the end.
        rig.typed("G").send(Msg::Resize(200, 70));
        assert_eq!(rig.model.hidden(), (0, 0));
        assert!(rig.picture().contains("The acme plugin"), "{}", rig.picture());
    }
}

#[test]
fn lists_say_how_much_is_out_of_sight() {
    let mut rig = Rig::new(80, 12);
    rig.snapshot((0..100).map(|number| plugin(&format!("plugin-{number:03}"))).collect());
    let second = |rig: &Rig| rig.picture().lines().nth(1).unwrap_or_default().to_owned();
    assert!(second(&rig).ends_with("▼92 more (j k)"), "{}", second(&rig));
    rig.typed("G");
    assert!(second(&rig).ends_with("▲92 more (j k)"), "{}", second(&rig));
    rig.key(Key::PageUp).key(Key::PageUp).send(Msg::Resize(40, 12));
    assert!(second(&rig).contains('▲') && second(&rig).contains('▼'), "{}", second(&rig));
    for id in 0..30 {
        rig.event(id, "plugin-001", "ready", "null");
    }
    rig.typed("e");
    assert!(second(&rig).ends_with("▲21"), "the newest are at the bottom: {}", second(&rig));
    rig.typed("g");
    assert!(second(&rig).ends_with("▼21"), "{}", second(&rig));
}

#[test]
fn each_kind_of_trouble_has_a_row_of_its_own() {
    let of = |size: (u16, u16)| {
        let mut rig = Rig::new(size.0, size.1);
        let failed = |id: &str| PluginStatus { state: "failed".into(), failures: 5, ..crashed(id, 5) };
        let hung = PluginStatus { health: "unresponsive".into(), ..plugin("hung") };
        let looping = PluginStatus { failures: 3, ..crashed("zebra", 3) };
        let all = vec![failed("b-old"), failed("a-old"), looping, hung, crashed("once", 1), plugin("acme")];
        rig.snapshot(all.clone()).snapshot(all);
        rig
    };
    let rig = of((80, 24));
    insta::assert_snapshot!("trouble_of_every_kind", rig.picture());
    let rows = |rig: &Rig| rig.picture().lines().map(str::to_owned).collect::<Vec<_>>();
    let rows80 = rows(&rig);
    assert!(rows80[2].starts_with("▲ a-old FAILED (+1 more): killed by SIGKILL; given up"), "{rows80:?}");
    assert!(rows80[3].starts_with("▲ zebra CRASH-LOOP: 3 crashes in a row"), "{rows80:?}");
    let first = rows80.iter().position(|row| row.contains("PLUGIN")).expect("titles") + 1;
    assert!(rows80[first].contains("a-old"), "the first row is the alarm's: {rows80:?}");
    let small = rows(&of((80, 11)));
    assert!(small[2].starts_with("▲ a-old FAILED (+4 more)") && small[3].contains("PLUGIN"), "{small:?}");
    assert!(small[0].starts_with("2 FAILED · 1 CRASH-LOOP · 1 HUNG · 1 crashed · "), "{small:?}");
    let narrow = rows(&of((40, 16)));
    assert!(narrow[3].starts_with("▲ zebra CRASH-LOOP"), "{narrow:?}");
    assert!(narrow[2].ends_with('…'), "what is cut has a sign: {narrow:?}");
    assert!(narrow[0].contains("2 FAILED") && narrow[0].contains('…'), "{narrow:?}");
}

#[test]
fn why_there_is_no_line_has_room_on_any_screen() {
    let mut rig = trouble(40, 12);
    rig.news(News::Lost { reason: "no core at /run/toru/control.sock".into() });
    let picture = rig.picture();
    assert!(picture.contains("\nPlugins · no core at /run/toru/control.…\n"), "{picture}");
}

#[test]
fn a_long_reason_goes_on_in_the_next_row() {
    let reason =
        "init failed: the licence of this installation ran out yesterday and nobody has renewed it since";
    let mut rig = Rig::new(80, 24);
    let failed =
        PluginStatus { state: "failed".into(), last_exit: Some(reason.into()), ..crashed("acme", 5) };
    rig.snapshot(vec![failed.clone(), plugin("bolt")]);
    let picture = rig.picture();
    let alarm: Vec<&str> = picture.lines().skip(2).take(2).collect();
    assert_eq!(alarm.join(" "), format!("▲ acme FAILED: {reason}; given up, restart it when mended"));
    let buffer = rig.buffer();
    assert!((0..80).all(|column| buffer[(column, 3)].bg == Color::Red), "both rows are loud");
    rig.send(Msg::Click { column: 20, row: 6 });
    assert_eq!(rig.model.selected.as_deref(), Some("bolt"), "the rows below have moved down: {picture}");
    rig.snapshot(vec![PluginStatus { last_exit: Some("why ".repeat(100)), ..failed }]);
    assert!(rig.picture().lines().nth(3).is_some_and(|row| row.ends_with('…')), "{}", rig.picture());
}

#[test]
fn when_it_starts_has_room_before_how_it_ended() {
    let mut rig = Rig::new(108, 12);
    let next_start = Some(rig.unix_ms() + 7000);
    rig.snapshot(vec![PluginStatus { next_start, ..crashed("zebra", 3) }]);
    let picture = rig.picture();
    assert!(picture.contains("LAST EXIT") && picture.contains("in 6s, killed by"), "{picture}");
    rig.send(Msg::Resize(200, 12));
    assert!(rig.picture().contains("starts in 6s, killed by SIGKILL\n"), "{}", rig.picture());
}

#[test]
fn clicks_are_in_the_help_where_they_come() {
    let mut rig = busy(80, 24);
    rig.typed("?");
    assert!(!rig.picture().contains("mouse"));
    rig.model.mouse = true;
    assert!(rig.picture().contains("mouse       click on a row: choose it"), "{}", rig.picture());
    rig.key(Key::Esc).key(Key::Enter).typed("?");
    insta::assert_snapshot!("help_detail", rig.picture());
}

#[test]
fn without_plugins_and_without_a_core() {
    let mut rig = Rig::new(80, 8);
    insta::assert_snapshot!("connecting", rig.picture());
    rig.news(News::Lost { reason: "no core at /run/toru/control.sock".into() });
    insta::assert_snapshot!("no_core", rig.picture());
    rig.snapshot(vec![]);
    insta::assert_snapshot!("no_plugins", rig.picture());
}

#[test]
fn a_lost_core_leaves_its_last_picture_grey() {
    let mut rig = trouble(80, 12);
    rig.news(News::Lost { reason: "the core closed the line".into() });
    rig.seconds += 75;
    rig.send(Msg::Tick);
    insta::assert_snapshot!("lost", rig.picture());
    let buffer = rig.buffer();
    for column in 0..50 {
        let cell = &buffer[(column, 0)];
        assert!(matches!(cell.fg, Color::DarkGray | Color::Reset) && cell.bg == Color::Reset, "{cell:?}");
    }
    for position in (super::Rect { x: 0, y: 2, width: 80, height: 9 }).positions() {
        let cell = &buffer[position];
        assert!(cell.fg == Color::DarkGray && cell.bg == Color::Reset, "{position}: {cell:?}");
    }
}

#[test]
fn detail() {
    let mut rig = busy(80, 24);
    rig.event(1, "acme", "ready", r#"{"pid":4000,"startup_ms":12}"#);
    rig.event(2, "bolt", "ready", r#"{"pid":4001}"#);
    rig.key(Key::Enter);
    insta::assert_snapshot!("detail_80", rig.picture());
    let mut rig = trouble(100, 30);
    rig.key(Key::Home).key(Key::Enter);
    insta::assert_snapshot!("detail_crash_loop", rig.picture());
    let mut rig = busy(40, 24);
    rig.key(Key::Enter);
    insta::assert_snapshot!("detail_40", rig.picture());
    rig.typed("G");
    insta::assert_snapshot!("detail_40_end", rig.picture());
    rig.snapshot(vec![]);
    insta::assert_snapshot!("detail_gone", rig.picture());
}

#[test]
fn logs() {
    let mut rig = busy(80, 10);
    rig.typed(":logs acme bolt").key(Key::Enter);
    insta::assert_snapshot!("logs_empty", rig.picture());
    rig.log("acme", "debug", "not shown at first").log("acme", "info", "listening");
    rig.log("bolt", "warn", "disk is 91% full").log("acme", "error", "cannot open \u{1b}[2J\u{7}database");
    rig.log("bolt", "info", &"a long line ".repeat(12));
    insta::assert_snapshot!("logs_merged", rig.picture());
    rig.typed("w1/open").key(Key::Enter);
    insta::assert_snapshot!("logs_search_wrapped", rig.picture());
    rig.log(
        "acme",
        "info",
        &format!("{} the needle, and more of it {}", "hay ".repeat(50), "hay ".repeat(50)),
    );
    rig.typed("wG/needle\n");
    insta::assert_snapshot!("logs_search_beyond_the_edge", rig.picture());
}

#[test]
fn events_and_workers() {
    let mut rig = trouble(80, 8);
    rig.typed("e");
    insta::assert_snapshot!("events", rig.picture());
    rig.key(Key::Enter);
    insta::assert_snapshot!("event", rig.picture());
    rig.typed("G");
    insta::assert_snapshot!("event_end", rig.picture());
    rig.key(Key::Esc).key(Key::Esc).typed("w");
    insta::assert_snapshot!("workers", rig.picture());
    let mut rig = busy(80, 8);
    rig.news(News::EventsUnavailable { reason: "This core gives no events.".into() }).typed("e");
    insta::assert_snapshot!("events_unavailable", rig.picture());
}

#[test]
fn questions_help_and_outcomes() {
    let mut rig = busy(80, 16);
    rig.typed("r");
    insta::assert_snapshot!("confirm", rig.picture());
    rig.typed("y");
    insta::assert_snapshot!("on_its_way", rig.picture());
    rig.news(News::Outcome {
        verb: Verb::Restart.word().into(),
        plugin: "acme".into(),
        after_ms: 312,
        error: None,
    });
    insta::assert_snapshot!("outcome", rig.picture());
    for (screen, keys) in [("plugins", "?"), ("logs", "xl?"), ("workers", "xw?")] {
        let mut rig = busy(80, 22);
        // The first key of two closes nothing and asks nothing: it answers the question of `x`.
        for key in keys.chars() {
            rig.typed(&key.to_string());
            if key == 'x' {
                rig.typed("n");
            }
        }
        insta::assert_snapshot!(format!("help_{screen}"), rig.picture());
    }
    for (name, keys) in [("help_40", "?"), ("help_40_scrolled", "?jjjjjjjj"), ("confirm_40", "r")] {
        let mut rig = busy(40, 20);
        rig.typed(keys);
        insta::assert_snapshot!(name, rig.picture());
    }
    let mut rig = busy(80, 8);
    rig.typed(":re");
    insta::assert_snapshot!("command_line", rig.picture());
}

#[test]
fn ascii_draws_nothing_else() {
    for keys in ["", "?", "r", "w", "e", "e\n", "l", "/x"] {
        let mut rig = trouble(80, 16);
        rig.look = Look { ascii: true, ..Look::default() };
        rig.typed(keys);
        assert!(rig.picture().is_ascii(), "{keys}: {}", rig.picture());
    }
    let mut rig = trouble(80, 12);
    rig.look.ascii = true;
    insta::assert_snapshot!("ascii", rig.picture());
    rig.key(Key::Enter);
    assert!(rig.picture().is_ascii(), "{}", rig.picture());
}

/// The picture, and under each row that has any its attributes: R reversed, B bold, U underlined, d dim.
fn attributes(rig: &Rig) -> String {
    let buffer = rig.buffer();
    let mut out = String::new();
    for (row, line) in (0..buffer.area.height).zip(rig.picture().lines()) {
        let marks: String = (0..buffer.area.width)
            .map(|column| {
                let cell = &buffer[(column, row)];
                let has = |modifier| cell.modifier.contains(modifier);
                match () {
                    () if cell.symbol() == " " && !has(Modifier::REVERSED) => ' ',
                    () if has(Modifier::REVERSED) => 'R',
                    () if has(Modifier::UNDERLINED) => 'U',
                    () if has(Modifier::BOLD) => 'B',
                    () if has(Modifier::DIM) => 'd',
                    () => ' ',
                }
            })
            .collect();
        out.push_str(&format!("{line}\n"));
        if !marks.trim().is_empty() {
            out.push_str(&format!("{}\n", marks.trim_end()));
        }
    }
    out
}

#[test]
fn mono_has_no_colour_and_keeps_the_alarm() {
    for keys in ["", "?", "r", "w", "e"] {
        let mut rig = trouble(80, 16);
        rig.look.theme = Theme::Mono;
        rig.typed(keys);
        let buffer = rig.buffer();
        for cell in &buffer.content {
            assert!(cell.fg == Color::Reset && cell.bg == Color::Reset, "{keys}: {cell:?}");
        }
        if keys.is_empty() {
            insta::assert_snapshot!("mono", attributes(&rig));
            assert!(buffer[(0, 2)].modifier.contains(Modifier::REVERSED | Modifier::BOLD));
        }
    }
}

#[test]
fn colours_are_of_the_sixteen() {
    for theme in [Theme::Dark, Theme::Light] {
        let mut rig = trouble(100, 30);
        rig.look.theme = theme;
        for keys in ["", "?", "re", "w"] {
            rig.typed(keys);
            for cell in &rig.buffer().content {
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
            for keys in ["", "?", "r", "w", "e", "e\n", "l", ":", "/a", "\n"] {
                let mut rig = trouble(columns, rows);
                let mut evil = plugin("evil");
                evil.last_exit = Some("\u{1b}[2J\u{9b}31m\u{202e}".into());
                evil.version = "\u{7}\u{0}".into();
                rig.snapshot(vec![evil.clone()]).snapshot(vec![evil]);
                rig.event(9, "evil", "crashed", r#"{"exit":"\u001b[2J","stderr":["\u001b[2J","\u009b31m"]}"#);
                rig.typed(keys);
                rig.log("evil", "info", "\u{1b}]0;title\u{7}");
                for cell in &rig.buffer().content {
                    assert!(!cell.symbol().contains(char::is_control), "{columns}x{rows} {keys}: {cell:?}");
                }
            }
        }
    }
}

#[test]
fn every_column_can_lead() {
    let mut rig = trouble(200, 12);
    for column in crate::columns::Column::ALL {
        rig.typed(&column.key().to_string());
        let Sort { column: chosen, .. } = rig.model.sort;
        assert_eq!(chosen, column);
        assert!(rig.picture().lines().nth(3).is_some_and(|titles| titles.contains(['▼', '▲'])), "{column:?}");
    }
}

/// Prints its seed when it fails; `TORU_TEST_SEED` takes one back.
#[test]
fn no_order_of_messages_panics() {
    let mut seed: u64 =
        std::env::var("TORU_TEST_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(|| {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
            now.map_or(1, |since| since.as_nanos() as u64)
        });
    println!("seed {seed}");
    // splitmix64
    let mut random = move |below: u64| {
        seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = seed;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % below
    };
    let special = [
        Key::Enter,
        Key::Esc,
        Key::Tab,
        Key::Backspace,
        Key::Delete,
        Key::Up,
        Key::Down,
        Key::Left,
        Key::Right,
        Key::PageUp,
        Key::PageDown,
        Key::Home,
        Key::End,
        Key::Ctrl('u'),
        Key::Ctrl('w'),
        Key::Ctrl('k'),
    ];
    let mut rig = trouble(80, 24);
    for step in 0..4000 {
        match random(20) {
            0 => {
                let plugins = (0..random(6)).map(|number| match random(3) {
                    0 => crashed(&format!("p{number}"), random(9)),
                    _ => plugin(&format!("p{number}")),
                });
                let plugins = plugins.collect();
                rig.snapshot(plugins);
            }
            1 => {
                let (columns, rows) = (1 + random(130) as u16, 1 + random(40) as u16);
                rig.send(Msg::Resize(columns, rows));
            }
            2 => {
                rig.news(News::Lost { reason: "gone".into() });
            }
            3 => {
                rig.event(
                    step,
                    &format!("p{}", random(6)),
                    "crashed",
                    r#"{"next_start_ms":1,"stderr":["x"]}"#,
                );
            }
            4 => {
                rig.log("p1", ["info", "error"][random(2) as usize], &"wörd 🐍 ".repeat(random(30) as usize));
            }
            5 => {
                rig.send(Msg::Click { column: random(130) as u16, row: random(40) as u16 });
            }
            6 => {
                rig.send(Msg::Wheel { down: random(2) == 0 });
            }
            7..12 => {
                rig.key(special[random(special.len() as u64) as usize]);
            }
            _ => {
                // Every key that means something, and a few that take more than a byte or a column.
                let keys: Vec<char> = (' '..='~').chain("ü🐍\u{301}".chars()).collect();
                rig.key(Key::Char(keys[random(keys.len() as u64) as usize]));
            }
        }
        rig.look.ascii = random(8) == 0;
        rig.buffer();
    }
}

#[test]
fn a_silent_core_does_not_look_live() {
    for (columns, words) in [(80, "○ stale since 03:12:04"), (40, "stale 03:12:04")] {
        let mut rig = busy(columns, 10);
        rig.seconds += 3;
        rig.send(Msg::Tick);
        let first = rig.picture().lines().next().unwrap_or_default().to_owned();
        assert!(first.ends_with(words) && !first.contains("live"), "{first:?}");
    }
}

#[test]
fn the_question_says_what_forgetting_does() {
    let failed = PluginStatus { state: "failed".into(), ..crashed("zebra", 3) };
    let disabled = PluginStatus { enabled: false, ..failed.clone() };
    for (status, words) in [
        (crashed("zebra", 3), "it goes on as it is."),
        (failed, "and it starts now."),
        (disabled, "it is disabled and stays stopped."),
    ] {
        let mut rig = Rig::new(80, 12);
        rig.snapshot(vec![status]).typed("f");
        assert!(rig.picture().contains(words), "{words}: {}", rig.picture());
    }
}

#[test]
fn a_sort_without_its_column_is_still_said() {
    let mut rig = busy(80, 8);
    let second = |rig: &Rig| rig.picture().lines().nth(1).unwrap_or_default().to_owned();
    rig.typed("A");
    assert!(second(&rig).starts_with("Plugins · by LAST RST▼ ·"), "{}", second(&rig));
    rig.typed("T");
    assert!(!second(&rig).contains(" by "), "its own title has the mark: {}", second(&rig));
}

#[test]
fn a_recording_that_broke_off_is_said_as_long_as_it_lasts() {
    let mut rig = busy(80, 8);
    rig.send(Msg::Unrecorded("/tmp/x: No space left on device".into()));
    rig.seconds += 600;
    rig.send(Msg::Tick);
    assert!(rig.picture().contains("NOT RECORDED: /tmp/x: No space left on device"), "{}", rig.picture());
}

#[test]
fn what_a_plugin_that_runs_says_on_stderr_is_on_its_detail() {
    let mut rig = busy(80, 24);
    let says = |lines: &[&str]| {
        let stderr = Some(lines.iter().map(|line| (*line).to_owned()).collect());
        vec![PluginStatus { stderr, ..plugin("acme") }]
    };
    rig.snapshot(says(&["opened \u{1b}[31mthe store", "slow query"])).key(Key::Enter);
    let picture = rig.picture();
    assert!(picture.contains("Stderr (l: the log)\nopened ^[[31mthe store\nslow query"), "{picture}");
    rig.snapshot(vec![plugin("acme")]);
    assert!(rig.picture().contains("slow query"), "what the core does not repeat stays");
    rig.snapshot(says(&[]));
    assert!(!rig.picture().contains("slow query"), "another process has said nothing yet");
    rig.event(1, "acme", "crashed", r#"{"stderr":["the end"]}"#).snapshot(vec![crashed("acme", 1)]);
    assert!(rig.picture().contains("Last words on stderr\nthe end"), "{}", rig.picture());
}

#[test]
fn a_sign_of_two_columns_at_the_edge_leaves_room_for_the_mark() {
    for columns in 40..60 {
        let mut rig = busy(columns, 8);
        rig.typed("l").log("acme", "info", &"日本語".repeat(20));
        let picture = rig.picture();
        let line = picture.lines().nth(2).unwrap_or_default();
        assert!(line.ends_with('…'), "{columns}: {picture}");
        // The second cell of each is a space in the picture.
        let wide = line.chars().filter(|sign| "日本語".contains(*sign)).count();
        assert!(crate::text::columns(line) - wide <= columns.into(), "{columns}: {line:?}");
    }
}

#[test]
fn no_room_at_all_is_no_panic() {
    for size in [(0, 0), (0, 5), (5, 0), (1, 1), (19, 6), (20, 5)] {
        busy(size.0, size.1).picture();
    }
}

#[test]
fn a_trail_that_was_cut_does_not_say_that_there_is_none() {
    let mut rig = busy(80, 24);
    rig.key(Key::Enter);
    assert!(rig.picture().contains("No events yet."));
    for id in 0..crate::model::EVENTS_BACKLOG as u64 {
        rig.event(id, "bolt", "ready", "null");
    }
    assert!(rig.picture().contains("None among the newest 1000."));
}

#[test]
fn many_workers_leave_room_for_the_rest() {
    use toru_plugin_api::status::{PluginOnWorker, WorkerStatus};
    let mut rig = Rig::new(80, 24);
    let mut acme = plugin("acme");
    acme.by_worker = vec![PluginOnWorker { connections: 1, ..PluginOnWorker::default() }; 64];
    rig.snapshot(vec![acme.clone()]);
    acme.by_worker[40].requests = 500;
    rig.snapshot(vec![acme]).key(Key::Enter);
    let picture = rig.picture();
    assert!(picture.contains("workers · 40: 1 connection, 500/s"), "the busiest first: {picture}");
    assert!(picture.contains("more (w)") && picture.contains("Events (e: more)"), "{picture}");
    assert!(picture.contains("memory"), "{picture}");

    rig.key(Key::Esc).typed("w");
    let worker = crate::model::Worker::default();
    rig.model.workers = (0..64)
        .map(|number| crate::model::Worker {
            status: WorkerStatus { number, driver: "epoll".into(), ..WorkerStatus::default() },
            ..worker.clone()
        })
        .collect();
    let picture = rig.picture();
    assert!(picture.contains("SQLite") && picture.contains("lines dropped"), "{picture}");
    assert!(picture.contains("more (j k)"), "{picture}");
    rig.typed("G");
    let picture = rig.picture();
    assert!(picture.contains("\n      63  epoll") && !picture.contains("more (j k)"), "{picture}");
    assert!(picture.contains("SQLite"), "{picture}");
    rig.typed("gj");
    let picture = rig.picture();
    assert!(picture.contains("\n       1  epoll") && !picture.contains("\n       0  epoll"), "{picture}");
}

#[test]
fn a_question_names_its_plugin_and_its_answers_at_any_size() {
    let id = "tenant-database-with-a-rather-long-name-in-europe-1";
    for (columns, rows) in [(80, 24), (40, 24), (40, 6), (20, 24), (20, 6), (24, 9), (200, 6)] {
        for key in crate::model::Verb::ALL.map(|verb| verb.key().to_string()) {
            let mut rig = Rig::new(columns, rows);
            rig.snapshot(vec![plugin(id)]).typed(&key);
            let picture = rig.picture();
            let held: String = picture.chars().filter(|sign| !sign.is_whitespace() && *sign != '│').collect();
            let whole = if (columns, rows) == (20, 6) { "europe-1" } else { id };
            assert!(held.contains(whole), "{columns}x{rows} {key}: {picture}");
            assert!(held.contains("leaveitalone"), "{columns}x{rows} {key}: {picture}");
            assert!(picture.contains("│ y "), "{columns}x{rows} {key}: {picture}");
        }
    }
}

#[test]
fn an_outcome_keeps_its_end() {
    let id = "tenant-database-with-a-rather-long-name-in-europe-1";
    let outcome = |error: Option<&str>| News::Outcome {
        verb: "reset-failed".into(),
        plugin: id.into(),
        after_ms: 1200,
        error: error.map(str::to_owned),
    };
    let mut rig = Rig::new(40, 12);
    rig.snapshot(vec![plugin(id)]).typed("ry");
    let last = |rig: &Rig| rig.picture().lines().last().unwrap_or_default().to_owned();
    assert!(
        last(&rig).starts_with(" restart tenant-") && last(&rig).ends_with("rope-1: on its way…"),
        "{}",
        last(&rig)
    );
    rig.news(News::Outcome { verb: "restart".into(), plugin: id.into(), after_ms: 1200, error: None });
    assert!(last(&rig).contains('…') && last(&rig).ends_with("europe-1: done in 1s"), "{}", last(&rig));
    rig.typed("xn");
    assert!(last(&rig).contains('…') && last(&rig).ends_with("-europe-1: left alone"), "{}", last(&rig));

    let why = "the plugin could not be started: init failed: the licence has run out (409)";
    rig.news(outcome(Some(why)));
    let picture = rig.picture();
    let rows: Vec<&str> = picture.lines().skip(8).map(str::trim).collect();
    let told = rows.join(" ");
    for word in why.split(' ').chain(["reset-failed", "-europe-1:"]) {
        assert!(told.contains(word), "{word}: {picture}");
    }
    assert!(rows[0].starts_with("✖ reset-failed"), "{picture}");
    let mut rig = Rig::new(40, 6);
    rig.snapshot(vec![plugin(id)]).news(outcome(Some(&"why ".repeat(100))));
    assert!(last(&rig).ends_with('…'), "{}", rig.picture());
}

#[test]
fn why_the_core_killed_it_comes_before_how_it_ended() {
    let mut rig = Rig::new(100, 24);
    rig.snapshot(vec![crashed("acme", 1)]);
    let details = r#"{"exit":"killed by SIGKILL","reason":"3 pings in a row were not answered"}"#;
    rig.event(1, "acme", "crashed", details);
    let words = "3 pings in a row were not answered, killed by SIGKILL";
    assert!(rig.picture().lines().nth(2).is_some_and(|alarm| alarm.contains(words)), "{}", rig.picture());
    rig.key(Key::Enter);
    assert!(rig.picture().contains(&format!("last exit: {words}")), "{}", rig.picture());
    let in_one = "killed by the core: 3 pings in a row were not answered";
    rig.snapshot(vec![PluginStatus { last_exit: Some(in_one.into()), ..crashed("acme", 1) }]);
    assert!(rig.picture().contains(&format!("last exit: {in_one}")), "{}", rig.picture());
    rig.event(2, "acme", "stopped", r#"{"exit":"exit code 0"}"#);
    rig.snapshot(vec![PluginStatus { last_exit: Some("exit code 0".into()), ..crashed("acme", 1) }]);
    assert!(rig.picture().contains("last exit: exit code 0"), "{}", rig.picture());

    let mut rig = Rig::new(80, 24);
    rig.snapshot(vec![PluginStatus { state: "failed".into(), ..crashed("acme", 5) }]);
    let details = r#"{"exit":"killed by SIGKILL","reason":"init failed: the licence has run out"}"#;
    rig.event(1, "acme", "disabled_after_crashes", details);
    let words = "▲ acme FAILED: init failed: the licence has run out, killed by SIGKILL; given";
    assert!(rig.picture().contains(words), "{}", rig.picture());

    let mut rig = Rig::new(100, 24);
    let hung = PluginStatus { health: "unresponsive".into(), ..plugin("acme") };
    rig.snapshot(vec![PluginStatus { last_exit: Some("exit code 1".into()), ..hung }]);
    assert!(rig.picture().contains("▲ acme HUNG: no answer to pings\n"), "{}", rig.picture());
    rig.event(1, "acme", "unresponsive", r#"{"reason":"nothing listened at its socket"}"#);
    assert!(rig.picture().contains("▲ acme HUNG: nothing listened at its socket\n"), "{}", rig.picture());
}

#[test]
fn one_that_runs_although_it_is_disabled_shows_it() {
    let mut rig = Rig::new(80, 24);
    rig.snapshot(vec![PluginStatus { enabled: false, ..plugin("acme") }, plugin("bolt")]);
    let picture = rig.picture();
    assert!(
        picture.contains("> ● running –  acme ") && picture.contains("  ● running    bolt "),
        "{picture}"
    );
    rig.typed("x");
    assert!(rig.picture().contains("● running · disabled · up 1h00m"), "{}", rig.picture());
    rig.typed("n?");
    assert!(rig.picture().contains("running –"), "{}", rig.picture());
    rig.key(Key::Esc).typed("/disabled");
    assert!(!rig.picture().contains("bolt"), "{}", rig.picture());
    assert!(crate::once::table(&rig.model).contains("running (disabled)  acme"));
}

#[test]
fn the_end_of_a_recording_is_not_waited_over() {
    let mut rig = Rig::new(80, 8);
    rig.model.replay = true;
    assert!(rig.picture().contains("Waiting for the first snapshot."), "{}", rig.picture());
    rig.news(News::Ended { reason: "the recording is damaged at line 2".into() });
    let picture = rig.picture();
    assert!(picture.contains("the recording is damaged at line 2"), "{picture}");
    assert!(picture.contains("The recording holds no snapshot."), "{picture}");
    assert!(!picture.contains("trying again") && !picture.contains("toru serve"), "{picture}");

    let mut rig = Rig::new(80, 8);
    rig.model.replay = true;
    rig.snapshot(vec![plugin("acme")]).news(News::Lost { reason: "the core closed the stream".into() });
    assert!(!rig.picture().contains("ended") && !rig.picture().contains("trying"), "{}", rig.picture());
    rig.news(News::Ended { reason: "the recording has ended".into() });
    let picture = rig.picture();
    assert!(
        picture.contains("the recording has ended\n") && picture.contains("● running    acme"),
        "{picture}"
    );
}
