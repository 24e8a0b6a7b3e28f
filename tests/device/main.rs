//! The reference device, against the real server over a real socket.
#![allow(clippy::unwrap_used, clippy::panic)]

mod bad_values;
mod copies;
mod cursor;
mod manifest;
mod members;
mod real;
mod requests;
mod restore;
mod support;
mod values;
