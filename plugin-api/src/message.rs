//! How reading a message fails, on either side.

use thiserror::Error;

/// A frame that holds no message: the peer broke the protocol, close the connection.
///
/// What is wrong with a response or a kv request inside a sound message is no error of this kind;
/// see [`crate::from_plugin`].
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum MessageError {
    /// The bytes are no UTF-8.
    #[error("not UTF-8")]
    BadUtf8,
    /// The text is not exactly one JSON value.
    #[error("not JSON: {reason}")]
    BadJson {
        /// What the parser says, with the place.
        reason: String,
    },
    /// Objects and arrays within each other beyond what is read.
    #[error("nested deeper than {depth_max} levels")]
    TooDeep {
        /// The limit, in levels.
        depth_max: usize,
    },
    /// A JSON value, but no object.
    #[error("the top level is not an object")]
    NotAnObject,
    /// An object that does not say which message it is.
    #[error("`type` is missing or not a string")]
    NoType,
    /// A message of a type that needs an id, without one at the top level or in `payload`.
    #[error("`request_id` is missing or not a string")]
    NoRequestId,
    /// A request of the core with a field that cannot be used.
    #[error("field `{field}` {reason}")]
    BadField {
        /// Its name.
        field: &'static str,
        /// Fits behind the name: `is not base64`.
        reason: &'static str,
    },
}
