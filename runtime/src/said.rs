//! What a plugin's own log line says, where it is a JSON object. Pure.
//!
//! Fields keep their order and their text: a number that no `f64` holds is the plugin's business.

use std::collections::{HashMap, HashSet};
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;
use toru_supervisor::Level;

/// A line that is a JSON object, as it is to be logged.
#[derive(Debug)]
pub struct Said<'a> {
    pub level: Level,
    pub message: String,
    /// All that `level` and `message` do not tell.
    pub fields: Fields<'a>,
}

/// Names, and values as JSON text.
pub type Fields<'a> = Vec<(String, &'a RawValue)>;

/// Where libraries say how serious a line is, the first that says it in words that are known counts: most of them, those
/// of Google's clouds, of Go and of Python.
const LEVEL_KEYS: [&str; 4] = ["level", "severity", "lvl", "levelname"];
/// Words that say no more and no less than the core's own.
const SYNONYMS: [&str; 7] = ["debug", "info", "information", "warn", "warning", "err", "error"];
/// Where they have what people read.
const MESSAGE_KEYS: [&str; 2] = ["message", "msg"];

/// Reads `line`; `None` if it is no JSON object and so a message itself.
///
/// A field with a name of the core's own, and a level that says more than the core's four words do or nothing that is
/// known, is kept as `original_…`. Of several with one name the first keeps it, and the others are numbered: `name_2`.
pub fn read(line: &str) -> Option<Said<'_>> {
    let mut fields = object(line)?;
    let value = |key: &str| fields.iter().find(|(name, _)| name == key).map(|(_, value)| *value);
    let level = LEVEL_KEYS.into_iter().find_map(|key| Some((key, level_of(value(key)?)?)));
    if let Some(("level", Known { exact: true, .. })) = level
        && let Some(position) = fields.iter().position(|(name, _)| name == "level")
    {
        fields.remove(position);
    }
    let key = MESSAGE_KEYS
        .into_iter()
        .find(|key| fields.iter().any(|(name, value)| name == key && value.get() != "null"));
    let position = key.and_then(|key| fields.iter().position(|(name, _)| name == key));
    let message = position.map(|position| fields.remove(position).1);
    let message = message
        .map(|value| serde_json::from_str::<String>(value.get()).unwrap_or_else(|_| value.get().to_owned()));
    rename(&mut fields);
    Some(Said {
        level: level.map_or(Level::Info, |(_, known)| known.level),
        message: message.unwrap_or_default(),
        fields,
    })
}

/// The fields of a `log` message, JSON text of an object.
pub fn fields(text: &str) -> Option<Fields<'_>> {
    let mut fields = object(text)?;
    rename(&mut fields);
    Some(fields)
}

/// The names that begin every line are the core's.
fn rename(fields: &mut Fields<'_>) {
    for (name, _) in fields.iter_mut() {
        if ["timestamp", "level", "plugin_id", "message"].contains(&name.as_str()) {
            name.insert_str(0, "original_");
        }
    }
    number(fields);
}

/// Gives fields a name of their own where several have the same: most readers of JSON keep one of them.
fn number(fields: &mut Fields<'_>) {
    let mut order: Vec<usize> = (0..fields.len()).collect();
    order.sort_by(|&one, &other| fields[one].0.cmp(&fields[other].0));
    let same = |pair: &[usize]| fields[pair[0]].0 == fields[pair[1]].0;
    let again: Vec<usize> = order.windows(2).filter(|pair| same(pair)).map(|pair| pair[1]).collect();
    if again.is_empty() {
        return;
    }
    let mut taken: HashSet<String> = fields.iter().map(|(name, _)| name.clone()).collect();
    // Each name counts on from where it was, so that a line of one name alone is no work without end.
    let mut counts: HashMap<String, usize> = HashMap::new();
    for position in again {
        let name = fields[position].0.clone();
        let count = counts.entry(name.clone()).or_insert(1);
        fields[position].0 = loop {
            *count += 1;
            let numbered = format!("{name}_{count}");
            if taken.insert(numbered.clone()) {
                break numbered;
            }
        };
    }
}

fn object(text: &str) -> Option<Fields<'_>> {
    struct Object<'a>(Fields<'a>);

    impl<'de> Deserialize<'de> for Object<'de> {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            deserializer.deserialize_map(Pairs)
        }
    }

    struct Pairs;

    impl<'de> Visitor<'de> for Pairs {
        type Value = Object<'de>;

        fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
            formatter.write_str("an object")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut fields = vec![];
            while let Some(field) = map.next_entry::<String, &RawValue>()? {
                fields.push(field);
            }
            Ok(Object(fields))
        }
    }

    // Most lines are no JSON, and this is cheaper than an error.
    if !text.trim_ascii_start().starts_with('{') {
        return None;
    }
    serde_json::from_str::<Object<'_>>(text).ok().map(|object| object.0)
}

struct Known {
    level: Level,
    /// The core's word says all that the plugin's did.
    exact: bool,
}

