use std::sync::mpsc::channel;

use serde_json::json;

use super::*;
use crate::config::Synchronous;

/// Nothing waits so long unless it is broken.
const DEADLINE: Duration = Duration::from_secs(60);

fn settings() -> StoreConfig {
    StoreConfig {
        synchronous: Synchronous::Full,
        quota_bytes: 1 << 20,
        value_bytes_max: 1 << 20,
        events_kept: Duration::from_secs(90 * 86_400),
        event_rows_max: 100_000,
    }
}

fn open(folder: &Path) -> (Store, Owner, Known) {
    open_with(folder, settings())
}

fn open_with(folder: &Path, settings: StoreConfig) -> (Store, Owner, Known) {
    start(folder, settings, Box::new(|_, text| println!("{text}"))).expect("it opens")
}

fn refusal(folder: &Path) -> String {
    start(folder, settings(), Box::new(|_, _| {})).err().expect("it is refused").to_string()
}

fn ask(store: &Store, plugin_id: &str, question: KvQuestion) -> KvAnswer {
    let (tell, told) = channel();
    store.ask(plugin_id, question, Box::new(move |reply| tell.send(reply).expect("the test waits")));
    told.recv_timeout(DEADLINE).expect("an answer")
}

fn get(key: &str) -> KvQuestion {
    KvQuestion::Get { key: key.into() }
}

fn set(key: &str, value: &str) -> KvQuestion {
    KvQuestion::Set { key: key.into(), value: value.into() }
}

fn delete(key: &str) -> KvQuestion {
    KvQuestion::Delete { key: key.into() }
}

fn list(prefix: &str, limit: Option<u64>) -> KvQuestion {
    KvQuestion::List { prefix: prefix.into(), limit }
}

fn code(answer: &KvAnswer) -> &str {
    match answer {
        KvAnswer::Error { code, .. } => code,
        KvAnswer::Value(_) | KvAnswer::Keys(_) => "",
    }
}

fn events(store: &Store, query: EventQuery) -> Vec<EventRow> {
    let (tell, told) = channel();
    store.events(query, Box::new(move |rows| tell.send(rows).expect("the test waits")));
    told.recv_timeout(DEADLINE).expect("an answer").expect("rows")
}

/// All that was recorded before is written: the writer takes events together with or before later questions.
fn settle(store: &Store) {
    assert_eq!(ask(store, "settle", delete("nothing")), KvAnswer::Value(None));
}

#[test]
fn values_stay_within_their_plugin_and_survive_a_restart() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (store, owner, known) = open(dir.path());
    assert_eq!(ask(&store, "a", set("k", "1")), KvAnswer::Value(None));
    assert_eq!(ask(&store, "a", get("k")), KvAnswer::Value(Some("1".into())));
    assert_eq!(ask(&store, "b", get("k")), KvAnswer::Value(None));
    store.record("a", "ready", json!({ "pid": 1 }));
    let kept = Kept {
        enabled: false,
        restarts: 3,
        restarted_unix_ms: Some(1_700_000_000_001),
        failures: 7,
        next_start_unix_ms: Some(1_700_000_000_002),
        last_exit: Some("exit code 1".into()),
        failed_content: Some(u64::MAX - 1),
        failed: Some("it fell".into()),
    };
    store.keep("b", kept.clone());
    owner.finish();
    let (store, owner, again) = open(dir.path());
    assert_eq!(again.instance_id, known.instance_id);
    assert_eq!(again.plugins["b"], kept);
    assert_eq!(ask(&store, "a", get("k")), KvAnswer::Value(Some("1".into())));
    assert_eq!(ask(&store, "a", delete("k")), KvAnswer::Value(None));
    assert_eq!(ask(&store, "a", get("k")), KvAnswer::Value(None));
    assert_eq!(events(&store, EventQuery { limit: 10, ..EventQuery::default() }).len(), 1);
    owner.finish();
    assert_eq!(code(&ask(&store, "a", get("k"))), "unavailable", "it is closed");
    assert_eq!(code(&ask(&store, "a", set("k", ""))), "unavailable", "it is closed");
}

