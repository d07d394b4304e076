//! By which names browsers may reach this server, and which pages may ask it. Pure.
//!
//! A page of a stranger can have its own name resolve to this machine and then ask it as if it were its own server (DNS
//! rebinding). The browser tells by `host` which name it has in mind, so a name that is not this server's is refused:
//! addresses cannot be rebound, and other names are listed in `server.hosts`. `origin` tells which page asks.

use std::net::{IpAddr, Ipv6Addr};

use toru_http::RequestHead;

use crate::answer::Failure;

/// `server.hosts` and `server.origins`, in lower case.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Site {
    /// Names without a port, such as `panel.example.org`.
    pub hosts: Vec<String>,
    /// Origins as browsers write them, such as `https://panel.example.org`.
    pub origins: Vec<String>,
}

impl Site {
    /// For what only the management may ask.
    ///
    /// Errors: 403, with the key that would allow it.
    pub fn admits_management(&self, head: &RequestHead<'_>) -> Result<(), Failure> {
        self.check_host(head)?;
        for origin in head.fields.get_all("origin") {
            let origin = String::from_utf8_lossy(origin).to_ascii_lowercase();
            if !self.origins.contains(&origin) && !head.host.is_some_and(|host| is_origin_of(&origin, host)) {
                return Err(Failure::Forbidden(format!(
                    "pages of {origin:?} may not manage this server; `server.origins` lists those that may"
                )));
            }
        }
        Ok(())
    }

    /// For plugins and files: any name will do while none is listed, since a proxy in front passes its own on.
    ///
    /// Errors: 403.
    pub fn admits(&self, head: &RequestHead<'_>) -> Result<(), Failure> {
        if self.hosts.is_empty() { Ok(()) } else { self.check_host(head) }
    }

    fn check_host(&self, head: &RequestHead<'_>) -> Result<(), Failure> {
        // Only HTTP/1.0 can leave it out, which no browser speaks.
        let Some(host) = head.host else { return Ok(()) };
        let name = split_port(host).0.to_ascii_lowercase();
        let own = is_address(&name)
            || name == "localhost"
            || name.ends_with(".localhost")
            || self.hosts.contains(&name);
        if own {
            return Ok(());
        }
        Err(Failure::Forbidden(format!(
            "{name:?} is no name of this server; `server.hosts` lists the names that are"
        )))
    }
}

/// Host and port; the port is empty where there is none. Brackets stay with an IPv6 address.
fn split_port(authority: &str) -> (&str, &str) {
    match authority.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, port),
        _ => (authority, ""),
    }
}

fn is_address(name: &str) -> bool {
    match name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        Some(inner) => inner.parse::<Ipv6Addr>().is_ok(),
        None => name.parse::<IpAddr>().is_ok(),
    }
}

/// Whether a page of this origin came from `host`. What ends TLS in front of this server makes it `https`.
fn is_origin_of(origin: &str, host: &str) -> bool {
    let Some((scheme, authority)) = origin.split_once("://") else { return false };
    let default = match scheme {
        "http" => "80",
        "https" => "443",
        _ => return false,
    };
    let with_port = |authority: &str| {
        let (name, port) = split_port(authority);
        (name.to_ascii_lowercase(), if port.is_empty() { default.to_owned() } else { port.to_owned() })
    };
    with_port(authority) == with_port(host)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use toru_http::{Connection, Event, Limits};

    fn site() -> Site {
        Site { hosts: vec!["panel.example.org".into()], origins: vec!["https://other.example.org".into()] }
    }

    fn ask(fields: &str, judge: impl FnOnce(&RequestHead<'_>) -> Result<(), Failure>) -> bool {
        let mut connection = Connection::new(Arc::new(Limits::default()));
        connection.handle_input(format!("GET / HTTP/1.1\r\n{fields}\r\n").as_bytes());
        match connection.poll_event() {
            Event::Head(head) => judge(&head).is_ok(),
            other => panic!("{fields:?}: {other:?}"),
        }
    }

    #[test]
    fn addresses_and_listed_names_are_this_server() {
        for (host, expect) in [
            ("127.0.0.1", true),
            ("127.0.0.1:3000", true),
            ("[::1]:3000", true),
            ("[::1]", true),
            ("192.0.2.7:80", true),
            ("localhost:3000", true),
            ("LocalHost", true),
            ("toru.localhost", true),
            ("panel.example.org", true),
            ("PANEL.example.org:8443", true),
            ("evil.example", false),
            ("localhost.evil.example", false),
            ("127.0.0.1.evil.example", false),
            ("evillocalhost", false),
            ("sub.panel.example.org", false),
            ("127.1", false),
            ("2130706433", false),
        ] {
            let fields = format!("host: {host}\r\n");
            assert_eq!(ask(&fields, |head| site().admits_management(head)), expect, "{host}");
            assert_eq!(ask(&fields, |head| site().admits(head)), expect, "{host}");
            assert!(ask(&fields, |head| Site::default().admits(head)), "none is listed");
        }
    }

    #[test]
    fn pages_of_this_server_and_listed_ones_may_manage_it() {
        for (host, origin, expect) in [
            ("127.0.0.1:3000", "http://127.0.0.1:3000", true),
            ("127.0.0.1:3000", "HTTP://127.0.0.1:3000", true),
            ("127.0.0.1", "http://127.0.0.1:80", true),
            ("panel.example.org", "https://panel.example.org", true),
            ("panel.example.org", "https://other.example.org", true),
            ("127.0.0.1:3000", "http://127.0.0.1:3001", false),
            ("127.0.0.1:3000", "http://localhost:3000", false),
            ("127.0.0.1:3000", "http://evil.example", false),
            ("127.0.0.1:3000", "http://127.0.0.1:3000.evil.example", false),
            ("127.0.0.1:3000", "file://127.0.0.1:3000", false),
            ("127.0.0.1:3000", "null", false),
            ("127.0.0.1:3000", "", false),
        ] {
            let fields = format!("host: {host}\r\norigin: {origin}\r\n");
            assert_eq!(ask(&fields, |head| site().admits_management(head)), expect, "{origin} at {host}");
            // What a plugin lets pages do is its own business.
            assert!(ask(&fields, |head| site().admits(head)));
        }
        // A second `origin` never gets here: the head is refused.
        let two = "GET / HTTP/1.1\r\nhost: 127.0.0.1\r\norigin: http://127.0.0.1\r\norigin: http://evil.example\r\n\r\n";
        let mut connection = Connection::new(Arc::new(Limits::default()));
        connection.handle_input(two.as_bytes());
        assert!(matches!(connection.poll_event(), Event::Failed(error) if error.status() == 400));
    }
}
