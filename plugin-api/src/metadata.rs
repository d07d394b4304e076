//! What `PLUGIN --metadata` prints: the plugin introduces itself before any socket exists.
//!
//! Parsed once into a type that cannot be wrong; the core bounds the call (time and bytes), not this file.
//! Source: PROTOCOL.md, "Metadata".

use serde_json::{Map, Value};
use thiserror::Error;

use crate::frame::Framing;
use crate::json::{write_string, write_u64};

/// HTTP requests a 1.1 plugin takes at once unless it says otherwise.
pub const MAX_IN_FLIGHT_DEFAULT: u32 = 1024;

const ID_BYTES_MAX: usize = 64;
const TEXT_CHARS_MAX: usize = 100;
const ICON_BYTES_MAX: usize = 100;

/// The protocol that a plugin speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    /// One connection for one exchange.
    V1_0,
    /// Few connections, many messages.
    V1_1,
}

impl Protocol {
    /// The version as the wire writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::V1_0 => "1.0",
            Self::V1_1 => "1.1",
        }
    }
}

/// A plugin's metadata, all rules of the protocol kept.
///
/// Bounds: see the fields; [`Metadata::check`] is what [`Metadata::parse`] applies.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Metadata {
    /// 1 to 64 of `A-Z a-z 0-9 -`, first a letter or digit, not `route`; unique among plugins.
    pub id: String,
    /// Up to 100 characters.
    pub name: String,
    /// Up to 100 characters; semver by custom.
    pub version: String,
    /// Up to 100 characters.
    pub author: Option<String>,
    /// Up to 100 bytes, usually one emoji.
    pub icon: String,
    /// `/` and one path segment; unique among plugins.
    pub route: String,
    /// The protocol that the plugin speaks; absent it is 1.0, in [`Metadata::new`] 1.1.
    pub protocol: Protocol,
    /// How the core frames what it sends to the plugin.
    pub framing: Framing,
    /// HTTP requests at once over all connections; at least 1. Counts for 1.1 only.
    pub max_in_flight: u32,
    /// HTTP timeout for this plugin in milliseconds, at least 1; `None` is the core's own.
    pub timeout_ms: Option<u64>,
}

/// Why metadata was refused: the field, if it is one field's fault, and the reason.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum MetadataError {
    /// One field breaks its rule.
    #[error("field `{field}`: {reason}")]
    Field {
        /// Its name.
        field: &'static str,
        /// The rule, in words.
        reason: String,
    },
    /// The output as a whole is no metadata: why.
    #[error("{0}")]
    Document(String),
}

impl Metadata {
    /// Metadata of a 1.1 plugin with length framing, a plug for an icon and the route `/<id>`.
    pub fn new(id: impl Into<String>, name: impl Into<String>, version: impl Into<String>) -> Self {
        let id = id.into();
        Self {
            name: name.into(),
            version: version.into(),
            author: None,
            icon: "🔌".to_owned(),
            route: format!("/{id}"),
            protocol: Protocol::V1_1,
            framing: Framing::Length,
            max_in_flight: MAX_IN_FLIGHT_DEFAULT,
            timeout_ms: None,
            id,
        }
    }

    /// Sets the author.
    #[must_use]
    pub fn author(mut self, author: impl Into<String>) -> Self {
        self.author = Some(author.into());
        self
    }

    /// Sets the icon.
    #[must_use]
    pub fn icon(mut self, icon: impl Into<String>) -> Self {
        self.icon = icon.into();
        self
    }

    /// Sets the route.
    #[must_use]
    pub fn route(mut self, route: impl Into<String>) -> Self {
        self.route = route.into();
        self
    }

    /// Sets how many HTTP requests the plugin takes at once.
    #[must_use]
    pub fn max_in_flight(mut self, max_in_flight: u32) -> Self {
        self.max_in_flight = max_in_flight;
        self
    }

    /// Sets the HTTP timeout in milliseconds.
    #[must_use]
    pub fn timeout_ms(mut self, timeout_ms: u64) -> Self {
        self.timeout_ms = Some(timeout_ms);
        self
    }

