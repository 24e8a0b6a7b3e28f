//! The reference device: against the real server over a real socket, and against a change feed.
#![allow(clippy::unwrap_used, clippy::panic)]

mod cursor;
mod feed;
mod manifest;
mod real;
mod support;