#[test]
fn list_takes_its_prefix_literally() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (store, owner, _) = open(dir.path());
    for key in ["a%1", "a%2", "ab", "b", "n\0a", "n\0b", "ü"] {
        ask(&store, "p", set(key, "x"));
        ask(&store, "q", set(key, "x"));
    }
    for (prefix, limit, keys) in [
        ("a%", None, vec!["a%1", "a%2"]),
        ("", Some(1), vec!["a%1"]),
        ("", Some(0), vec![]),
        ("n\0", None, vec!["n\0a", "n\0b"]),
        ("ü", Some(u64::MAX), vec!["ü"]),
        ("c", None, vec![]),
        ("", None, vec!["a%1", "a%2", "ab", "b", "n\0a", "n\0b", "ü"]),
    ] {
        let keys = keys.into_iter().map(str::to_owned).collect();
        assert_eq!(ask(&store, "p", list(prefix, limit)), KvAnswer::Keys(keys), "{prefix:?} {limit:?}");
    }
    owner.finish();
}

#[test]
fn keys_and_values_have_bounds_and_their_edges_are_taken() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let bounds = StoreConfig { value_bytes_max: 100, ..settings() };
    let (store, owner, _) = open_with(dir.path(), bounds);
    let (longest, too_long) = ("k".repeat(KEY_BYTES_MAX), "k".repeat(KEY_BYTES_MAX + 1));
    let (largest, too_large) = ("v".repeat(100), "v".repeat(101));
    for (question, expected) in [
        (set(&longest, &largest), ""),
        (get(&longest), ""),
        (delete(&longest), ""),
        (set(&too_long, ""), "too_large"),
        (get(&too_long), "too_large"),
        (delete(&too_long), "too_large"),
        (set("k", &too_large), "too_large"),
        (set("", "v"), "invalid"),
        (get(""), "invalid"),
        (delete(""), "invalid"),
        (KvQuestion::Invalid { reason: "why".into() }, "invalid"),
    ] {
        assert_eq!(code(&ask(&store, "p", question.clone())), expected, "{question:?}");
    }
    owner.finish();
}

#[test]
fn the_quota_counts_what_is_there_and_nothing_else() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let hundred = StoreConfig { quota_bytes: 100, ..settings() };
    let (store, owner, _) = open_with(dir.path(), hundred);
    let value = |bytes: usize| "x".repeat(bytes);
    for (question, expected) in [
        // Key and value count.
        (set("a", &value(100)), "quota"),
        (set("a", &value(99)), ""),
        (set("b", ""), "quota"),
        // What is overwritten no longer counts.
        (set("a", &value(49)), ""),
        (set("b", &value(49)), ""),
        (set("b", &value(50)), "quota"),
        (set("b", &value(49)), ""),
        (delete("nothing"), ""),
        (set("c", ""), "quota"),
        (delete("b"), ""),
        (delete("b"), ""),
        (set("c", &value(49)), ""),
        (set("d", ""), "quota"),
    ] {
        assert_eq!(code(&ask(&store, "p", question.clone())), expected, "{question:?}");
    }
    assert_eq!(code(&ask(&store, "q", set("a", &value(99)))), "", "another plugin has a quota of its own");
    owner.finish();

    // The sum is known again after a restart, and a lowered quota takes nothing away.
    let (store, owner, _) = open_with(dir.path(), StoreConfig { quota_bytes: 60, ..hundred });
    assert_eq!(code(&ask(&store, "p", set("d", ""))), "quota");
    assert_eq!(code(&ask(&store, "p", set("a", &value(50)))), "quota", "more than before");
    assert_eq!(code(&ask(&store, "p", set("a", &value(48)))), "", "less than before");
    assert_eq!(code(&ask(&store, "p", delete("a"))), "");
    assert_eq!(code(&ask(&store, "p", set("d", &value(9)))), "");
    assert_eq!(code(&ask(&store, "p", set("e", ""))), "quota");
    // Somebody else makes room.
    let other = Connection::open(dir.path().join("toru.db")).expect("open");
    other.execute("DELETE FROM plugin_kv WHERE plugin_id = 'p'", []).expect("delete");
    assert_eq!(code(&ask(&store, "p", set("e", &value(59)))), "");
    assert_eq!(code(&ask(&store, "p", set("f", ""))), "quota");
    owner.finish();
}