    /// Reads what a plugin printed.
    ///
    /// Shape: one JSON object; unknown fields are ignored, `null` in an optional field is its absence.
    /// Errors: name the field and the reason; skip that plugin.
    pub fn parse(json: &[u8]) -> Result<Self, MetadataError> {
        let value: Value = serde_json::from_slice(json)
            .map_err(|error| MetadataError::Document(format!("not one JSON object: {error}")))?;
        let Value::Object(fields) = value else {
            return Err(MetadataError::Document(
                "not one JSON object: the top level is something else".to_owned(),
            ));
        };
        let metadata = Self {
            id: required_text(&fields, "id")?,
            name: required_text(&fields, "name")?,
            version: required_text(&fields, "version")?,
            author: optional_text(&fields, "author")?.map(str::to_owned),
            icon: required_text(&fields, "icon")?,
            route: required_text(&fields, "route")?,
            protocol: protocol(&fields)?,
            framing: match optional_text(&fields, "framing")? {
                None | Some("length") => Framing::Length,
                Some("lines") => Framing::Lines,
                Some(other) => {
                    return Err(refused(
                        "framing",
                        format!("must be \"length\" or \"lines\", not {other:?}"),
                    ));
                }
            },
            max_in_flight: match optional_count(&fields, "max_in_flight")? {
                None => MAX_IN_FLIGHT_DEFAULT,
                // More than can ever be is no limit; it needs no refusal.
                Some(count) => u32::try_from(count).unwrap_or(u32::MAX),
            },
            timeout_ms: optional_count(&fields, "timeout_ms")?,
        };
        metadata.check()?;
        Ok(metadata)
    }

    /// Checks the rules, for metadata that was built and not parsed.
    pub fn check(&self) -> Result<(), MetadataError> {
        check_id(&self.id)?;
        for (field, text) in
            [("name", Some(&self.name)), ("version", Some(&self.version)), ("author", self.author.as_ref())]
        {
            let chars = text.map_or(0, |text| text.chars().count());
            if chars > TEXT_CHARS_MAX {
                return Err(refused(field, format!("has {chars} characters, the limit is {TEXT_CHARS_MAX}")));
            }
        }
        if self.icon.len() > ICON_BYTES_MAX {
            return Err(refused(
                "icon",
                format!("has {} bytes, the limit is {ICON_BYTES_MAX}", self.icon.len()),
            ));
        }
        check_route(&self.route)?;
        if self.max_in_flight == 0 {
            return Err(refused("max_in_flight", "must be at least 1"));
        }
        if self.timeout_ms == Some(0) {
            return Err(refused("timeout_ms", "must be at least 1"));
        }
        Ok(())
    }

    /// The object that `--metadata` prints, on one line, without a line end.
    pub fn to_json(&self) -> String {
        let mut out = Vec::with_capacity(256);
        let text = |out: &mut Vec<u8>, key: &str, value: &str| {
            out.push(if out.is_empty() { b'{' } else { b',' });
            write_string(out, key);
            out.push(b':');
            write_string(out, value);
        };
        text(&mut out, "id", &self.id);
        text(&mut out, "name", &self.name);
        text(&mut out, "version", &self.version);
        if let Some(author) = &self.author {
            text(&mut out, "author", author);
        }
        text(&mut out, "icon", &self.icon);
        text(&mut out, "route", &self.route);
        text(&mut out, "protocol", self.protocol.as_str());
        if self.framing == Framing::Lines {
            text(&mut out, "framing", "lines");
        }
        if self.max_in_flight != MAX_IN_FLIGHT_DEFAULT {
            out.extend_from_slice(b",\"max_in_flight\":");
            write_u64(&mut out, u64::from(self.max_in_flight));
        }
        if let Some(timeout_ms) = self.timeout_ms {
            out.extend_from_slice(b",\"timeout_ms\":");
            write_u64(&mut out, timeout_ms);
        }
        out.push(b'}');
        String::from_utf8(out).expect("strings and digits are UTF-8")
    }
}

