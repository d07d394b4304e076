//! Messages in, and what is known and asked for afterwards.

use super::*;
use crate::model::{Condition, LOG_LINES_MAX};
use crate::testing::{Rig, crashed, plugin};

fn requests(id: &str, requests: u64, errors: u64) -> PluginStatus {
    PluginStatus { requests, errors, ..plugin(id) }
}

#[test]
fn rates_are_differences_and_a_new_core_starts_at_nothing() {
    let mut rig = Rig::new(80, 24);
    rig.snapshot(vec![requests("acme", 1000, 10)]);
    assert_eq!(rig.model.plugins["acme"].latest().requests_per_s, 0.0, "one look tells no rate");
    rig.snapshot(vec![requests("acme", 1040, 12)]);
    let sample = rig.model.plugins["acme"].latest();
    assert_eq!((sample.requests_per_s, sample.errors_per_s), (40.0, 2.0));
    assert_eq!(rig.model.workers[0].requests_per_s, 40.0);
    let again = Snapshot {
        timestamp: "2026-01-01T03:12:09.000Z".into(),
        pid: 778,
        uptime_ms: 500,
        plugins: vec![requests("acme", 5, 0)],
        ..Snapshot::default()
    };
    rig.news(News::Snapshot(Box::new(again)));
    assert_eq!(rig.model.plugins["acme"].latest().requests_per_s, 0.0);
}

#[test]
fn history_has_its_limit() {
    let mut rig = Rig::new(80, 24);
    for second in 0..HISTORY_MAX as u64 + 50 {
        rig.snapshot(vec![requests("acme", second, 0)]);
    }
    assert_eq!(rig.model.plugins["acme"].history.len(), HISTORY_MAX);
    assert_eq!(rig.model.workers[0].history.len(), HISTORY_MAX);
    for id in 0..EVENTS_MAX as u64 + 5 {
        rig.event(id, "acme", "ready", "null");
    }
    assert_eq!(rig.model.events.len(), EVENTS_MAX);
    rig.typed("l");
    for _ in 0..LOG_LINES_MAX + 5 {
        rig.log("acme", "info", "line");
    }
    assert_eq!((rig.model.logs.lines.len(), rig.model.logs.forgotten), (LOG_LINES_MAX, 5));
}

fn past(id: &str, samples: &[(u64, f64)]) -> News {
    let mut history = History { plugin: id.into(), ..History::default() };
    for &(unix_ms, requests_per_s) in samples {
        history.push(&Sample { unix_ms, requests_per_s, ..Sample::default() });
    }
    News::History(Box::new(history))
}

fn sampled(id: &str, unix_ms: u64, requests_per_s: f64) -> PluginStatus {
    let sample = Some(Sample { unix_ms, requests_per_s, ..Sample::default() });
    PluginStatus { sample, ..plugin(id) }
}

#[test]
fn the_core_s_past_is_there_with_the_first_snapshot() {
    let mut rig = Rig::new(80, 24);
    let now = rig.unix_ms();
    let times = |rig: &Rig| {
        let history = &rig.model.plugins["acme"].history;
        history.iter().map(|sample| sample.unix_ms as i64 - now as i64).collect::<Vec<_>>()
    };
    rig.news(past("acme", &[(now - 9000, 3.0), (now, 5.0)])).news(past("gone", &[(now, 1.0)]));
    assert!(rig.model.plugins.is_empty(), "a past alone is no plugin");
    rig.snapshot(vec![sampled("acme", now, 5.0)]);
    assert_eq!(times(&rig), [-9000, 0], "the same second is not told twice");
    assert_eq!(rig.model.plugins.len(), 1);
    rig.snapshot(vec![sampled("acme", now + 1000, 6.0)]);
    assert_eq!(rig.model.plugins["acme"].latest().requests_per_s, 6.0, "the core's rate, not the difference");
    // The line was lost, and the core has seen more meanwhile.
    rig.news(past("acme", &[(now - 2000, 1.0), (now + 5000, 2.0)]));
    rig.snapshot(vec![sampled("acme", now + 6000, 2.0)]);
    assert_eq!(times(&rig), [-9000, -2000, 5000, 6000], "what was before the core's past stays");
    let trend = crate::columns::trend(&rig.model.plugins["acme"], Spark::Requests, 8);
    assert_eq!(trend, [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 2.0, 2.0], "seconds that are left out are empty");
}

#[test]
fn a_clock_that_is_set_back_stops_no_chart() {
    let mut rig = Rig::new(80, 24);
    let now = rig.unix_ms();
    for at in [now, now + 1000, now + 990, now - 3_600_000, now - 3_599_000] {
        rig.snapshot(vec![sampled("acme", at, 1.0)]);
    }
    let history = &rig.model.plugins["acme"].history;
    assert_eq!(history.len(), 4);
    assert!(history.iter().zip(history.iter().skip(1)).all(|(a, b)| b.unix_ms - a.unix_ms == 1000));
}

#[test]
fn the_core_s_log_stands_alone_or_between_those_of_plugins() {
    let mut rig = Rig::new(80, 24);
    rig.snapshot(vec![plugin("acme")]);
    rig.typed("l").log("acme", "info", "mine").typed("c");
    let follows = |rig: &Rig, expected: &[&str]| match &rig.command {
        Some(Command::FollowLogs { plugins, .. }) => assert_eq!(plugins, expected),
        other => panic!("{other:?}"),
    };
    follows(&rig, &["acme", CORE]);
    let line = r#"{"timestamp":"2026-01-01T03:12:00.000Z","level":"info","component":"plugin_supervisor","message":"Plugin started","plugin_id":"acme","pid":7}"#;
    let generation = rig.model.logs.generation;
    rig.news(News::Log { generation, plugin: CORE.into(), line: line.into() });
    assert_eq!(rig.model.logs.lines[0].text, "acme: Plugin started  pid=7");
    rig.typed("c");
    follows(&rig, &["acme"]);
    rig.key(Key::Esc).typed("w").typed("l");
    follows(&rig, &[CORE]);
    rig.typed("c");
    assert!(rig.command.is_none() && rig.model.toast.is_some(), "nothing would be left");
    rig.typed(":logs acme @").key(Key::Tab).key(Key::Enter);
    follows(&rig, &["acme", CORE]);
}