#[test]
fn the_sum_of_a_plugin_is_that_of_its_rows_whatever_it_does() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let path = dir.path().join("toru.db");
    let mut database = database::open(&path, Synchronous::Normal).expect("open");
    let mut usage = Usage::default();
    // Numbers of a linear congruential generator: the same walk each time.
    let mut state = 1_u64;
    let mut next = |below: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    let mut refused = 0;
    for round in 0..300 {
        let transaction = database.transaction().expect("begin");
        usage.refresh(&transaction).expect("sum");
        let mut sum = usage.of("p");
        for _ in 0..next(5) {
            let key = format!("{}", next(12) * 1000);
            if next(3) == 0 {
                sum = database::delete(&transaction, "p", &key, sum).expect("delete");
            } else {
                let value = "ü".repeat(next(40) as usize);
                match database::set(&transaction, "p", &key, &value, sum, 400).expect("set") {
                    Some(now) => sum = now,
                    None => refused += 1,
                }
            }
        }
        if next(4) == 0 {
            transaction.rollback().expect("roll back");
        } else {
            transaction.commit().expect("commit");
            usage.adopt(HashMap::from([("p", sum)]));
        }
        let rows: i64 = database
            .query_row(
                "SELECT coalesce(sum(octet_length(key) + octet_length(value)), 0) FROM plugin_kv",
                [],
                |row| row.get(0),
            )
            .expect("sum");
        assert_eq!(usage.of("p"), rows as u64, "round {round}");
        assert!(rows <= 400);
    }
    assert!(refused > 0, "the walk reaches the quota");
}

#[test]
fn a_value_past_the_quota_refuses_no_other_of_its_transaction() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (store, owner, _) = open_with(dir.path(), StoreConfig { quota_bytes: 100, ..settings() });
    // While somebody else holds the lock, the questions gather for one transaction.
    let other = Connection::open(dir.path().join("toru.db")).expect("open");
    other.execute_batch("BEGIN IMMEDIATE").expect("lock");
    let (tell, told) = channel();
    let large = "x".repeat(60);
    for (number, value) in ["small", &large, &large, "small"].into_iter().enumerate() {
        let tell = tell.clone();
        let reply = Box::new(move |answer| tell.send((number, answer)).expect("the test waits"));
        store.ask("p", set(&number.to_string(), value), reply);
    }
    assert!(told.try_recv().is_err(), "nothing is answered before it is written");
    other.execute_batch("COMMIT").expect("unlock");
    let mut codes = ["?"; 4].map(str::to_owned);
    for _ in 0..4 {
        let (number, answer) = told.recv_timeout(DEADLINE).expect("an answer");
        codes[number] = code(&answer).to_owned();
    }
    assert_eq!(codes, ["", "", "quota", ""]);
    assert_eq!(ask(&store, "p", list("", None)), KvAnswer::Keys(vec!["0".into(), "1".into(), "3".into()]));
    owner.finish();
}

