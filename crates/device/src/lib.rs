//! A complete device: what an app does to keep its own copy and agree with the server.
//!
//! - [`decide`] is the protocol as a device lives it: pure rules, small enough to port to any language.
//!   `fixtures/device` has them as data.
//! - [`Store`] is the app's side: `put`, `delete`, `get`, `list` work offline and mark what waits.
//! - [`sync()`] is everything else: either way of syncing, lost answers, the lock, the proof at the end. It
//!   talks to a [`Remote`], which need not be a socket.
//!
//! ```no_run
//! use rollcall_clock::Clock;
//! use rollcall_device::{Http, Options, RetryPolicy, Store, sync};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let mut store = Store::open("phone.db".as_ref(), Clock::system())?;
//! let mut server = Http::new("https://sync.example.com");
//! let report = sync(&mut store, &mut server, &mut RetryPolicy::default(), Options::default(), &mut |_| {})?;
//! println!("{} rows came, {} went", report.tally.received, report.tally.taken);
//! # Ok(())
//! # }
//! ```

mod batch;
pub mod calls;
pub mod decide;
mod digest;
mod edits;
mod login;
mod proof;
mod push;
mod remote;
pub mod responses;
mod retry;
mod row;
mod settle;
mod store;
mod sync;
mod text;

pub use digest::Seed;
pub use edits::Pending;
pub use login::{LogIn, LoginError, log_in, take_token};
pub use proof::Proof;
pub use remote::{Http, NoResponse, Remote, Request, Response};
pub use retry::RetryPolicy;
pub use row::Row;
pub use settle::Tally;
pub use store::{Outstanding, SentRow, Store, StoreError, StoreResult};
pub use sync::{Options, Progress, SyncError, SyncMode, SyncReport, sync};
pub use text::{Columns, JsonText};
