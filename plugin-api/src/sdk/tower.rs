//! Any `tower::Service` as a plugin: an axum `Router`, or whatever else takes `http::Request`.
//!
//! ```no_run
//! use axum::{Router, routing::get};
//! use toru_plugin_api::{PluginMetadata, tower};
//!
//! fn main() -> std::process::ExitCode {
//!     let app = Router::new().route("/", get(|| async { "hello" }));
//!     tower::run(PluginMetadata::new("hello-axum", "Hello", "1.0.0"), app)
//! }
//! ```
//!
//! A request's extensions hold the [`PluginContext`], and the client's `SocketAddr` where the core said it:
//! in axum `Extension(ctx): Extension<PluginContext>`.
//! An answer is sent whole, when its body has ended.

use std::error::Error;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::Pin;
use std::process::ExitCode;
use std::sync::{Mutex, OnceLock, PoisonError};

use async_trait::async_trait;
use bytes::{Buf, Bytes};
use http::{HeaderName, HeaderValue, Method, Request, Response, Uri};
use http_body_util::{BodyExt, Full};
use tower_service::Service;

use super::{
    HttpRequest, HttpResponse, Options, PluginContext, PluginError, PluginResult, ToruPlugin, run_with,
};
use crate::metadata::Metadata;

/// The content of a request: all of it is there.
pub type Content = Full<Bytes>;

type Made<S> = Pin<Box<dyn Future<Output = PluginResult<S>> + Send>>;
type Make<S> = Box<dyn FnOnce(PluginContext) -> Made<S> + Send>;

/// A [`ToruPlugin`] around a service, for [`run`](super::run); [`run`] and [`run_with_init`] make one by themselves.
///
/// Every request gets a clone of the service, as with other servers.
pub struct ServicePlugin<S> {
    metadata: Metadata,
    service: OnceLock<S>,
    make: Mutex<Option<Make<S>>>,
}

impl<S> ServicePlugin<S> {
    /// A plugin that answers with `service`.
    pub fn new(metadata: Metadata, service: S) -> Self {
        Self { metadata, service: OnceLock::from(service), make: Mutex::new(None) }
    }

    /// A plugin whose service is made in `init`: with the plugin's context, and with tokio running.
    ///
    /// Errors of `make` tell the core `failed`; it is called once.
    pub fn with_init<F>(metadata: Metadata, make: impl FnOnce(PluginContext) -> F + Send + 'static) -> Self
    where
        F: Future<Output = PluginResult<S>> + Send + 'static,
    {
        let make: Make<S> = Box::new(|ctx| Box::pin(make(ctx)));
        Self { metadata, service: OnceLock::new(), make: Mutex::new(Some(make)) }
    }
}

/// Runs `service` as a plugin: the whole of `main`. As [`run`](super::run).
pub fn run<S, B>(metadata: Metadata, service: S) -> ExitCode
where
    S: Service<Request<Content>, Response = Response<B>> + Clone + Send + Sync + 'static,
    S::Error: Into<Box<dyn Error + Send + Sync>>,
    S::Future: Send,
    B: BodyExt + Send + 'static,
    B::Data: Buf + Send,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    run_with(ServicePlugin::new(metadata, service), Options::default())
}

/// [`run`] with a service that is made in `init`, see [`ServicePlugin::with_init`], and with [`Options`].
pub fn run_with_init<S, B, F>(
    metadata: Metadata,
    options: Options,
    make: impl FnOnce(PluginContext) -> F + Send + 'static,
) -> ExitCode
where
    S: Service<Request<Content>, Response = Response<B>> + Clone + Send + Sync + 'static,
    S::Error: Into<Box<dyn Error + Send + Sync>>,
    S::Future: Send,
    B: BodyExt + Send + 'static,
    B::Data: Buf + Send,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
    F: Future<Output = PluginResult<S>> + Send + 'static,
{
    run_with(ServicePlugin::with_init(metadata, make), options)
}

#[async_trait]
impl<S, B> ToruPlugin for ServicePlugin<S>
where
    S: Service<Request<Content>, Response = Response<B>> + Clone + Send + Sync + 'static,
    S::Error: Into<Box<dyn Error + Send + Sync>>,
    S::Future: Send,
    B: BodyExt + Send + 'static,
    B::Data: Buf + Send,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    fn metadata(&self) -> Metadata {
        self.metadata.clone()
    }

    async fn init(&self, ctx: &PluginContext) -> PluginResult<()> {
        let make = self.make.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(make) = make {
            let service = make(ctx.clone()).await?;
            // `init` is not called twice at the same time.
            let _ = self.service.set(service);
        }
        Ok(())
    }

    async fn handle_http(&self, request: HttpRequest, ctx: &PluginContext) -> PluginResult<HttpResponse> {
        let Some(service) = self.service.get() else {
            return Err(PluginError::status(503, "the plugin has not started"));
        };
        let mut service = service.clone();
        let request = to_http(request, ctx)?;
        poll_fn(|context| service.poll_ready(context)).await.map_err(internal)?;
        let (head, body) = service.call(request).await.map_err(internal)?.into_parts();
        let body = body.collect().await.map_err(internal)?.to_bytes();
        let mut response = HttpResponse::status(head.status.as_u16());
        response.headers =
            head.headers.iter().map(|(name, value)| (name.to_string().into(), text(value).into())).collect();
        response.body = body.into();
        Ok(response)
    }
}

/// Errors: a 400, the request cannot be one in the types of `http`.
fn to_http(request: HttpRequest, ctx: &PluginContext) -> PluginResult<Request<Content>> {
    let bad = |what: &str| PluginError::status(400, format!("{what} is not usable"));
    let target = match request.query.as_str() {
        "" => request.path,
        query => format!("{}?{query}", request.path),
    };
    let mut made = Request::new(Full::new(Bytes::from(request.body)));
    *made.method_mut() = Method::from_bytes(request.method.as_bytes()).map_err(|_| bad("the method"))?;
    *made.uri_mut() = Uri::try_from(target).map_err(|_| bad("the target"))?;
    for (name, value) in request.headers.iter() {
        let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| bad("a header's name"))?;
        let value = HeaderValue::from_bytes(value.as_bytes()).map_err(|_| bad("a header's value"))?;
        made.headers_mut().append(name, value);
    }
    if let Some(address) = request.remote_addr.and_then(|address| address.parse::<SocketAddr>().ok()) {
        made.extensions_mut().insert(address);
    }
    made.extensions_mut().insert(ctx.clone());
    Ok(made)
}

/// A value that is not UTF-8 is read as Latin-1, as the core reads a request's.
fn text(value: &HeaderValue) -> String {
    match std::str::from_utf8(value.as_bytes()) {
        Ok(text) => text.to_owned(),
        Err(_) => value.as_bytes().iter().copied().map(char::from).collect(),
    }
}

fn internal(error: impl Into<Box<dyn Error + Send + Sync>>) -> PluginError {
    let error = error.into();
    let mut words = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        words.push_str(": ");
        words.push_str(&cause.to_string());
        source = cause.source();
    }
    PluginError::internal(words)
}