#[test]
fn a_locked_database_refuses_writes_in_time_and_reads_go_on() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (notice, notices) = channel();
    let notice = Box::new(move |_, text: &str| drop(notice.send(text.to_owned())));
    let (store, owner, _) = start(dir.path(), settings(), notice).expect("it opens");
    ask(&store, "p", set("k", "old"));
    let other = Connection::open(dir.path().join("toru.db")).expect("open");
    other.execute_batch("BEGIN EXCLUSIVE").expect("lock");
    let (tell, told) = channel();
    let start = Instant::now();
    // Before the event: behind it, its time could be up in the queue, which is `unavailable`.
    store.ask("p", set("k", "new"), Box::new(move |answer| tell.send(answer).expect("the test waits")));
    store.record("p", "crashed", json!({}));
    assert_eq!(ask(&store, "p", get("k")), KvAnswer::Value(Some("old".into())));
    assert!(told.try_recv().is_err(), "the write waits");
    let refused = told.recv_timeout(DEADLINE).expect("an answer");
    assert_eq!(code(&refused), "busy", "{refused:?}");
    let said = notices.recv_timeout(DEADLINE).expect("a word to the operator");
    assert!(said.contains("takes no values: another process holds the database locked"), "{said}");
    // SQLite counts its wait in whole milliseconds, and sleeps a few of them at a time.
    assert!(start.elapsed() >= PATIENCE * 9 / 10, "it waited as long as it may");
    other.execute_batch("COMMIT").expect("unlock");
    assert_eq!(
        ask(&store, "p", get("k")),
        KvAnswer::Value(Some("old".into())),
        "what was refused is not done"
    );
    assert_eq!(ask(&store, "p", set("k", "newer")), KvAnswer::Value(None));
    // The event has waited.
    let rows = loop {
        settle(&store);
        let rows = events(&store, EventQuery { limit: 10, ..EventQuery::default() });
        if !rows.is_empty() {
            break rows;
        }
    };
    assert_eq!(rows[0].event_type, "crashed");
    assert_eq!(store.events_dropped(), 0);
    owner.finish();
}

#[test]
fn too_many_waiting_are_refused_or_dropped_and_counted() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (store, owner, _) = open(dir.path());
    let other = Connection::open(dir.path().join("toru.db")).expect("open");
    other.execute_batch("BEGIN IMMEDIATE").expect("lock");
    let (tell, told) = channel();
    let value = "x".repeat(1 << 20);
    // Some are with the writer already, so that a few more than the queue holds are taken.
    for number in 0..2 * QUEUE_BYTES_MAX / value.len() {
        let tell = tell.clone();
        let reply = Box::new(move |answer| tell.send(answer).expect("the test waits"));
        store.ask("p", set(&number.to_string(), &value), reply);
    }
    assert_eq!(code(&told.try_recv().expect("refused at once")), "busy");
    for number in 0..2 * QUEUE_EVENTS_MAX + BATCH_ITEMS_MAX {
        store.record("p", "flood", json!({ "number": number }));
    }
    let dropped = store.events_dropped();
    assert!(dropped >= (QUEUE_EVENTS_MAX - BATCH_ITEMS_MAX) as u64, "{dropped}");
    other.execute_batch("COMMIT").expect("unlock");
    drop(tell);
    for _ in 1..2 * QUEUE_BYTES_MAX / value.len() {
        told.recv_timeout(DEADLINE).expect("each question is answered");
    }
    assert!(told.recv().is_err(), "once");
    assert_eq!(owner.finish(), store.events_dropped());
    let database = Connection::open(dir.path().join("toru.db")).expect("open");
    let kept: i64 =
        database.query_row("SELECT count(*) FROM plugin_events", [], |row| row.get(0)).expect("count");
    assert_eq!(kept as u64 + store.events_dropped(), (2 * QUEUE_EVENTS_MAX + BATCH_ITEMS_MAX) as u64);
}

#[test]
fn reads_see_what_was_acknowledged_before_they_were_asked() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (store, owner, _) =
        open_with(dir.path(), StoreConfig { synchronous: Synchronous::Normal, ..settings() });
    std::thread::scope(|scope| {
        for writer in 0..4 {
            let store = &store;
            scope.spawn(move || {
                let key = format!("k{writer}");
                for count in 0..200 {
                    let value = count.to_string();
                    assert_eq!(ask(store, "p", set(&key, &value)), KvAnswer::Value(None));
                    assert_eq!(ask(store, "p", get(&key)), KvAnswer::Value(Some(value)));
                }
            });
        }
    });
    owner.finish();
}

