//! Paths: what is resolved, what is left alone, what is refused.

use std::borrow::Cow;
use std::sync::Arc;

use toru_http::{
    Connection, Event, Limits, PathError, TargetForm, normalize_path, percent_decode, split_target,
};

#[test]
fn paths() {
    for (path, expect) in [
        ("/", Ok("/")),
        ("/a", Ok("/a")),
        ("/a/", Ok("/a/")),
        ("/a/b.c/d", Ok("/a/b.c/d")),
        ("/a//b", Ok("/a//b")),
        ("//a", Ok("//a")),
        ("/.", Ok("/")),
        ("/./", Ok("/")),
        ("/a/.", Ok("/a/")),
        ("/a/./b", Ok("/a/b")),
        ("/a/..", Ok("/")),
        ("/a/../", Ok("/")),
        ("/a/../b", Ok("/b")),
        ("/a/b/../..", Ok("/")),
        ("/a/b/../../c", Ok("/c")),
        ("/a/b/..", Ok("/a/")),
        ("/a//..", Ok("/a/")),
        ("/a//../b", Ok("/a/b")),
        ("/a/%2e", Ok("/a/")),
        ("/a/%2E%2e/b", Ok("/b")),
        ("/a/.%2e/b", Ok("/b")),
        ("/a/%2e./b", Ok("/b")),
        // Three dots, dots beside other characters, and doubly encoded ones are names.
        ("/...", Ok("/...")),
        ("/a/..b", Ok("/a/..b")),
        ("/a/.b", Ok("/a/.b")),
        ("/a/b..", Ok("/a/b..")),
        ("/a/..;x/b", Ok("/a/..;x/b")),
        ("/%252e%252e", Ok("/%252e%252e")),
        // Only the plugin knows what its escapes mean.
        ("/a%2fb", Ok("/a%2fb")),
        ("/a/..%2f..%2fb", Ok("/a/..%2f..%2fb")),
        ("/%5c..%5c", Ok("/%5c..%5c")),
        ("/%C3%A9%20", Ok("/%C3%A9%20")),
        ("/a/../%2f", Ok("/%2f")),
        ("/é", Ok("/é")),
        ("/..", Err(PathError::AboveRoot)),
        ("/../", Err(PathError::AboveRoot)),
        ("/../a", Err(PathError::AboveRoot)),
        ("/./..", Err(PathError::AboveRoot)),
        ("/a/../..", Err(PathError::AboveRoot)),
        ("/a/../../a", Err(PathError::AboveRoot)),
        ("/%2e%2e/etc/passwd", Err(PathError::AboveRoot)),
        ("/a/%2e%2e/%2E./b", Err(PathError::AboveRoot)),
        ("", Err(PathError::NotAbsolute)),
        ("a", Err(PathError::NotAbsolute)),
        ("*", Err(PathError::NotAbsolute)),
        ("../a", Err(PathError::NotAbsolute)),
        ("/%", Err(PathError::BadEscape)),
        ("/%2", Err(PathError::BadEscape)),
        ("/%zz", Err(PathError::BadEscape)),
        ("/%2g", Err(PathError::BadEscape)),
        ("/%%41", Err(PathError::BadEscape)),
        ("/%é", Err(PathError::BadEscape)),
        ("/a/%2/..", Err(PathError::BadEscape)),
        ("/%00", Err(PathError::Nul)),
        ("/a%00.txt", Err(PathError::Nul)),
        ("/\0", Err(PathError::Nul)),
        ("/.\0", Err(PathError::Nul)),
    ] {
        assert_eq!(normalize_path(path).as_deref(), expect.as_ref().copied(), "{path:?}");
    }
    for path in ["/", "/a/b.c", "/%41", "/a//b/..c"] {
        assert!(matches!(normalize_path(path), Ok(Cow::Borrowed(_))), "{path:?} needs no copy");
    }
}

#[test]
fn decoding() {
    for (text, expect) in [
        ("", Ok(&b""[..])),
        ("a+b", Ok(b"a+b")),
        ("%41%2f%ff", Ok(b"A/\xff")),
        ("a%20b%00", Ok(b"a b\0")),
        ("%2525", Ok(b"%25")),
        ("%", Err(PathError::BadEscape)),
        ("a%4", Err(PathError::BadEscape)),
        ("%+1", Err(PathError::BadEscape)),
    ] {
        assert_eq!(percent_decode(text).as_deref(), expect.as_ref().copied(), "{text:?}");
    }
}

#[test]
fn splitting() {
    assert_eq!(split_target("/a"), ("/a", None));
    assert_eq!(split_target("/a?"), ("/a", Some("")));
    assert_eq!(split_target("/a?b?c=/d"), ("/a", Some("b?c=/d")));
    assert_eq!(split_target("?"), ("", Some("")));
}

#[test]
fn forms() {
    for (method, raw, form, path, query) in [
        ("GET", "/a?b", TargetForm::Origin, "/a", Some("b")),
        ("GET", "/", TargetForm::Origin, "/", None),
        ("GET", "/http://b/c?d", TargetForm::Origin, "/http://b/c", Some("d")),
        ("GET", "http://h/a?b", TargetForm::Absolute, "/a", Some("b")),
        ("GET", "http://h", TargetForm::Absolute, "/", None),
        ("GET", "http://h?b/c", TargetForm::Absolute, "/", Some("b/c")),
        ("GET", "http://h/http://g/", TargetForm::Absolute, "/http://g/", None),
        ("OPTIONS", "*", TargetForm::Asterisk, "*", None),
        ("OPTIONS", "http://h", TargetForm::Asterisk, "*", None),
        ("OPTIONS", "http://h/", TargetForm::Absolute, "/", None),
        ("OPTIONS", "http://h?", TargetForm::Absolute, "/", Some("")),
        ("CONNECT", "h:1", TargetForm::Authority, "", None),
    ] {
        let mut connection = Connection::new(Arc::new(Limits::default()));
        connection.handle_input(format!("{method} {raw} HTTP/1.1\r\nhost: h\r\n\r\n").as_bytes());
        let Event::Head(head) = connection.poll_event() else { panic!("{raw}") };
        let target = head.target;
        assert_eq!((target.raw, target.form, target.path(), target.query()), (raw, form, path, query));
    }
}