/// A word, or a number as pino for Node counts, the only ones that mean the same everywhere they are written. `None` for
/// one that is not known.
fn level_of(value: &RawValue) -> Option<Known> {
    let text = value.get();
    if let Ok(word) = serde_json::from_str::<String>(text) {
        let level = Level::known_word(&word)?;
        let exact = SYNONYMS.contains(&word.to_ascii_lowercase().as_str());
        return Some(Known { level, exact });
    }
    let (level, exact) = match text {
        "10" => (Level::Debug, false),
        "20" => (Level::Debug, true),
        "30" => (Level::Info, true),
        "40" => (Level::Warn, true),
        "50" => (Level::Error, true),
        "60" => (Level::Error, false),
        _ => return None,
    };
    Some(Known { level, exact })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Level, message and fields, the last as the object that they make.
    fn check(line: &str, level: Level, message: &str, fields: &str) {
        let said = read(line).unwrap_or_else(|| panic!("{line}"));
        let pairs: Vec<String> =
            said.fields.iter().map(|(name, value)| format!("{name:?}:{}", value.get())).collect();
        let found = (said.level, said.message.as_str(), pairs.join(","));
        assert_eq!(found, (level, message, fields.to_owned()), "{line}");
    }

    #[test]
    fn nothing_that_a_line_says_is_lost() {
        use Level::*;
        for (line, level, message, fields) in [
            (r#"{"message":"m","level":"warn"}"#, Warn, "m", ""),
            // Each library has its key and its words.
            (r#"{"severity":"ERROR","message":"m"}"#, Error, "m", r#""severity":"ERROR""#),
            (r#"{"lvl":"dbug","msg":"m"}"#, Info, "m", r#""lvl":"dbug""#),
            (r#"{"lvl":"debug","msg":"m"}"#, Debug, "m", r#""lvl":"debug""#),
            (r#"{"levelname":"CRITICAL","message":"m"}"#, Error, "m", r#""levelname":"CRITICAL""#),
            (r#"{"level":6,"severity":"warning"}"#, Warn, "", r#""original_level":6,"severity":"warning""#),
            (r#"{"level":"info","severity":"error"}"#, Info, "", r#""severity":"error""#),
            // A word that says more than ours stays.
            (r#"{"level":"CRITICAL"}"#, Error, "", r#""original_level":"CRITICAL""#),
            (r#"{"level":60,"msg":"m"}"#, Error, "m", r#""original_level":60"#),
            (r#"{"level":50,"msg":"m"}"#, Error, "m", ""),
            (r#"{"level":null,"msg":"m"}"#, Info, "m", r#""original_level":null"#),
            // The message, whatever it is.
            (r#"{"message":"m","msg":"n"}"#, Info, "m", r#""msg":"n""#),
            (r#"{"message":{"a":[1,2]}}"#, Info, r#"{"a":[1,2]}"#, ""),
            (r#"{"msg":"\ud83d\ude00 \u00e9"}"#, Info, "\u{1f600} é", ""),
            // Numbers beyond an f64 keep their text, as do order and nulls; of names that come twice each has its value.
            (
                r#"{"z":1e400,"a":123456789012345678901234567890,"n":0.10,"b":null,"a":[-0.0]}"#,
                Info,
                "",
                r#""z":1e400,"a":123456789012345678901234567890,"n":0.10,"b":null,"a_2":[-0.0]"#,
            ),
            (
                r#"{"a":1,"a_2":2,"a":3,"a":4,"a_2":5}"#,
                Info,
                "",
                r#""a":1,"a_2":2,"a_3":3,"a_4":4,"a_2_2":5"#,
            ),
            (r#"{"level":"warn","level":"error"}"#, Warn, "", r#""original_level":"error""#),
            (
                r#"{"message":"m","message":"n","original_message":"o","msg":"p"}"#,
                Info,
                "m",
                r#""original_message":"n","original_message_2":"o","msg":"p""#,
            ),
            (
                r#"{"timestamp":1,"plugin_id":"x"}"#,
                Info,
                "",
                r#""original_timestamp":1,"original_plugin_id":"x""#,
            ),
            ("  \t{\"msg\":\"m\" } \r", Info, "m", ""),
            ("{}", Info, "", ""),
        ] {
            check(line, level, message, fields);
        }
        for line in ["", "plain", "[1]", "{", "{} more", "{'a':1}", "{\"a\":NaN}", "null", "\"{}\""] {
            assert!(read(line).is_none(), "{line}");
        }
        // Deep nesting is text like any other.
        let deep = format!("{{\"a\":{}{}}}", "[".repeat(100_000), "]".repeat(100_000));
        assert_eq!(read(&deep).expect("an object").fields.len(), 1);
        // One name alone is as quick as many.
        let same = format!("{{{}\"a\":1}}", "\"a\":1,".repeat(100_000));
        let fields = read(&same).expect("an object").fields;
        assert_eq!(fields.iter().map(|(name, _)| name).collect::<HashSet<_>>().len(), 100_001);
    }

    #[test]
    fn fields_of_a_message_keep_their_text() {
        let fields = fields(r#"{"n":1e999,"level":"x"}"#).expect("an object");
        let text: Vec<_> = fields.iter().map(|(name, value)| (name.as_str(), value.get())).collect();
        assert_eq!(text, [("n", "1e999"), ("original_level", "\"x\"")]);
    }
}
