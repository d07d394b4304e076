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
    /// `None` if it does not say, or in no word that is known.
    pub level: Option<Level>,
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
    object(line).map(understand)
}

/// Reads the first part of a line, once [`mend`] has ended it.
pub fn read_part(object_text: &str) -> Option<Said<'_>> {
    let mut fields = object(object_text)?;
    // Before the plugin's own, which are numbered where they have the same name.
    fields.insert(0, ("line_part".into(), serde_json::from_str("1").ok()?));
    Some(understand(fields))
}

/// Ends a JSON object of which only the beginning is there: within the text that it was cut in, or behind its last field
/// that is whole. Gives the object, and what of `text` is not in it.
pub fn mend(text: &str) -> Option<(String, &str)> {
    if !text.trim_ascii_start().starts_with('{') {
        return None;
    }
    let (mut depth, mut in_string, mut in_value) = (0_u32, false, false);
    let mut last_comma = None;
    let bytes = text.as_bytes();
    let mut position = 0;
    while let Some(&byte) = bytes.get(position) {
        let mut step = 1;
        match byte {
            b'\\' if in_string => match escape_bytes(&bytes[position..]) {
                Some(bytes) => step = bytes,
                None => break,
            },
            b'"' => in_string = !in_string,
            _ if in_string => {}
            b'{' | b'[' => depth += 1,
            b'}' | b']' => {
                depth = depth.saturating_sub(1);
                if depth == 0 {
                    // It ends here, and more follows: that is no object.
                    return None;
                }
            }
            b':' if depth == 1 => in_value = true,
            b',' if depth == 1 => {
                in_value = false;
                last_comma = Some(position);
            }
            _ => {}
        }
        position += step;
    }
    if in_string && in_value && depth == 1 {
        return Some((format!("{}\"}}", &text[..position]), &text[position..]));
    }
    let comma = last_comma?;
    Some((format!("{}}}", &text[..comma]), &text[comma + 1..]))
}

/// How long the escape is that `bytes` begin with, both halves of a surrogate pair as one; `None` if it is cut.
fn escape_bytes(bytes: &[u8]) -> Option<usize> {
    if *bytes.get(1)? != b'u' {
        return Some(2);
    }
    let digits = bytes.get(2..6)?.to_ascii_lowercase();
    if !matches!(digits[..], [b'd', b'8'..=b'9' | b'a'..=b'b', ..]) || bytes.get(6..8)? != b"\\u" {
        return Some(6);
    }
    bytes.get(8..12).map(|_| 12)
}