#[test]
fn logs_of_several_are_merged_by_their_time() {
    let mut rig = Rig::new(80, 24);
    rig.snapshot(vec![plugin("acme"), plugin("bolt")]);
    rig.typed(":logs acme bolt").key(Key::Enter);
    let line = |rig: &mut Rig, plugin: &str, second: u32, text: &str| {
        let line = format!(
            r#"{{"timestamp":"2026-01-01T03:12:{second:02}.000Z","level":"info","message":"{text}"}}"#
        );
        let generation = rig.model.logs.generation;
        rig.news(News::Log { generation, plugin: plugin.into(), line });
    };
    line(&mut rig, "acme", 1, "a1");
    line(&mut rig, "acme", 5, "a5");
    rig.typed("p");
    line(&mut rig, "bolt", 3, "b3");
    line(&mut rig, "bolt", 5, "b5");
    let texts: Vec<&str> = rig.model.logs.lines.iter().map(|line| line.text.as_str()).collect();
    assert_eq!(texts, ["a1", "b3", "a5", "b5"]);
    let last = rig.model.logs.shown().last().map(|(_, line)| line.text.clone());
    assert_eq!(last.as_deref(), Some("a5"), "what is read does not run away");
}

#[test]
fn two_deaths_make_a_loop_and_two_quiet_minutes_end_it() {
    let mut rig = Rig::new(80, 24);
    rig.snapshot(vec![plugin("acme"), plugin("zebra")]);
    let down = |failures| PluginStatus { failures, ..crashed("zebra", failures) };
    rig.snapshot(vec![plugin("acme"), down(1)]);
    assert_eq!(rig.model.plugins["zebra"].condition(), Condition::Crashed);
    assert_eq!(rig.model.selected.as_deref(), Some("acme"), "the cursor stays where it was");
    assert_eq!(rig.model.rows()[0].status.id, "zebra", "the trouble is on top");
    rig.snapshot(vec![plugin("acme"), down(2)]);
    assert_eq!(rig.model.plugins["zebra"].condition(), Condition::CrashLoop);
    let back = PluginStatus { restarts: 2, last_exit: Some("killed by SIGKILL".into()), ..plugin("zebra") };
    rig.snapshot(vec![plugin("acme"), PluginStatus { failures: 2, ..back.clone() }]);
    assert_eq!(rig.model.plugins["zebra"].condition(), Condition::CrashLoop, "running for a second");
    rig.seconds += LOOP_WINDOW_MS / 1000;
    rig.snapshot(vec![plugin("acme"), back]);
    assert_eq!(rig.model.plugins["zebra"].condition(), Condition::Running);
    assert!(rig.model.alarms().is_empty());
}

#[test]
fn an_ordered_restart_is_no_death() {
    let mut rig = Rig::new(80, 24);
    rig.snapshot(vec![plugin("acme")]);
    for restarts in 1..4 {
        rig.typed("ry");
        assert_eq!(rig.command, Some(Command::Order { verb: Verb::Restart, plugin: "acme".into() }));
        let last_exit = Some("killed by SIGTERM".into());
        rig.snapshot(vec![PluginStatus { restarts, last_exit, ..plugin("acme") }]);
        rig.news(News::Outcome { verb: "restart".into(), plugin: "acme".into(), after_ms: 40, error: None });
    }
    assert_eq!(rig.model.plugins["acme"].condition(), Condition::Running);
    assert!(rig.model.pending.is_empty());
}

#[test]
fn a_restart_shows_when_it_was() {
    let mut rig = Rig::new(80, 24);
    rig.snapshot(vec![plugin("acme")]);
    let again = |at| PluginStatus { restarts: 1, last_restart: Some(at), ..plugin("acme") };
    let at = rig.unix_ms();
    rig.snapshot(vec![again(at)]).snapshot(vec![again(at + 1)]);
    let last = |rig: &Rig| rig.model.plugins["acme"].last_restart();
    assert_eq!(last(&rig), Some(at), "it does not wander");
    rig.event(1, "acme", "restarting", "null");
    assert_eq!(last(&rig), Some(rig.unix_ms()), "the audit trail may know it first");
    let at = rig.unix_ms() + 5000;
    rig.snapshot(vec![again(at)]);
    assert_eq!(last(&rig), Some(at));
}

#[test]
fn the_back_off_counts_down_until_the_plugin_starts() {
    let mut rig = Rig::new(80, 24);
    let now = rig.unix_ms();
    let waits = PluginStatus { next_start: Some(now + 7000), ..crashed("zebra", 3) };
    let sample = Some(Sample { unix_ms: now + 1000, ..Sample::default() });
    rig.snapshot(vec![PluginStatus { sample, ..waits }]);
    let zebra = &rig.model.plugins["zebra"];
    let left = |ms| crate::columns::next_start(zebra, now + ms);
    assert_eq!(left(1000).as_deref(), Some("starts in 6s"));
    assert_eq!(left(6100).as_deref(), Some("starts in 1s"));
    assert_eq!(left(7000).as_deref(), Some("about to start"));
    assert_eq!(Column::LastExit.text(zebra), "starts in 6s, killed by SIGKILL");
    rig.snapshot(vec![plugin("zebra")]);
    assert_eq!(crate::columns::next_start(&rig.model.plugins["zebra"], now), None);
}