fn refused(field: &'static str, reason: impl Into<String>) -> MetadataError {
    MetadataError::Field { field, reason: reason.into() }
}

fn required_text(fields: &Map<String, Value>, field: &'static str) -> Result<String, MetadataError> {
    match fields.get(field) {
        None => Err(refused(field, "is missing")),
        Some(Value::String(text)) => Ok(text.clone()),
        Some(_) => Err(refused(field, "must be a string")),
    }
}

fn optional_text<'m>(
    fields: &'m Map<String, Value>,
    field: &'static str,
) -> Result<Option<&'m str>, MetadataError> {
    match fields.get(field) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(refused(field, "must be a string")),
    }
}

fn optional_count(fields: &Map<String, Value>, field: &'static str) -> Result<Option<u64>, MetadataError> {
    match fields.get(field) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => match value.as_u64() {
            Some(count) if count > 0 => Ok(Some(count)),
            _ => Err(refused(field, "must be an integer of at least 1")),
        },
    }
}

fn protocol(fields: &Map<String, Value>) -> Result<Protocol, MetadataError> {
    let Some(version) = optional_text(fields, "protocol")? else {
        return Ok(Protocol::V1_0);
    };
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    match version.split_once('.') {
        Some(("1", "0")) => Ok(Protocol::V1_0),
        Some(("1", minor)) if is_number(minor) && !minor.starts_with('0') => Ok(Protocol::V1_1),
        Some((major, minor)) if major != "1" && is_number(major) && is_number(minor) => {
            Err(refused("protocol", format!("version {version} is not supported, this is 1.1")))
        }
        _ => Err(refused("protocol", format!("must look like \"1.1\", not {version:?}"))),
    }
}

/// Whether a plugin may have this id.
///
/// Errors: the rule that it breaks.
pub fn check_id(id: &str) -> Result<(), MetadataError> {
    let refuse = |reason: &str| Err(refused("id", reason));
    if id.is_empty() || id.len() > ID_BYTES_MAX {
        return refuse("must have 1 to 64 characters");
    }
    if !id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-') {
        return refuse("may only have letters, digits and `-`");
    }
    if id.starts_with('-') {
        return refuse("must start with a letter or digit");
    }
    if id == "route" {
        return refuse("`route` is taken by `/api/plugins/route/`");
    }
    Ok(())
}

fn check_route(route: &str) -> Result<(), MetadataError> {
    let refuse = |reason: &str| Err(refused("route", reason));
    let Some(segment) = route.strip_prefix('/') else {
        return refuse("must start with `/`");
    };
    if route.contains("//") {
        return refuse("must not have `//`");
    }
    if route.contains("..") {
        return refuse("must not have `..`");
    }
    if route.contains(['?', '#']) {
        return refuse("must not have a query or fragment");
    }
    if segment.is_empty() || segment.contains('/') {
        return refuse("must be one path segment");
    }
    // A route is compared with what a client sent; these cannot be sent, or only in several spellings.
    if segment.contains(|c: char| c.is_control() || c.is_whitespace() || c == '%' || c == '\\') {
        return refuse("must not have white space, control characters, `%` or `\\`");
    }
    if segment == "." {
        return refuse("must not be `/.`");
    }
    Ok(())
}

