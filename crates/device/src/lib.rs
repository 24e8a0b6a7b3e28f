//! A complete device: how an app keeps its own copy and synchronises it with the server.
//!
//! - [`decide`] contains the protocol's decisions: pure rules, small enough to port to any language.
//!   `fixtures/device` has them as data.
//! - [`Store`] is the app's side: `put`, `delete`, `get`, `list` work offline and record what waits.
//! - A file has the rows of one owner: the user's own, or another one that is named when the file is made. When the
//!   user's membership there ends, the copy goes and unsent edits stay.
//! - [`sync()`] does everything else: both modes of syncing, lost responses, the lock, the check at the end.
//!   It uses a [`Remote`], which need not be a socket.
//!
//! ```no_run
//! use rollcall_clock::Clock;
//! use rollcall_device::{Http, Options, RetryPolicy, Store, sync};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let mut store = Store::open("phone.db".as_ref(), Clock::system())?;
//! let mut server = Http::new("https://sync.example.com");
//! let report = sync(&mut store, &mut server, &mut RetryPolicy::default(), Options::default(), &mut |_| {})?;
//! println!("{} rows received, {} sent", report.tally.received, report.tally.taken);
//! # Ok(())
//! # }
//! ```

mod batch;
pub mod calls;
pub mod decide;
mod digest;
mod edits;
mod leave;
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
pub use leave::LeftEdit;
pub use login::{LogIn, LoginError, log_in, take_token};
pub use proof::Proof;
pub use remote::{Http, NoResponse, Remote, Request, Response};
pub use retry::RetryPolicy;
pub use row::Row;
pub use settle::Tally;
pub use store::{Outstanding, SentRow, Store, StoreError, StoreResult};
pub use sync::{Options, Progress, SyncError, SyncMode, SyncReport, sync};
pub use text::{Columns, JsonText};