#[test]
fn events_that_come_again_after_a_reconnect_are_not_doubled() {
    let mut rig = Rig::new(80, 24);
    rig.snapshot(vec![plugin("acme")]);
    for _ in 0..2 {
        rig.event(1, "acme", "ready", "null").event(2, "acme", "crashed", "null");
    }
    assert_eq!(rig.model.events.len(), 2);
    assert_eq!(rig.model.plugins["acme"].deaths_unix_ms.len(), 1);
    rig.event(3, "late", "crashed", r#"{"stderr":["last words"]}"#).event(
        4,
        "late",
        "crashed",
        r#"{"stderr":["last words"]}"#,
    );
    assert!(!rig.model.plugins.contains_key("late"), "the trail makes no plugins");
    rig.snapshot(vec![plugin("acme"), crashed("late", 2)]);
    let late = &rig.model.plugins["late"];
    assert_eq!(
        (late.deaths_unix_ms.len(), late.last_words.len()),
        (2, 1),
        "what was told before it was seen"
    );
}

#[test]
fn a_lost_line_says_since_when_and_heals() {
    let mut rig = Rig::new(80, 24);
    rig.snapshot(vec![plugin("acme")]);
    let lost_at = rig.model.now;
    rig.news(News::Lost { reason: "one".into() });
    rig.seconds += 5;
    rig.news(News::Lost { reason: "two\u{1b}".into() });
    assert_eq!(rig.model.link, Link::Lost { since: lost_at, reason: "two^[".into() });
    rig.typed("r");
    assert!(rig.model.confirm.is_none(), "nobody would hear the order");
    rig.snapshot(vec![plugin("acme")]);
    assert_eq!(rig.model.link, Link::Live);
}

#[test]
fn an_action_needs_its_answer() {
    let mut rig = Rig::new(80, 24);
    rig.snapshot(vec![plugin("acme"), plugin("bolt")]);
    rig.key(Key::Down).typed("x");
    let asked = rig.model.confirm.clone();
    assert_eq!(asked, Some(Confirm { verb: Verb::Stop, plugin: "bolt".into() }));
    rig.key(Key::Enter).key(Key::Down);
    assert_eq!(rig.model.confirm, asked, "a stray key neither confirms nor hides the question");
    assert_eq!(rig.command, None);
    rig.key(Key::Esc);
    assert_eq!((rig.model.confirm.clone(), rig.command.clone()), (None, None));
    for verb in Verb::ALL {
        rig.typed(&verb.key().to_string()).typed("y");
        assert_eq!(rig.command, Some(Command::Order { verb, plugin: "bolt".into() }));
    }
    rig.typed(":restart acme").key(Key::Enter).typed("y");
    assert_eq!(rig.command, Some(Command::Order { verb: Verb::Restart, plugin: "acme".into() }));
}

#[test]
fn read_only_takes_no_action() {
    let mut rig = Rig::new(80, 24);
    rig.model.readonly = true;
    rig.snapshot(vec![plugin("acme")]);
    for verb in Verb::ALL {
        rig.typed(&verb.key().to_string());
        assert!(rig.model.confirm.is_none());
        rig.typed(&format!(":{} acme", verb.word())).key(Key::Enter);
        assert!(rig.model.confirm.is_none());
    }
    assert!(rig.model.toast.as_ref().is_some_and(|toast| !toast.good));
}

#[test]
fn an_outcome_is_shown_for_a_while() {
    let mut rig = Rig::new(80, 24);
    rig.snapshot(vec![plugin("acme")]);
    let error = Some("conflict: it failed (409)".to_owned());
    rig.news(News::Outcome { verb: "start".into(), plugin: "acme".into(), after_ms: 7, error });
    let toast = rig.model.toast.clone().expect("shown");
    assert_eq!((toast.text.as_str(), toast.good), ("start acme: conflict: it failed (409)", false));
    rig.seconds += TOAST.as_secs() - 1;
    rig.send(Msg::Tick);
    assert!(rig.model.toast.is_some());
    rig.seconds += 1;
    rig.send(Msg::Tick);
    assert_eq!(rig.model.toast, None);
}

#[test]
fn filters_are_fuzzy_and_turn_around() {
    let mut rig = Rig::new(80, 24);
    rig.snapshot(vec![plugin("hello-python"), plugin("hello-rust"), plugin("acme"), crashed("zebra", 0)]);
    let shown =
        |rig: &Rig| rig.model.rows().iter().map(|row| row.status.id.clone()).collect::<Vec<_>>().join(" ");
    rig.typed("/hpy");
    assert_eq!(shown(&rig), "hello-python", "while it is typed");
    rig.key(Key::Enter).typed("!");
    assert_eq!(rig.model.prompt.as_ref().map(|prompt| prompt.input().value()), Some("!hpy"));
    rig.key(Key::Enter);
    rig.typed("!").key(Key::Enter);
    assert_eq!(rig.model.filter, "!hpy");
    rig.key(Key::Esc);
    assert_eq!(rig.model.filter, "", "Esc lets everything through again");
    rig.typed("!hello").key(Key::Enter);
    assert_eq!(shown(&rig), "zebra acme");
    rig.typed("/").key(Key::Ctrl('u')).typed("crashed").key(Key::Enter);
    assert_eq!(shown(&rig), "zebra", "states are words too");
    assert_eq!(rig.model.selected.as_deref(), Some("zebra"), "the cursor is on something that is shown");
}

