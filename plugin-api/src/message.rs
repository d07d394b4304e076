//! How reading a message fails, on either side.

use thiserror::Error;

/// A frame that holds no message: the peer broke the protocol, close the connection.
///
/// What is wrong with a response or a kv request inside a sound message is no error of this kind;
/// see [`crate::from_plugin`].
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum MessageError {
    #[error("not UTF-8")]
    BadUtf8,
    #[error("not JSON: {reason}")]
    BadJson { reason: String },
    #[error("nested deeper than {depth_max} levels")]
    TooDeep { depth_max: usize },
    #[error("the top level is not an object")]
    NotAnObject,
    #[error("`type` is missing or not a string")]
    NoType,
    #[error("`request_id` is missing or not a string")]
    NoRequestId,
    #[error("field `{field}` {reason}")]
    BadField { field: &'static str, reason: &'static str },
}