fn understand(mut fields: Fields<'_>) -> Said<'_> {
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
    Said { level: level.map(|(_, known)| known.level), message: message.unwrap_or_default(), fields }
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
    use proptest::prelude::*;

    use super::*;

    /// Level, message and fields, the last as the object that they make.
    fn check(line: &str, level: Level, message: &str, fields: &str) {
        let said = read(line).unwrap_or_else(|| panic!("{line}"));
        compare(line, &said, level, message, fields);
    }

    fn compare(line: &str, said: &Said<'_>, level: Level, message: &str, fields: &str) {
        let pairs: Vec<String> =
            said.fields.iter().map(|(name, value)| format!("{name:?}:{}", value.get())).collect();
        let found = (said.level.unwrap_or(Level::Info), said.message.as_str(), pairs.join(","));
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
    fn of_a_line_that_is_cut_all_is_kept_that_is_whole_and_text_where_it_ends() {
        use Level::*;
        for (part, level, message, fields, rest) in [
            (r#"{"level":"error","message":"a long"#, Error, "a long", "", ""),
            (
                r#"{"level":"error","msg":"m","trace":"at \"x\" \n"#,
                Error,
                "m",
                r#","trace":"at \"x\" \n""#,
                "",
            ),
            (r#"{"n":1,"message":"{[,\\"#, Info, r"{[,\", r#","n":1"#, ""),
            // Escapes are not cut in two.
            (r#"{"message":"a\"#, Info, "a", "", r"\"),
            (r#"{"message":"a\u00"#, Info, "a", "", r"\u00"),
            (r#"{"message":"a\u00e9"#, Info, "a\u{e9}", "", ""),
            (r#"{"message":"a\ud83d"#, Info, "a", "", r"\ud83d"),
            (r#"{"message":"a\uD83D\ude0"#, Info, "a", "", r"\uD83D\ude0"),
            (r#"{"message":"a\ud83d\ude00"#, Info, "a\u{1f600}", "", ""),
            // What is neither text nor whole is left out.
            (r#"{"level":"warn","a":[{"b":"#, Warn, "", "", r#""a":[{"b":"#),
            (r#"{"level":"warn","a":{"b":1,"c":"te"#, Warn, "", "", r#""a":{"b":1,"c":"te"#),
            (r#"{"level":"warn","a":{"b":[1]},"n":12"#, Warn, "", r#","a":{"b":[1]}"#, r#""n":12"#),
            (r#"{"level":"warn","mess"#, Warn, "", "", r#""mess"#),
            (r#"{"level":"warn","#, Warn, "", "", ""),
            (r#" {"line_part":7,"msg":"m"#, Info, "m", r#","line_part_2":7"#, ""),
        ] {
            let (object, left_out) = mend(part).unwrap_or_else(|| panic!("{part}"));
            let said = read_part(&object).unwrap_or_else(|| panic!("{object}"));
            compare(part, &said, level, message, &format!("\"line_part\":1{fields}"));
            assert_eq!(left_out, rest, "{part}");
        }
        for (part, known) in [(r#"{"msg":"m"#, None), (r#"{"level":"info","msg":"m"#, Some(Info))] {
            assert_eq!(read_part(&mend(part).expect("an object").0).expect("one").level, known, "{part}");
        }
        for part in
            ["", "text, and", "[1,", "{", r#"{"a":1"#, r#"{"a":{"b":1,"#, r#"{"a":1} more, and"#, r#"{"key"#]
        {
            assert!(mend(part).is_none(), "{part}");
        }
        for part in ["{text, and", r#"{"a":b,"msg":"m"#, r#"{"msg":"a\x"#, "{\"msg\":\"\u{1}"] {
            assert!(mend(part).is_none_or(|(object, _)| read_part(&object).is_none()), "{part}");
        }
    }

    proptest! {
        /// Where it is cut is chance.
        #[test]
        fn a_part_of_an_object_is_one_wherever_it_is_cut(
            message in ".*", text in ".*", number in any::<i64>(), cut in any::<prop::sample::Index>(),
        ) {
            let whole = serde_json::json!({"a": number, "message": message, "b": [text, {"c": text}], "z": text});
            let whole = whole.to_string();
            let part = &whole[..whole.floor_char_boundary(cut.index(whole.len()))];
            match mend(part) {
                Some((object, rest)) => {
                    let said = read_part(&object);
                    prop_assert!(said.is_some(), "{} of {}", object, part);
                    prop_assert!(message.starts_with(&said.expect("asserted").message));
                    prop_assert!(part.ends_with(rest));
                }
                // Not even the number is whole.
                None => prop_assert!(part.len() < 26, "{}", part),
            }
        }

        #[test]
        fn any_text_can_be_a_part(text in ".*", json in r#"\{"[\\ua-f0-9",:{}\[\]é ]*"#) {
            for part in [text, json] {
                if let Some((object, _)) = mend(&part) {
                    let _ = read_part(&object);
                }
            }
        }
    }

    #[test]
    fn fields_of_a_message_keep_their_text() {
        let fields = fields(r#"{"n":1e999,"level":"x"}"#).expect("an object");
        let text: Vec<_> = fields.iter().map(|(name, value)| (name.as_str(), value.get())).collect();
        assert_eq!(text, [("n", "1e999"), ("original_level", "\"x\"")]);
    }
}