#[test]
fn events_have_a_filter_of_their_own() {
    let mut rig = Rig::new(80, 24);
    rig.snapshot(vec![plugin("acme"), plugin("bolt")]);
    rig.event(1, "acme", "ready", r#"{"pid":7}"#).event(2, "bolt", "crashed", r#"{"exit":"exit code 7"}"#);
    rig.event(3, "acme", "stopped", "null");
    rig.typed("/bolt").key(Key::Enter).typed("e");
    let shown = |rig: &Rig| rig.model.events_shown().iter().map(|event| event.id).collect::<Vec<_>>();
    assert_eq!(shown(&rig), [1, 2, 3], "that of the plugins is another");
    rig.typed("/CODE");
    assert_eq!(shown(&rig), [2]);
    rig.key(Key::Enter).typed("!").key(Key::Enter);
    assert_eq!(shown(&rig), [1, 3]);
    rig.key(Key::Esc);
    assert_eq!(shown(&rig), [1, 2, 3]);
    rig.key(Key::Esc);
    assert_eq!((rig.model.screen(), rig.model.filter.as_str()), (&Screen::Plugins, "bolt"));
    rig.key(Key::Enter).typed("/").typed("e");
    assert_eq!(rig.model.screen(), &Screen::Events(Some("bolt".into())), "no filter on a detail");
    assert_eq!(shown(&rig), [2], "those of the plugin that was looked at");
}

#[test]
fn the_cursor_stays_on_its_plugin_and_in_sight() {
    let mut rig = Rig::new(80, 10);
    let plugins = || (0..50).map(|number| plugin(&format!("p{number:02}"))).collect::<Vec<_>>();
    rig.snapshot(plugins());
    rig.typed("G");
    assert_eq!(rig.model.selected.as_deref(), Some("p49"));
    assert_eq!(rig.model.scroll, 50 - rig.model.list_height());
    rig.snapshot(plugins().split_off(10));
    assert_eq!(rig.model.selected.as_deref(), Some("p49"));
    rig.send(Msg::Resize(80, 7)).typed("g");
    assert_eq!((rig.model.selected.as_deref(), rig.model.scroll), (Some("p10"), 0));
    rig.send(Msg::Click { column: 20, row: rig.model.list_top() + 2 });
    assert_eq!(rig.model.selected.as_deref(), Some("p12"));
    rig.send(Msg::Wheel { down: true });
    assert_eq!(rig.model.selected.as_deref(), Some("p15"));
}

#[test]
fn logs_follow_pause_and_are_searched() {
    let mut rig = Rig::new(80, 9);
    rig.snapshot(vec![plugin("acme"), plugin("bolt")]);
    rig.typed(" ").typed(" ").typed("l");
    let generation = rig.model.logs.generation;
    let plugins = vec!["acme".to_owned(), "bolt".to_owned()];
    assert_eq!(rig.command, Some(Command::FollowLogs { generation, plugins }));
    for number in 0..30 {
        let level = if number % 10 == 0 { "error" } else { "info" };
        rig.log("acme", level, &format!("line {number}"));
    }
    let last = |rig: &Rig| rig.model.logs.shown().last().map(|(_, line)| line.text.clone());
    assert_eq!(last(&rig).as_deref(), Some("line 29"));
    rig.typed("kk").log("acme", "info", "line 30");
    assert_eq!(last(&rig).as_deref(), Some("line 27"), "what is read does not run away");
    rig.typed("/LINE 1").key(Key::Enter);
    assert_eq!(last(&rig).as_deref(), Some("line 19"), "upwards from where one is");
    rig.typed("NNn");
    assert_eq!(last(&rig).as_deref(), Some("line 18"));
    rig.typed("4");
    assert_eq!(last(&rig).as_deref(), Some("line 10"));
    rig.typed("1G");
    assert_eq!((last(&rig).as_deref(), rig.model.logs.bottom), (Some("line 30"), None));
    let old = News::Log { generation: generation - 1, plugin: "acme".into(), line: "old".into() };
    rig.news(old);
    assert_eq!(last(&rig).as_deref(), Some("line 30"), "news of a view that was left");
    rig.key(Key::Esc).key(Key::Esc);
    assert_eq!((rig.command.clone(), rig.model.screen()), (Some(Command::StopLogs), &Screen::Plugins));
}

#[test]
fn the_command_line_completes() {
    let mut rig = Rig::new(80, 24);
    rig.snapshot(vec![plugin("hello-python"), plugin("hello-rust")]);
    rig.typed(":resta").key(Key::Tab).typed("h").key(Key::Tab);
    let typed = |rig: &Rig| rig.model.prompt.as_ref().map(|prompt| prompt.input().value().to_owned());
    assert_eq!(typed(&rig).as_deref(), Some("restart hello-"));
    rig.typed("r").key(Key::Tab);
    assert_eq!(typed(&rig).as_deref(), Some("restart hello-rust "));
    assert!(completions(&rig.model, "restart hello-rust ").is_empty(), "one plugin is enough");
    assert!(completions(&rig.model, "sort up m").is_empty());
    assert_eq!(completions(&rig.model, "logs hello-rust hello-p"), ["logs hello-rust hello-python"]);
    rig.key(Key::Enter);
    let asked = rig.model.confirm.take();
    assert_eq!(asked, Some(Confirm { verb: Verb::Restart, plugin: "hello-rust".into() }));
    rig.typed(":sort last-exit").key(Key::Enter);
    assert_eq!(rig.model.sort.column, Column::LastExit);
    rig.typed(":nonsense").key(Key::Enter);
    assert!(rig.model.toast.as_ref().is_some_and(|toast| toast.text.contains("nonsense")));
    for (line, screen) in [
        ("workers", Screen::Workers),
        ("events hello-rust", Screen::Events(Some("hello-rust".into()))),
        ("detail hello-rust", Screen::Detail("hello-rust".into())),
        ("plugins", Screen::Plugins),
    ] {
        rig.typed(":").typed(line).key(Key::Enter);
        assert_eq!(rig.model.screen(), &screen);
    }
    rig.typed(":q").key(Key::Enter);
    assert_eq!(rig.command, Some(Command::Quit));
}

#[test]
fn a_line_that_means_nothing_says_what_would() {
    let mut rig = Rig::new(80, 24);
    rig.snapshot((0..9).map(|number| plugin(&format!("p{number}"))).collect());
    rig.event(1, "gone", "ready", "null");
    let ids = "p0, p1, p2, p3, p4, p5, 3 more";
    let unknown = format!("no plugin \"nope\"; there are {ids}");
    let said = |rig: &mut Rig, line: &str| {
        rig.model.toast = None;
        rig.typed(":").typed(line).key(Key::Enter);
        rig.model.toast.as_ref().map(|toast| toast.text.clone()).unwrap_or_default()
    };
    let columns = Column::ALL.map(Column::word).join(", ");
    for (line, expected) in [
        ("events nope", unknown.as_str()),
        ("detail nope", &unknown),
        ("restart nope", &unknown),
        ("logs p1 nope", &format!("{unknown}, {CORE}")),
        ("restart p1 p2", "restart takes one plugin at a time"),
        ("quit now", "quit stands alone: nothing may follow it"),
        ("workers 1", "workers stands alone: nothing may follow it"),
        ("level", "level is for a log: :logs ID opens one"),
        ("sort", &format!("sort takes one of {columns}")),
        ("sort nope", &format!("sort takes one of {columns}")),
        ("sort up down", &format!("sort takes one of {columns}")),
        (
            "\u{1b}x",
            "no command \"\\u{1b}x\"; there are detail, events, filter, help, level, logs, plugins, quit, sort, workers, restart, start, stop, enable, disable, reset-failed",
        ),
    ] {
        assert_eq!(said(&mut rig, line), expected, "{line}");
        assert_eq!((rig.model.screen(), rig.command.clone()), (&Screen::Plugins, None), "{line}");
    }
    assert_eq!(said(&mut rig, "workers"), "");
    assert_eq!(said(&mut rig, "restart"), format!("restart takes a plugin: {ids}"));
    assert_eq!(said(&mut rig, "filter x"), "filter is for :plugins and :events; in a log / searches");
    assert_eq!(said(&mut rig, "sort up"), "sort is for :plugins");
    assert_eq!(said(&mut rig, "logs p1"), "");
    assert_eq!(said(&mut rig, "level loud"), "level takes one of debug, info, warn, error");
    assert_eq!(said(&mut rig, "level warn"), "");
    assert_eq!(rig.model.logs.level, Level::Warn);
    assert_eq!(said(&mut rig, "plugins"), "");
    assert_eq!(rig.command, Some(Command::StopLogs), "the log behind it is followed no longer");
    assert_eq!(said(&mut rig, "events gone"), "", "its file is gone, what happened to it is not");
    assert_eq!(rig.model.screen(), &Screen::Events(Some("gone".into())));
}

#[test]
fn every_command_and_every_argument_completes() {
    let mut rig = Rig::new(80, 24);
    rig.snapshot(vec![plugin("acme"), crashed("zebra", 1)]);
    let offers = |line: &str| completions(&rig.model, line).join("|");
    for word in COMMANDS.into_iter().chain(Verb::ALL.map(Verb::word)) {
        assert_eq!(offers(&word[..word.len() - 1]), word);
    }
    for verb in Verb::ALL.map(Verb::word).into_iter().chain(["detail", "events"]) {
        assert_eq!(offers(&format!("{verb} ")), format!("{verb} acme|{verb} zebra"));
        assert_eq!(offers(&format!("{verb} acme ")), "");
    }
    assert_eq!(offers("logs "), "logs @core|logs acme|logs zebra");
    assert_eq!(offers("logs acme @core "), "logs acme @core zebra", "nothing twice");
    assert_eq!(offers("level "), "level debug|level error|level info|level warn");
    assert_eq!(offers("sort last"), "sort last-exit|sort last-rst");
    assert_eq!(completions(&rig.model, "sort ").len(), Column::ALL.len());
    assert_eq!(offers("filter "), "filter acme|filter crashed|filter running|filter zebra");
    for word in ["help", "plugins", "quit", "workers", "nonsense"] {
        assert_eq!(offers(&format!("{word} ")), "", "{word} takes nothing");
    }
}

#[test]
fn a_click_chooses_opens_sorts_and_pauses() {
    let mut rig = Rig::new(80, 24);
    rig.snapshot(vec![plugin("acme"), plugin("bolt")]);
    for id in 1..=30 {
        rig.event(id, "acme", "ready", "null");
    }
    let click = |rig: &mut Rig, column: u16, row: u16| {
        rig.send(Msg::Click { column, row });
    };
    click(&mut rig, 20, 4);
    assert_eq!(rig.model.selected.as_deref(), Some("bolt"));
    click(&mut rig, 16, 2);
    assert_eq!(rig.model.sort, crate::model::Sort { column: Column::Id, descending: false });
    click(&mut rig, 16, 2);
    assert!(rig.model.sort.descending, "again: the other way round");
    click(&mut rig, 20, 3);
    assert_eq!(rig.model.screen(), &Screen::Detail("bolt".into()), "the chosen one opens");
    click(&mut rig, 20, 5);
    rig.key(Key::Esc).typed("e");
    click(&mut rig, 20, 2);
    assert_eq!(rig.model.event_at, 20, "the topmost of 21 rows");
    click(&mut rig, 20, 2);
    assert_eq!(rig.model.screen(), &Screen::Event(10));
    rig.key(Key::Esc).key(Key::Esc).typed("l").log("bolt", "info", "one");
    click(&mut rig, 5, 10);
    rig.log("bolt", "info", "two");
    assert_eq!(rig.model.logs.shown().count(), 1, "what is clicked at does not run away");
    rig.key(Key::Esc).typed("r");
    click(&mut rig, 20, 4);
    assert_eq!(rig.model.selected.as_deref(), Some("bolt"), "not under a question");
    rig.key(Key::Esc);
    click(&mut rig, 20, 23);
    click(&mut rig, 20, 9);
    assert_eq!(rig.model.screen(), &Screen::Plugins, "nothing is there");
}

#[test]
fn what_was_given_up_before_the_core_began_still_says_why() {
    let mut rig = Rig::new(200, 24);
    // As a core tells it that found it failed: of its end the trail alone knows.
    let failed =
        PluginStatus { state: "failed".into(), last_exit: None, last_restart: None, ..crashed("acme", 0) };
    rig.snapshot(vec![failed.clone()]);
    rig.event(1, "acme", "restarting", "null").event(2, "acme", "crashed", r#"{"exit":"exit code 3"}"#);
    rig.event(3, "acme", "disabled_after_crashes", r#"{"failures":5}"#);
    let cell = |rig: &Rig, column: Column| column.text(&rig.model.plugins["acme"]);
    assert_eq!(
        (cell(&rig, Column::LastExit), cell(&rig, Column::LastRestart)),
        ("exit code 3".to_owned(), "03:12:01".to_owned())
    );
    assert!(crate::once::table(&rig.model).contains("exit code 3"));
    rig.snapshot(vec![PluginStatus { last_exit: Some("killed by SIGSEGV".into()), ..failed.clone() }]);
    assert_eq!(cell(&rig, Column::LastExit), "killed by SIGSEGV", "what the core says comes first");
    rig.snapshot(vec![PluginStatus { state: "running".into(), ..failed }]);
    assert_eq!(cell(&rig, Column::LastExit), "", "of one that runs it is the past of another core");
}

#[test]
fn a_plugin_without_known_events_is_asked_about_once() {
    let mut rig = Rig::new(80, 24);
    rig.snapshot(vec![plugin("acme"), plugin("bolt")]);
    rig.seconds += 60;
    rig.event(900, "bolt", "ready", "null");
    rig.key(Key::Enter);
    assert_eq!(rig.command, Some(Command::AskEvents { plugin: "acme".into() }));
    rig.snapshot(vec![plugin("acme"), plugin("bolt")]);
    assert_eq!(rig.command, None, "the answer may be empty");
    rig.seconds -= 30;
    rig.event(7, "acme", "ready", "null");
    let order: Vec<u64> = rig.model.events.iter().map(|event| event.id).collect();
    assert_eq!(order, [7, 900], "an older one that comes later stands where it belongs");
    rig.key(Key::Esc).key(Key::Enter);
    assert_eq!(rig.command, None, "now its events are known");
    rig.key(Key::Esc).key(Key::Down).key(Key::Enter);
    assert_eq!(rig.command, None, "this one's were known anyway");
}

#[test]
fn a_mended_plugin_is_in_no_loop() {
    let looping = |rig: &mut Rig| {
        rig.event(rig.seconds * 10 + 1, "zebra", "crashed", r#"{"failures":1}"#);
        rig.event(rig.seconds * 10 + 2, "zebra", "crashed", r#"{"failures":2}"#);
        rig.snapshot(vec![crashed("zebra", 2)]);
        assert_eq!(rig.model.plugins["zebra"].condition(), Condition::CrashLoop);
    };
    let mut rig = Rig::new(80, 24);
    rig.snapshot(vec![crashed("zebra", 1)]);
    for verb in ["reset-failed", "start", "restart", "enable"] {
        looping(&mut rig);
        rig.news(News::Outcome { verb: verb.into(), plugin: "zebra".into(), after_ms: 4, error: None });
        rig.snapshot(vec![plugin("zebra")]);
        assert_eq!(rig.model.plugins["zebra"].condition(), Condition::Running, "{verb}");
    }
    // Somebody else mended it.
    looping(&mut rig);
    rig.snapshot(vec![PluginStatus { state: "failed".into(), ..crashed("zebra", 3) }]);
    rig.snapshot(vec![plugin("zebra")]);
    assert_eq!(rig.model.plugins["zebra"].condition(), Condition::Running);
    // Or had its crashes forgotten while it waits.
    looping(&mut rig);
    rig.snapshot(vec![PluginStatus { failures: 2, ..crashed("zebra", 4) }]);
    assert_eq!(rig.model.plugins["zebra"].condition(), Condition::CrashLoop);
    rig.snapshot(vec![crashed("zebra", 4)]);
    assert_eq!(rig.model.plugins["zebra"].condition(), Condition::Crashed);
    // A new core that has not seen them mends nothing.
    looping(&mut rig);
    rig.snapshot(vec![PluginStatus { failures: 2, ..crashed("zebra", 4) }]);
    let plugins = vec![PluginStatus { uptime_ms: Some(500), ..plugin("zebra") }];
    let again = Snapshot { pid: 778, plugins, ..Snapshot::default() };
    rig.news(News::Snapshot(Box::new(again)));
    assert_eq!(rig.model.plugins["zebra"].condition(), Condition::CrashLoop);
}

#[test]
fn a_crash_a_minute_is_a_loop_though_the_core_forgives_it_each_time() {
    let mut rig = Rig::new(80, 24);
    rig.event(1, "zebra", "crashed", "null");
    rig.snapshot(vec![PluginStatus { failures: 1, ..crashed("zebra", 1) }]);
    rig.seconds += 61;
    rig.snapshot(vec![PluginStatus { uptime_ms: Some(60_500), restarts: 1, ..plugin("zebra") }]);
    rig.seconds += 5;
    rig.event(2, "zebra", "crashed", "null");
    rig.snapshot(vec![PluginStatus { failures: 1, ..crashed("zebra", 1) }]);
    assert_eq!(rig.model.plugins["zebra"].condition(), Condition::CrashLoop);
}

#[test]
fn the_start_of_a_core_is_no_restart_of_its_plugins() {
    let mut rig = Rig::new(80, 24);
    // Counts are kept over a core's end, times are in the trail alone.
    let kept = || vec![PluginStatus { restarts: 3, uptime_ms: Some(500), pid: Some(9), ..plugin("acme") }];
    rig.snapshot(kept());
    let last = |rig: &Rig| Column::LastRestart.text(&rig.model.plugins["acme"]);
    assert_eq!(last(&rig), "-", "nobody has said when");
    rig.event(1, "acme", "restarting", "null");
    assert_eq!(last(&rig), "03:12:01");
    rig.news(News::Lost { reason: "gone".into() });
    rig.seconds += 60;
    let again = Snapshot { pid: 778, uptime_ms: 500, plugins: kept(), ..Snapshot::default() };
    rig.news(News::Snapshot(Box::new(again)));
    assert_eq!(last(&rig), "03:12:01", "what it was before");
}

#[test]
fn the_workers_past_is_there_with_the_first_snapshot() {
    let mut rig = Rig::new(80, 24);
    rig.worker_past = vec![1.0, 0.0, 7.0];
    rig.snapshot(vec![plugin("acme")]).snapshot(vec![requests("acme", 5, 0)]);
    assert_eq!(rig.model.workers[0].history, [1.0, 0.0, 7.0, 5.0]);
    rig.worker_past = vec![9.0; HISTORY_MAX + 3];
    rig.snapshot(vec![plugin("acme")]);
    assert_eq!(rig.model.workers[0].history.len(), HISTORY_MAX);
}

#[test]
fn an_event_is_chosen_and_opened_whole() {
    let mut rig = Rig::new(80, 8);
    rig.snapshot(vec![plugin("acme"), plugin("bolt")]);
    for id in 1..=20 {
        rig.event(id, if id % 2 == 0 { "acme" } else { "bolt" }, "ready", "null");
    }
    rig.typed("e");
    let shown = |rig: &Rig| rig.picture().lines().filter(|line| line.contains("ready")).count();
    let chosen =
        |rig: &Rig| rig.model.events_shown().iter().rev().nth(rig.model.event_at).map(|event| event.id);
    assert_eq!((chosen(&rig), shown(&rig)), (Some(20), 5));
    rig.event(21, "bolt", "ready", "null");
    assert_eq!(chosen(&rig), Some(21), "at the end it follows");
    rig.typed("kk").event(22, "acme", "ready", "null");
    assert_eq!(chosen(&rig), Some(19), "else the cursor stays");
    rig.typed("g");
    assert_eq!((chosen(&rig), shown(&rig)), (Some(1), 5), "the oldest, on a full screen");
    rig.typed("jj").key(Key::Enter);
    assert_eq!(rig.model.screen(), &Screen::Event(3));
    assert_eq!(rig.model.target(), Some("bolt"), "l is its log");
    rig.event(23, "acme", "ready", "null").key(Key::Esc);
    assert_eq!(chosen(&rig), Some(3));
    rig.typed("/acme").key(Key::Enter).typed("G");
    assert_eq!(chosen(&rig), Some(23));
    rig.typed("k").event(24, "bolt", "ready", "null");
    assert_eq!(chosen(&rig), Some(22), "what the filter hides moves nothing");
}

#[test]
fn one_crash_after_a_long_life_is_no_loop() {
    let mut rig = Rig::new(80, 24);
    rig.snapshot(vec![PluginStatus { restarts: 7, ..plugin("zebra") }]);
    rig.event(1, "zebra", "crashed", r#"{"failures":1}"#);
    rig.snapshot(vec![crashed("zebra", 7)]);
    assert_eq!(rig.model.plugins["zebra"].condition(), Condition::Crashed);
    rig.seconds += LOOP_WINDOW_MS / 1000;
    rig.event(2, "zebra", "crashed", r#"{"failures":2}"#);
    rig.snapshot(vec![PluginStatus { failures: 2, ..crashed("zebra", 8) }]);
    assert_eq!(rig.model.plugins["zebra"].condition(), Condition::CrashLoop, "the core counts a row of them");
}

#[test]
fn a_silent_core_is_lost_since_its_last_word() {
    let mut rig = Rig::new(80, 24);
    rig.snapshot(vec![plugin("acme")]);
    let last = rig.model.now;
    rig.seconds += 2;
    rig.send(Msg::Tick);
    assert!(!rig.model.is_stale());
    rig.seconds += 1;
    rig.send(Msg::Tick);
    assert!(rig.model.is_stale());
    rig.seconds += 7;
    rig.news(News::Lost { reason: "the core is silent".into() });
    assert_eq!(rig.model.link, Link::Lost { since: last, reason: "the core is silent".into() });
    rig.snapshot(vec![plugin("acme")]);
    assert!(!rig.model.is_stale());
}

#[test]
fn every_line_of_a_wrapped_log_can_be_reached() {
    for (columns, rows) in [(40, 12), (80, 24)] {
        let mut rig = Rig::new(columns, rows);
        rig.snapshot(vec![plugin("acme"), plugin("bolt")]);
        rig.typed(":logs acme bolt\nw");
        for number in 0..60 {
            rig.log("acme", "info", &format!("#{number:02} {}", "many words ".repeat(1 + number % 9)));
        }
        for (start, key) in [(Key::End, Key::PageUp), (Key::Home, Key::PageDown), (Key::End, Key::Up)] {
            rig.key(start);
            let mut seen = rig.picture();
            for _ in 0..70 {
                seen.push_str(&rig.key(key).picture());
            }
            for number in 0..60 {
                assert!(seen.contains(&format!("#{number:02} ")), "{columns}x{rows} {key:?}: #{number}");
            }
        }
        rig.key(Key::Home);
        assert!(rig.picture().contains("#00") && rig.picture().contains("#03"), "{}", rig.picture());
        rig.log("acme", "info", &format!("begin {}", "x".repeat(4000))).key(Key::End);
        assert!(rig.picture().contains("begin xx"), "one that is higher than the screen: {}", rig.picture());
    }
}

#[test]
fn a_paused_log_keeps_what_is_read() {
    let mut rig = Rig::new(80, 9);
    rig.snapshot(vec![plugin("acme")]);
    rig.typed("l");
    for number in 0..20 {
        rig.log("acme", "info", &format!("line {number}"));
    }
    rig.typed("p");
    let before = rig.picture();
    for number in 0..LOG_LINES_MAX + 100 {
        rig.log("acme", "info", &format!("later {number}"));
    }
    let window = |picture: &str| picture.lines().skip(2).map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(window(&rig.picture()), window(&before));
    assert!(before.contains("line 19"), "{before}");
    assert_eq!(rig.model.logs.lines.len(), LOG_LINES_MAX);
    rig.typed("j");
    let gone = rig.model.logs.shown().last().map(|(_, line)| line.text.clone()).unwrap_or_default();
    // Of 10 120 lines 14 went off the top while the screen was full of others, and the mark takes a place itself.
    assert_eq!(gone, "107 lines that came while this was paused are not held");
    rig.typed("G");
    let last = rig.model.logs.shown().last().map(|(_, line)| line.text.clone());
    assert_eq!(last, Some(format!("later {}", LOG_LINES_MAX + 99)), "the newest are there");
}

#[test]
fn a_log_that_broke_off_says_so_and_goes_on() {
    let mut rig = Rig::new(80, 9);
    rig.snapshot(vec![plugin("acme")]);
    rig.typed("l").log("acme", "info", "before");
    assert!(rig.picture().contains("following"));
    let generation = rig.model.logs.generation;
    let (plugin, reason) = ("acme".to_owned(), "the core closed the log".to_owned());
    rig.news(News::LogUnavailable { generation, plugin: plugin.clone(), reason });
    let picture = rig.picture();
    assert!(!picture.contains("following") && picture.contains("acme: the core closed the log"), "{picture}");
    rig.news(News::LogResumed { generation, plugin }).log("acme", "info", "after");
    let texts: Vec<&str> = rig.model.logs.lines.iter().map(|line| line.text.as_str()).collect();
    assert_eq!(texts, ["before", "the core was away", "after"]);
    assert!(rig.picture().contains("following"));
    rig.news(News::LogResumed { generation: generation - 1, plugin: "acme".into() });
    assert_eq!(rig.model.logs.lines.len(), 3, "news of a view that was left");
}

#[test]
fn in_a_merged_log_the_mark_stands_where_the_log_broke_off() {
    let mut rig = Rig::new(80, 9);
    rig.snapshot(vec![plugin("acme"), plugin("bolt")]);
    rig.typed(":logs acme bolt").key(Key::Enter);
    let generation = rig.model.logs.generation;
    let line = |rig: &mut Rig, second: u32, text: &str| {
        let line = format!(
            r#"{{"timestamp":"2026-01-01T03:12:{second:02}.000Z","level":"info","message":"{text}"}}"#
        );
        rig.news(News::Log { generation, plugin: "acme".into(), line });
    };
    line(&mut rig, 1, "before");
    rig.seconds += 30;
    rig.news(News::LogResumed { generation, plugin: "acme".into() });
    line(&mut rig, 20, "after");
    let texts: Vec<&str> = rig.model.logs.lines.iter().map(|line| line.text.as_str()).collect();
    assert_eq!(texts, ["before", "the core was away", "after"]);
}

#[test]
fn a_terminal_too_small_to_ask_takes_no_order() {
    for size in [(80, 5), (200, 1), (10, 3)] {
        let mut rig = Rig::new(size.0, size.1);
        rig.snapshot(vec![plugin("acme")]);
        for keys in ["xy", ":stop acme\ny", "\nxy", "?xy"] {
            for letter in keys.chars() {
                rig.typed(&letter.to_string());
                assert_eq!((&rig.command, &rig.model.confirm), (&None, &None), "{size:?} {keys:?}");
            }
        }
        assert_eq!((rig.model.screen(), rig.model.prompt.is_some()), (&Screen::Plugins, false));
        rig.typed("q");
        assert_eq!(rig.command, Some(Command::Quit));

        let mut rig = Rig::new(80, 24);
        rig.snapshot(vec![plugin("acme")]).typed("x");
        assert!(rig.model.confirm.is_some());
        rig.send(Msg::Resize(size.0, size.1)).typed("y");
        assert_eq!((&rig.command, &rig.model.confirm), (&None, &None), "{size:?}");
        rig.send(Msg::Resize(80, 24));
        assert!(rig.picture().contains("stop acme: left alone"), "{}", rig.picture());
        rig.typed("y");
        assert_eq!((&rig.command, &rig.model.pending), (&None, &vec![]), "{size:?}");
    }
}

#[test]
fn the_cursor_goes_to_what_the_filter_means() {
    let mut rig = Rig::new(80, 24);
    let mut plugins: Vec<_> = (1..=40).map(|number| plugin(&format!("echo-{number}"))).collect();
    plugins.extend([plugin("my-echo"), PluginStatus { name: "The bolt's echo".into(), ..plugin("acme") }]);
    rig.snapshot(plugins);
    rig.typed("/echo-14\n");
    assert_eq!(rig.model.selected.as_deref(), Some("echo-14"));
    rig.key(Key::Esc).typed("/echo-4\n");
    assert_eq!(rig.model.selected.as_deref(), Some("echo-4"), "not where the cursor was");
    let rows: Vec<&str> = rig.model.rows().iter().map(|plugin| plugin.status.id.as_str()).collect();
    assert_eq!(rows[..2], ["echo-14", "echo-24"], "the sort stays: {rows:?}");
    rig.typed("j/\n");
    assert_eq!(rig.model.selected.as_deref(), Some("echo-40"), "the same words move nothing");
    rig.key(Key::Esc).typed("/y-e");
    assert_eq!(rig.model.selected.as_deref(), Some("my-echo"));
    rig.key(Key::Esc).typed("/ECHO-4");
    assert_eq!(rig.model.selected.as_deref(), Some("echo-4"));
    rig.key(Key::Esc).typed("/ech");
    assert_eq!(rig.model.selected.as_deref(), Some("echo-4"), "nothing fits better");
    rig.key(Key::Esc).typed("/bolt");
    assert_eq!(rig.model.selected.as_deref(), Some("acme"), "by its name");
}

#[test]
fn letters_scattered_over_a_name_are_no_match() {
    let mut rig = Rig::new(80, 24);
    let named = PluginStatus { name: "Household unit of the night guard".into(), ..plugin("zeta") };
    let hung = PluginStatus { health: "unresponsive".into(), ..plugin("bolt") };
    rig.snapshot(vec![named, hung, plugin("acme")]);
    let shown = |rig: &Rig| -> Vec<String> {
        rig.model.rows().iter().map(|plugin| plugin.status.id.clone()).collect()
    };
    rig.typed("/hung\n");
    assert_eq!(shown(&rig), ["bolt"]);
    rig.typed("/").key(Key::Ctrl('u')).typed("NIGHT\n");
    assert_eq!(shown(&rig), ["zeta"]);
    rig.typed("/").key(Key::Ctrl('u')).typed("ame\n");
    assert_eq!(shown(&rig), ["acme"], "over the id they may be");
}