#[test]
fn events_are_found_by_plugin_type_time_and_what_came_after() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (store, owner, _) = open(dir.path());
    let before = unix_ms();
    for number in 0..10 {
        let (plugin, kind) = if number % 2 == 0 { ("a", "ready") } else { ("b", "crashed") };
        store.record(plugin, kind, json!({ "number": number }));
    }
    settle(&store);
    let after = unix_ms() + 1;
    let all = EventQuery { limit: 100, ..EventQuery::default() };
    let rows = events(&store, all.clone());
    let number = |row: &EventRow| row.details["number"].as_u64().expect("a number");
    assert_eq!(rows.iter().map(number).collect::<Vec<_>>(), (0..10).collect::<Vec<_>>());
    assert_eq!(serde_json::to_value(&rows[1]).expect("JSON")["event_type"], "crashed");
    let third = rows[2].id;
    for (what, query, expected) in [
        ("the last", EventQuery { limit: 2, ..all.clone() }, vec![8, 9]),
        ("what follows", EventQuery { after_id: Some(third), limit: 2, ..all.clone() }, vec![3, 4]),
        ("plugin", EventQuery { plugin_id: Some("a".into()), ..all.clone() }, vec![0, 2, 4, 6, 8]),
        ("type", EventQuery { event_type: Some("crashed".into()), limit: 2, ..all.clone() }, vec![7, 9]),
        ("nobody", EventQuery { plugin_id: Some("c".into()), ..all.clone() }, vec![]),
        ("since", EventQuery { since_unix_ms: Some(after), ..all.clone() }, vec![]),
        ("until", EventQuery { until_unix_ms: Some(before), ..all.clone() }, vec![]),
        (
            "all of it",
            EventQuery {
                plugin_id: Some("b".into()),
                event_type: Some("crashed".into()),
                since_unix_ms: Some(before),
                until_unix_ms: Some(after),
                after_id: Some(third),
                limit: usize::MAX,
            },
            vec![3, 5, 7, 9],
        ),
    ] {
        let found: Vec<u64> = events(&store, query).iter().map(number).collect();
        assert_eq!(found, expected, "{what}");
    }
    owner.finish();
}

#[test]
fn events_are_pruned_by_count_and_by_age_and_ids_go_on() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (store, owner, _) = open_with(dir.path(), StoreConfig { event_rows_max: 20, ..settings() });
    for number in 0..100 {
        store.record("p", "ready", json!({ "number": number }));
        settle(&store);
    }
    owner.finish();
    let all = EventQuery { limit: 1000, ..EventQuery::default() };
    let (store, owner, _) = open_with(dir.path(), StoreConfig { event_rows_max: 20, ..settings() });
    settle(&store);
    let rows = events(&store, all.clone());
    assert!((20..=22).contains(&rows.len()), "{} rows", rows.len());
    let last = rows.last().expect("rows").clone();
    assert_eq!(last.details["number"], 99);
    owner.finish();

    // All of them grow old at once; the newest stays, so that whoever follows goes on from it.
    let database = Connection::open(dir.path().join("toru.db")).expect("open");
    database.execute("UPDATE plugin_events SET timestamp = '2001-01-01T00:00:00.000Z'", []).expect("age");
    drop(database);
    let (store, owner, _) = open(dir.path());
    settle(&store);
    // The first pass of pruning comes after the first thing that is written.
    settle(&store);
    let rows = events(&store, all.clone());
    assert_eq!(rows.iter().map(|row| row.id).collect::<Vec<_>>(), [last.id]);
    store.record("p", "ready", json!({}));
    settle(&store);
    let rows = events(&store, EventQuery { after_id: Some(last.id), ..all });
    assert_eq!(rows.len(), 1);
    owner.finish();
}