/// Whatever is accepted keeps the rules and says itself again.
#[doc(hidden)]
pub fn fuzz_metadata(data: &[u8]) {
    if let Ok(metadata) = Metadata::parse(data) {
        let again = Metadata::parse(metadata.to_json().as_bytes());
        assert_eq!(again.as_ref(), Ok(&metadata));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_built_reads_back() {
        let metadata = Metadata::new("a-1", "A \"quoted\"", "0.1.0")
            .author("someone")
            .icon("🦀")
            .route("/a")
            .max_in_flight(7)
            .timeout_ms(1500);
        assert_eq!(Metadata::parse(metadata.to_json().as_bytes()), Ok(metadata));
        let plain = Metadata::new("a", "", "");
        assert_eq!(Metadata::parse(plain.to_json().as_bytes()), Ok(plain));
    }

    #[test]
    fn defaults_are_those_of_an_old_plugin() {
        let json = br#"{"id":"a","name":"A","version":"1","author":null,"icon":"x","route":"/a","more":[]}"#;
        let metadata = Metadata::parse(json).expect("valid");
        assert_eq!(metadata.protocol, Protocol::V1_0);
        assert_eq!(metadata.framing, Framing::Length);
        assert_eq!(metadata.max_in_flight, 1024);
        assert_eq!((metadata.author, metadata.timeout_ms), (None, None));
    }

    #[test]
    fn each_rule_names_its_field() {
        let check = |field: &str, value: &str, expect: Option<&str>| {
            let mut fields: Map<String, Value> =
                serde_json::from_str(&Metadata::new("a", "A", "1").to_json()).expect("ours");
            match serde_json::from_str(value) {
                Ok(value) => fields.insert(field.to_owned(), value),
                Err(_) => fields.remove(field),
            };
            let json = serde_json::to_vec(&fields).expect("a map");
            let got = Metadata::parse(&json).err().map(|error| error.to_string());
            let expect = expect.map(|reason| format!("field `{field}`: {reason}"));
            assert_eq!(got, expect, "{field} = {value}");
        };
        let long = |count| format!("\"{}\"", "é".repeat(count));
        let id64 = format!("\"{}\"", "a".repeat(64));
        let id65 = format!("\"{}\"", "a".repeat(65));
        check("id", "", Some("is missing"));
        check("id", "7", Some("must be a string"));
        check("id", "\"\"", Some("must have 1 to 64 characters"));
        check("id", &id64, None);
        check("id", &id65, Some("must have 1 to 64 characters"));
        check("id", "\"a.b\"", Some("may only have letters, digits and `-`"));
        check("id", "\"-a\"", Some("must start with a letter or digit"));
        check("id", "\"route\"", Some("`route` is taken by `/api/plugins/route/`"));
        check("name", &long(100), None);
        check("name", &long(101), Some("has 101 characters, the limit is 100"));
        check("icon", &long(50), None);
        check("icon", &long(51), Some("has 102 bytes, the limit is 100"));
        check("author", "[]", Some("must be a string"));
        check("route", "\"a\"", Some("must start with `/`"));
        check("route", "\"/\"", Some("must be one path segment"));
        check("route", "\"/a/b\"", Some("must be one path segment"));
        check("route", "\"//a\"", Some("must not have `//`"));
        check("route", "\"/..\"", Some("must not have `..`"));
        check("route", "\"/a?b\"", Some("must not have a query or fragment"));
        check("protocol", "\"1.0\"", None);
        check("protocol", "\"1.17\"", None);
        check("protocol", "\"2.0\"", Some("version 2.0 is not supported, this is 1.1"));
        check("protocol", "\"1\"", Some("must look like \"1.1\", not \"1\""));
        check("framing", "\"lines\"", None);
        check("framing", "\"x\"", Some("must be \"length\" or \"lines\", not \"x\""));
        check("max_in_flight", "0", Some("must be an integer of at least 1"));
        check("max_in_flight", "99999999999", None);
        check("timeout_ms", "-1", Some("must be an integer of at least 1"));
        check("timeout_ms", "null", None);
    }

    #[test]
    fn no_object_no_metadata() {
        for json in ["", "[]", "{} {}", "null", "{\"id\":", "\u{feff}{}"] {
            let error = Metadata::parse(json.as_bytes()).expect_err(json).to_string();
            assert!(error.starts_with("not one JSON object: "), "{error}");
        }
    }

    #[test]
    fn fuzz_bounded() {
        crate::json::tests::for_random_bytes(2_000, fuzz_metadata);
        let valid = Metadata::new("a", "A", "1").to_json().into_bytes();
        crate::json::tests::for_random_bytes(5_000, |bytes| {
            let mut mutated = valid.clone();
            for pair in bytes.chunks_exact(2).take(3) {
                let at = usize::from(pair[0]) % mutated.len();
                mutated[at] = pair[1];
            }
            fuzz_metadata(&mutated);
        });
    }
}
