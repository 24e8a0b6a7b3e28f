//! The bodies of the protocol: JSON read directly into typed rows, and written directly from them.

mod fields;
mod manifest;
mod read;
mod row;
mod unreadable;
mod write;

pub use fields::Fields;
pub use manifest::Manifest;
pub use read::{read_batch, read_batch_within};
pub(super) use write::rejection_body;
pub use write::{ChangeLine, ChangesBody, ConflictBody, DigestsBody, EndLine, ReportBody, RestoredBody};