#[test]
fn a_file_of_the_first_version_is_upgraded_and_keeps_its_content() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let path = dir.path().join("toru.db");
    let old = Connection::open(&path).expect("open");
    // As the first version made it.
    old.execute_batch(
        "PRAGMA journal_mode = WAL;
         CREATE TABLE plugin_kv (plugin_id TEXT NOT NULL, key TEXT NOT NULL, value TEXT NOT NULL,
             PRIMARY KEY (plugin_id, key)) STRICT, WITHOUT ROWID;
         CREATE TABLE plugin_events (id INTEGER PRIMARY KEY, plugin_id TEXT NOT NULL, event_type TEXT NOT NULL,
             timestamp TEXT NOT NULL, details TEXT NOT NULL) STRICT;
         CREATE INDEX plugin_events_by_plugin ON plugin_events (plugin_id, id);
         CREATE TABLE plugins (id TEXT PRIMARY KEY, enabled INTEGER NOT NULL) STRICT, WITHOUT ROWID;
         CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;
         INSERT INTO meta (key, value) VALUES ('schema_version', '1'), ('instance_id', 'abc');
         INSERT INTO plugins VALUES ('off', 0), ('on', 1);
         INSERT INTO plugin_kv VALUES ('p', 'k', 'v');
         INSERT INTO plugin_events (plugin_id, event_type, timestamp, details)
             VALUES ('p', 'ready', '2026-11-24T00:00:00.000Z', '{}');
         PRAGMA user_version = 1;",
    )
    .expect("the old schema");
    drop(old);
    let (store, owner, known) =
        open_with(dir.path(), StoreConfig { events_kept: Duration::MAX, ..settings() });
    assert_eq!(known.instance_id, "abc");
    let kept = |enabled| Kept { enabled, ..Kept::fresh() };
    let expected = HashMap::from([("off".to_owned(), kept(false)), ("on".to_owned(), kept(true))]);
    assert_eq!(known.plugins, expected);
    assert_eq!(ask(&store, "p", get("k")), KvAnswer::Value(Some("v".into())));
    assert_eq!(events(&store, EventQuery { limit: 1, ..EventQuery::default() })[0].details, json!({}));
    owner.finish();

    // The same schema, whichever way it came about.
    let schema = |path: &Path| {
        let database = Connection::open(path).expect("open");
        assert_eq!(database::schema_version(&database).expect("version"), database::SCHEMA_VERSION);
        let stored: String = database
            .query_row("SELECT value FROM meta WHERE key = 'schema_version'", [], |row| row.get(0))
            .expect("version");
        assert_eq!(stored, database::SCHEMA_VERSION.to_string());
        let mut statement =
            database.prepare("SELECT name, sql FROM sqlite_schema ORDER BY name").expect("schema");
        let objects = statement
            .query_map([], |row| Ok((row.get(0)?, row.get::<_, Option<String>>(1)?)))
            .expect("schema")
            .map(|row| row.expect("a row"))
            .map(|(name, sql): (String, _)| {
                let sql: String = sql.unwrap_or_default().split_whitespace().collect();
                (name, sql)
            });
        objects.collect::<Vec<_>>()
    };
    let upgraded = schema(&path);
    let fresh = tempfile::tempdir().expect("temporary directory");
    open(fresh.path()).1.finish();
    assert_eq!(upgraded, schema(&fresh.path().join("toru.db")));
}

#[test]
fn a_file_of_a_newer_version_is_refused() {
    let dir = tempfile::tempdir().expect("temporary directory");
    open(dir.path()).1.finish();
    let path = dir.path().join("toru.db");
    let database = Connection::open(&path).expect("open");
    database.pragma_update(None, "user_version", database::SCHEMA_VERSION + 1).expect("set");
    drop(database);
    let error = refusal(dir.path());
    assert!(error.contains("toru.db") && error.contains("newer toru"), "{error}");
}

#[test]
fn a_file_that_is_damaged_or_not_ours_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let path = dir.path().join("toru.db");
    let garbage = b"this is no database, and long enough to be looked at as one".repeat(20);
    open(dir.path()).1.finish();
    let mut torn = std::fs::read(&path).expect("read");
    torn[4096..8192].fill(0x5a);
    for content in [garbage, torn, vec![]] {
        std::fs::write(&path, &content).expect("write");
        let error = refusal(dir.path());
        assert!(error.contains("toru.db") && error.contains(".recover"), "{error}");
        assert!(std::fs::read(&path).expect("read") == content, "it is evidence");
    }
}

