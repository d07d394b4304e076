//! From a request target to who answers it. Pure.

use std::borrow::Cow;

use toru_http::{PathError, normalize_path, percent_decode};
use toru_supervisor::Order;

/// Who answers.
#[derive(Debug, PartialEq, Eq)]
pub enum Destination<'a> {
    /// The plugin with this id; `path` starts with `/` and carries no query.
    ById { id: Cow<'a, str>, path: Cow<'a, str> },
    /// The plugin whose metadata has this route, which starts with `/`.
    ByRoute { route: Cow<'a, str>, path: Cow<'a, str> },
    /// The bundle of the plugin with this id.
    Bundle { id: Cow<'a, str> },
    /// The core itself.
    Core(Endpoint<'a>),
    /// Nobody known here: a static file, or nothing.
    Elsewhere,
}

/// What the core answers itself.
#[derive(Debug, PartialEq, Eq)]
pub enum Endpoint<'a> {
    /// `OPTIONS *`: the server as a whole.
    Server,
    Health,
    Ready,
    /// What there is to ask, as an OpenAPI document.
    OpenApi,
    Plugins,
    Plugin(Cow<'a, str>),
    Order(Cow<'a, str>, Order),
    Kv(Cow<'a, str>),
    /// On the control socket alone: all values of a plugin, out or in.
    Values(Cow<'a, str>),
    Logs(Cow<'a, str>),
    /// On the control socket alone: the core's own log.
    CoreLogs,
    /// On the control socket alone: ten minutes of one plugin in samples of a second.
    History(Cow<'a, str>),
    /// On the control socket alone: a snapshot a line, as long as somebody reads.
    Stream,
    /// On the control socket alone: the audit trail.
    Events,
    /// On the control socket alone: files in the plugins folder that are no plugins, and why.
    Skipped,
    /// On the control socket alone: Prometheus text.
    Metrics,
}

impl Endpoint<'_> {
    /// The methods it takes, as the `Allow` field wants them.
    pub fn allow(&self) -> &'static str {
        match self {
            Endpoint::Health
            | Endpoint::Ready
            | Endpoint::OpenApi
            | Endpoint::Plugins
            | Endpoint::Plugin(_)
            | Endpoint::Logs(_)
            | Endpoint::CoreLogs
            | Endpoint::History(_)
            | Endpoint::Events
            | Endpoint::Stream
            | Endpoint::Skipped
            | Endpoint::Metrics => "GET, HEAD",
            Endpoint::Server => "OPTIONS",
            Endpoint::Values(_) => "GET, HEAD, POST",
            Endpoint::Order(..) | Endpoint::Kv(_) => "POST",
        }
    }

    pub fn takes(&self, method: &str) -> bool {
        self.allow().split(", ").any(|allowed| allowed == method)
    }

    /// Whether only the holder of the management token may ask. Probes of a load balancer have none.
    pub fn needs_token(&self) -> bool {
        !matches!(self, Endpoint::Server | Endpoint::Health | Endpoint::Ready | Endpoint::OpenApi)
    }
}

/// Whether a static file may be meant, where no path is the core's.
fn is_for_files(method: &str) -> bool {
    matches!(method, "GET" | "HEAD")
}

/// Finds the destination of `path`, the path part of a request target, as the client sent it.
///
/// `trusted` clients, those of the control socket, see what others do not.
/// Dot segments are resolved below the plugin and never climb out of it; all other encodings reach the plugin untouched.
/// Errors: the path climbs out, holds NUL, or has a bad percent-encoding: 400.
pub fn route<'a>(method: &str, path: &'a str, trusted: bool) -> Result<Destination<'a>, PathError> {
    match path {
        "/v1/stream" if trusted => return Ok(Destination::Core(Endpoint::Stream)),
        "/v1/logs" if trusted => return Ok(Destination::Core(Endpoint::CoreLogs)),
        "/v1/events" if trusted => return Ok(Destination::Core(Endpoint::Events)),
        "/v1/skipped" if trusted => return Ok(Destination::Core(Endpoint::Skipped)),
        "/metrics" if trusted => return Ok(Destination::Core(Endpoint::Metrics)),
        // In no other form is a path without a slash.
        "*" => return Ok(Destination::Core(Endpoint::Server)),
        "/v1/openapi.json" if trusted => return Ok(Destination::Core(Endpoint::OpenApi)),
        "/api/openapi.json" => return Ok(Destination::Core(Endpoint::OpenApi)),
        "/healthz" => return Ok(Destination::Core(Endpoint::Health)),
        "/readyz" => return Ok(Destination::Core(Endpoint::Ready)),
        "/api/plugins" | "/api/plugins/" => return Ok(Destination::Core(Endpoint::Plugins)),
        _ => {}
    }
    if let Some(rest) = path.strip_prefix("/v1/plugins/") {
        let (id, Some(verb)) = cut_segment(rest) else { return Ok(Destination::Elsewhere) };
        return Ok(match (verb, order(verb)) {
            ("/logs", _) if trusted => Destination::Core(Endpoint::Logs(decode(id)?)),
            ("/history", _) if trusted => Destination::Core(Endpoint::History(decode(id)?)),
            ("/kv", _) if trusted => Destination::Core(Endpoint::Values(decode(id)?)),
            (_, Some(order)) if trusted || !is_for_files(method) => {
                Destination::Core(Endpoint::Order(decode(id)?, order))
            }
            _ => Destination::Elsewhere,
        });
    }
    let Some(rest) = path.strip_prefix("/api/plugins/") else { return Ok(Destination::Elsewhere) };
    let (first, rest) = cut_segment(rest);
    if first == "route" {
        let Some(rest) = rest else { return Ok(Destination::Elsewhere) };
        let (segment, rest) = cut_segment(&rest[1..]);
        let route = Cow::Owned(format!("/{}", decode(segment)?));
        return Ok(Destination::ByRoute { route, path: normalize_path(rest.unwrap_or("/"))? });
    }
    let id = decode(first)?;
    let Some(rest) = rest else { return Ok(Destination::Core(Endpoint::Plugin(id))) };
    let path = normalize_path(rest)?;
    let endpoint = match &*path {
        "/enable" | "/disable" | "/restart" => match order(&path) {
            Some(order) => Endpoint::Order(id, order),
            None => return Ok(Destination::ById { id, path }),
        },
        "/kv" => Endpoint::Kv(id),
        "/logs" => Endpoint::Logs(id),
        "/bundle.js" => return Ok(Destination::Bundle { id }),
        _ => return Ok(Destination::ById { id, path }),
    };
    Ok(Destination::Core(endpoint))
}

/// The order that a path names.
fn order(path: &str) -> Option<Order> {
    match path {
        "/enable" => Some(Order::Enable),
        "/disable" => Some(Order::Disable),
        "/restart" => Some(Order::Restart),
        "/start" => Some(Order::Start),
        "/stop" => Some(Order::Stop),
        "/reset-failed" => Some(Order::ResetFailed),
        _ => None,
    }
}

/// The first segment, and what follows from its slash on.
fn cut_segment(path: &str) -> (&str, Option<&str>) {
    match path.bytes().position(|byte| byte == b'/') {
        Some(slash) => (&path[..slash], Some(&path[slash..])),
        None => (path, None),
    }
}

/// Ids and routes are decoded once; what is no UTF-8 then is nobody's name.
///
/// Errors: it holds NUL or has a bad percent-encoding.
fn decode(segment: &str) -> Result<Cow<'_, str>, PathError> {
    if !segment.contains('%') {
        return Ok(Cow::Borrowed(segment));
    }
    let decoded = percent_decode(segment)?;
    if decoded.contains(&0) {
        return Err(PathError::Nul);
    }
    Ok(Cow::Owned(String::from_utf8_lossy(&decoded).into_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn by_id<'a>(id: &'a str, path: &'a str) -> Option<Destination<'a>> {
        Some(Destination::ById { id: id.into(), path: path.into() })
    }

    #[test]
    fn paths_find_their_plugin() {
        let core = |endpoint| Some(Destination::Core(endpoint));
        let by_route = |route: &'static str, path: &'static str| {
            Some(Destination::ByRoute { route: route.into(), path: path.into() })
        };
        for (path, expect) in [
            ("/api/plugins/acme/", by_id("acme", "/")),
            ("/api/plugins/acme/certificates", by_id("acme", "/certificates")),
            ("/api/plugins/acme//x", by_id("acme", "//x")),
            ("/api/plugins/%61cme/x", by_id("acme", "/x")),
            ("/api/plugins/acme/a%2Fb/%2e/c", by_id("acme", "/a%2Fb/c")),
            ("/api/plugins/acme/a/../b", by_id("acme", "/b")),
            ("/api/plugins/acme/../other/x", None),
            ("/api/plugins/acme/%2e%2e/other", None),
            ("/api/plugins/acme/a%00b", None),
            ("/api/plugins/acme/%zz", None),
            ("/api/plugins/acme%00/x", None),
            ("/api/plugins/acme%00", None),
            ("/api/plugins/route/ui%00/x", None),
            ("/api/plugins/route/ui/x", by_route("/ui", "/x")),
            ("/api/plugins/route/ui", by_route("/ui", "/")),
            ("/api/plugins/route", Some(Destination::Elsewhere)),
            ("/api/plugins/route/ui/kv", by_route("/ui", "/kv")),
            ("/api/plugins/acme", core(Endpoint::Plugin("acme".into()))),
            ("/api/plugins/acme/kv", core(Endpoint::Kv("acme".into()))),
            ("/api/plugins/acme/restart", core(Endpoint::Order("acme".into(), Order::Restart))),
            ("/api/plugins/acme/restart/now", by_id("acme", "/restart/now")),
            ("/api/plugins", core(Endpoint::Plugins)),
            ("/healthz", core(Endpoint::Health)),
            ("*", core(Endpoint::Server)),
            ("/api/plugins/acme/logs", core(Endpoint::Logs("acme".into()))),
            ("/v1/plugins/acme/kv", Some(Destination::Elsewhere)),
            ("/api/plugins/acme/bundle.js", Some(Destination::Bundle { id: "acme".into() })),
            ("/api/plugins/acme/x/../bundle.js", Some(Destination::Bundle { id: "acme".into() })),
            ("/api/plugins/route/ui/bundle.js", by_route("/ui", "/bundle.js")),
            ("/v1/stream", Some(Destination::Elsewhere)),
            ("/v1/logs", Some(Destination::Elsewhere)),
            ("/metrics", Some(Destination::Elsewhere)),
            ("/", Some(Destination::Elsewhere)),
            ("/api/pluginsX", Some(Destination::Elsewhere)),
        ] {
            assert_eq!(route("GET", path, false).ok(), expect, "{path}");
        }
    }

    #[test]
    fn orders_that_plugins_have_no_words_for_are_no_files() {
        for (word, order) in
            [("start", Order::Start), ("stop", Order::Stop), ("reset-failed", Order::ResetFailed)]
        {
            // The plugin's own.
            let path = format!("/api/plugins/acme/{word}");
            assert_eq!(route("POST", &path, false).ok(), by_id("acme", &format!("/{word}")));
            let path = format!("/v1/plugins/acme/{word}");
            let expect = Destination::Core(Endpoint::Order("acme".into(), order));
            assert_eq!(route("POST", &path, false).ok(), Some(expect));
            for method in ["GET", "HEAD"] {
                assert_eq!(route(method, &path, false).ok(), Some(Destination::Elsewhere));
            }
        }
        for path in
            ["/v1/plugins/acme/logs", "/v1/plugins/acme/kv", "/v1/plugins/acme/dance", "/v1/plugins/acme"]
        {
            assert_eq!(route("POST", path, false).ok(), Some(Destination::Elsewhere), "{path}");
        }
    }

    #[test]
    fn the_control_socket_sees_more() {
        for (path, expect) in [
            ("/v1/stream", Destination::Core(Endpoint::Stream)),
            ("/v1/skipped", Destination::Core(Endpoint::Skipped)),
            ("/metrics", Destination::Core(Endpoint::Metrics)),
            ("/v1/events", Destination::Core(Endpoint::Events)),
            ("/v1/plugins/acme/logs", Destination::Core(Endpoint::Logs("acme".into()))),
            ("/v1/plugins/acme/history", Destination::Core(Endpoint::History("acme".into()))),
            ("/v1/logs", Destination::Core(Endpoint::CoreLogs)),
            ("/v1/plugins/acme/kv", Destination::Core(Endpoint::Values("acme".into()))),
            ("/v1/plugins/acme/restart", Destination::Core(Endpoint::Order("acme".into(), Order::Restart))),
            ("/v1/plugins/acme/dance", Destination::Elsewhere),
            ("/v1/plugins/acme", Destination::Elsewhere),
            ("/api/plugins", Destination::Core(Endpoint::Plugins)),
        ] {
            assert_eq!(route("GET", path, true).ok(), Some(expect), "{path}");
        }
    }

    /// Every endpoint's name; one that is missing here does not compile.
    fn name(endpoint: &Endpoint<'_>) -> &'static str {
        match endpoint {
            Endpoint::Server => "server",
            Endpoint::Health => "health",
            Endpoint::Ready => "ready",
            Endpoint::OpenApi => "openapi",
            Endpoint::Plugins => "plugins",
            Endpoint::Plugin(_) => "plugin",
            Endpoint::Order(_, order) => match order {
                Order::Enable => "enable",
                Order::Disable => "disable",
                Order::Restart => "restart",
                Order::Start => "start",
                Order::Stop => "stop",
                Order::ResetFailed => "reset-failed",
            },
            Endpoint::Kv(_) => "kv",
            Endpoint::Values(_) => "values",
            Endpoint::Logs(_) => "logs",
            Endpoint::CoreLogs => "core logs",
            Endpoint::History(_) => "history",
            Endpoint::Stream => "stream",
            Endpoint::Events => "events",
            Endpoint::Skipped => "skipped",
            Endpoint::Metrics => "metrics",
        }
    }

    #[test]
    fn the_document_has_every_route_and_invents_none() {
        let document: serde_json::Value =
            serde_json::from_str(crate::api::OPENAPI).expect("the document is JSON");
        assert_eq!(document["info"]["version"], env!("CARGO_PKG_VERSION"));
        let mut found = std::collections::BTreeSet::new();
        for (template, item) in document["paths"].as_object().expect("paths") {
            let path = template.replace("{id}", "acme").replace("{route}", "ui").replace("{rest}", "x/y");
            let control = !item["servers"].is_null();
            let method = item.as_object().expect("operations").keys().find_map(|key| match key.as_str() {
                "parameters" | "servers" => None,
                method => Some(method.to_uppercase()),
            });
            let method = method.expect("an operation");
            let destination = route(&method, &path, control).expect("a path");
            // Those that name the listener, too, are the same there.
            if control && item["servers"].as_array().expect("servers").len() == 1 {
                let public = route(&method, &path, false).expect("a path");
                assert_eq!(public, Destination::Elsewhere, "{template} is for the control socket alone");
            } else if control {
                assert_eq!(route(&method, &path, false).expect("a path"), destination, "{template}");
            }
            let methods: Vec<String> = item
                .as_object()
                .expect("operations")
                .keys()
                .filter(|key| !matches!(key.as_str(), "parameters" | "servers"))
                .map(|method| method.to_uppercase())
                .collect();
            match destination {
                Destination::Core(endpoint) => {
                    // HEAD goes with GET, and the document says so once.
                    let allow: Vec<&str> =
                        endpoint.allow().split(", ").filter(|method| *method != "HEAD").collect();
                    assert_eq!(methods, allow, "{template}");
                    let public = item["get"]["security"] == serde_json::json!([]);
                    assert!(control || public != endpoint.needs_token(), "{template} and its token");
                    found.insert(name(&endpoint));
                }
                Destination::Bundle { .. } => assert_eq!(methods, ["GET"]),
                Destination::ById { path, .. } | Destination::ByRoute { path, .. } => {
                    assert_eq!(path, "/x/y", "{template}");
                }
                Destination::Elsewhere => panic!("{template} leads nowhere"),
            }
        }
        let all = [
            "health",
            "ready",
            "openapi",
            "plugins",
            "plugin",
            "enable",
            "disable",
            "restart",
            "start",
            "stop",
            "reset-failed",
            "kv",
            "values",
            "logs",
            "core logs",
            "history",
            "stream",
            "events",
            "skipped",
            "metrics",
        ];
        // `OPTIONS *` has no path that a document could name.
        assert_eq!(found, all.into_iter().collect());
    }
}
