//! The protocol over HTTP. The only module that knows statuses, headers and `async`.

mod accept;
mod app;
pub mod body;
pub mod bounds;
mod console;
mod console_routes;
mod events;
mod handlers;
pub mod layers;
mod memory;
pub mod methods;
pub mod pages;
mod pattern;
pub mod peer;
pub mod problem;
mod readers;
mod ready;
mod routes;
pub mod server;
mod socket;
mod stream;
pub mod threads;
mod timing;
pub mod wire;

pub use app::App;
pub use body::{Received, body, no_body, slow_body};
pub use bounds::{BadSetting, Bounds, Origins, RequestHeaders};
pub use console::{Console, Counted};
pub use events::Events;
pub use layers::RequestId;
pub use memory::{Memory, Permit};
pub use peer::{Peer, peer};
pub use problem::{ApiError, BodyFault, Unavailable};
pub use routes::routes;
pub use server::{Drained, Draining, Listener, serve};