#[test]
fn a_damaged_file_is_left_alone_although_its_log_could_be_written_into_it() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let path = dir.path().join("toru.db");
    let (store, owner, _) = open(dir.path());
    ask(&store, "p", set("k", "v"));
    // As a killed process leaves them.
    let killed = tempfile::tempdir().expect("temporary directory");
    for name in ["toru.db", "toru.db-wal"] {
        std::fs::copy(dir.path().join(name), killed.path().join(name)).expect("copy");
    }
    owner.finish();
    assert!(!path.with_extension("db-wal").exists(), "a good end leaves one file");
    let path = killed.path().join("toru.db");
    let mut torn = std::fs::read(&path).expect("read");
    torn[..4096].fill(0x5a);
    std::fs::write(&path, &torn).expect("write");
    let log = std::fs::read(path.with_extension("db-wal")).expect("read");
    let error = refusal(killed.path());
    assert!(error.contains("toru.db"), "{error}");
    assert!(std::fs::read(&path).expect("read") == torn, "it is evidence");
    assert!(std::fs::read(path.with_extension("db-wal")).expect("read") == log, "it is evidence");
}

#[test]
fn the_files_are_for_their_owner_alone() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().expect("temporary directory");
    let (store, owner, _) = open(dir.path());
    ask(&store, "p", set("k", "v"));
    for name in ["toru.db", "toru.db-wal", "toru.db-shm"] {
        let mode = std::fs::metadata(dir.path().join(name)).expect(name).permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
    owner.finish();
}

#[test]
fn a_damaged_database_and_its_log_are_kept_aside_as_they_are() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (store, owner, _) = open(dir.path());
    ask(&store, "p", set("k", "backed up"));
    let saved = dir.path().join("saved");
    let content = offline::backup(dir.path(), &saved).expect("a backup beside the store");
    assert_eq!((content.plugins, content.values, content.value_bytes), (1, 1, 10));
    ask(&store, "p", set("k", "later"));
    // As a killed process leaves them, and with a page gone.
    let killed = tempfile::tempdir().expect("temporary directory");
    let path = killed.path().join("toru.db");
    for name in ["toru.db", "toru.db-wal"] {
        std::fs::copy(dir.path().join(name), killed.path().join(name)).expect("copy");
    }
    owner.finish();
    let mut torn = std::fs::read(&path).expect("read");
    torn[..4096].fill(0x5a);
    std::fs::write(&path, &torn).expect("write");
    let log = std::fs::read(path.with_extension("db-wal")).expect("read");
    let error = offline::check(killed.path()).expect_err("it is damaged").to_string();
    assert!(error.contains("toru.db"), "{error}");

    let (restored, kept) = offline::restore(killed.path(), &saved).expect("restored");
    assert_eq!(restored, content);
    let kept = kept.expect("there was one");
    assert!(std::fs::read(&kept).expect("read") == torn, "it is evidence");
    let mut kept_log = kept.into_os_string();
    kept_log.push("-wal");
    assert!(std::fs::read(kept_log).expect("read") == log, "it is evidence");
    let (store, owner, _) = open(killed.path());
    assert_eq!(ask(&store, "p", get("k")), KvAnswer::Value(Some("backed up".into())));
    owner.finish();
}

#[test]
fn a_backup_neither_replaces_the_database_nor_leaves_a_half_behind() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (_, owner, _) = open(dir.path());
    for name in ["toru.db", "toru.db-wal"] {
        let error = offline::backup(dir.path(), &dir.path().join(name)).expect_err(name).to_string();
        assert!(error.contains("belongs to the database"), "{error}");
    }
    let elsewhere = tempfile::tempdir().expect("temporary directory");
    let folder = elsewhere.path().join("is-a-folder");
    std::fs::create_dir_all(folder.join("with-content")).expect("folder");
    offline::backup(dir.path(), &folder).expect_err("a folder is no file");
    assert_eq!(std::fs::read_dir(elsewhere.path()).expect("read").count(), 1, "nothing is left");
    offline::backup(dir.path(), &elsewhere.path().join("no/such/folder")).expect_err("no folder");
    owner.finish();
    let error = offline::check(elsewhere.path()).expect_err("none there").to_string();
    assert!(error.contains("there is no database"), "{error}");
}
