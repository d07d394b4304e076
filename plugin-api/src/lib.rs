//! Every byte that Toru's core and a plugin exchange, and the Rust SDK for plugin authors.
//!
//! | module | what | feature |
//! | --- | --- | --- |
//! | [`frame`] | length-prefixed and line frames, sans-io | |
//! | [`json`], [`time`] | writing JSON and timestamps without intermediate values | |
//! | [`message`] | how reading a message fails | |
//! | [`metadata`] | what `PLUGIN --metadata` prints | |
//! | [`from_core`] | what the core says: encoders, and the SDK's decoder | |
//! | [`from_plugin`] | what a plugin says: encoders, and the core's decoder | decoder: `core` |
//! | [`status`] | what the daemon says of itself to console and shell | |
//! | `places` | where daemon, shell and console look for each other | |
//! | `sdk` | the trait `ToruPlugin` and `run`, with whole plugins as examples | `sdk` (default) |
//! | `tower` | any `tower::Service`, such as an axum `Router`, as a plugin | `tower` |
//!
//! Only `sdk` does I/O, reads a clock or knows tokio; everything else is functions over bytes.
//! What a plugin's author reads or may have to match is `#[non_exhaustive]` wherever the protocol may grow. What the core
//! alone fills in or matches is not, so that the compiler names each place that a new version concerns.
//! The wire itself is described in `PROTOCOL.md` beside this crate's manifest.

#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod frame;
pub mod from_core;
pub mod from_plugin;
pub mod json;
pub mod message;
pub mod metadata;
#[doc(hidden)]
pub mod places;
pub mod status;
pub mod time;

mod cursor;
mod headers;

#[cfg(feature = "sdk")]
pub mod sdk;

#[cfg(feature = "sdk")]
pub use async_trait::async_trait;
#[cfg(feature = "sdk")]
pub use metadata::Metadata as PluginMetadata;
#[cfg(feature = "tower")]
pub use sdk::tower;
#[cfg(feature = "sdk")]
pub use sdk::{
    HttpRequest, HttpResponse, Kv, KvError, KvRequest, KvResponse, Options, PluginContext, PluginError,
    PluginResult, ToruPlugin, run, run_with,
};
