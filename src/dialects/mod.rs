//! Other sync protocols over the same rows, for apps that speak one already.
//!
//! A dialect translates between foreign requests and the phases. It has no SQL, no rule and no clock of its own, and it
//! does not use another dialect. None is served unless the setting `dialects` names it.

mod change_tracking;
mod electric;
mod powersync;

use clap::ValueEnum;
use http::header::HeaderName;
use warp::filters::BoxedFilter;
use warp::reply::Response;
use warp::{Filter, Rejection, reject};

use crate::accounts::Caller;
use crate::config::Settings;
use crate::http::{ApiError, App, BadSetting};
use crate::schema::{Schema, Table};
use std::sync::Arc;

/// Who makes a request, or why it is refused.
type Who = Result<Caller, ApiError>;

/// A sync protocol that the server speaks beside its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Dialect {
    /// One call that returns everything, or what changed since a version.
    ChangeTracking,
    /// The shapes of Electric's clients, for reading.
    Electric,
    /// The streams of PowerSync's SDKs.
    #[value(name = "powersync")]
    PowerSync,
}

impl Dialect {
    /// Every dialect.
    pub const ALL: [Self; 3] = [Self::ChangeTracking, Self::Electric, Self::PowerSync];

    /// The name that the command line uses.
    pub const fn name(self) -> &'static str {
        match self {
            Self::ChangeTracking => "change-tracking",
            Self::Electric => "electric",
            Self::PowerSync => "powersync",
        }
    }

    /// The tag that its operations have in `openapi.yaml`.
    pub const fn tag(self) -> &'static str {
        match self {
            Self::ChangeTracking => "Change tracking",
            Self::Electric => "Electric",
            Self::PowerSync => "PowerSync",
        }
    }

    /// Why a table cannot be served in this dialect, if it cannot.
    fn fault(self, table: &Table) -> Option<String> {
        match self {
            Self::ChangeTracking => change_tracking::fault(table),
            Self::Electric => None,
            Self::PowerSync => powersync::fault(table),
        }
    }

    /// The response headers that a page of another origin must see.
    fn response_headers(self) -> &'static [&'static str] {
        match self {
            Self::ChangeTracking | Self::PowerSync => &[],
            Self::Electric => &electric::RESPONSE_HEADERS,
        }
    }

    /// The request headers that a page of another origin may send.
    fn request_headers(self) -> &'static [&'static str] {
        match self {
            Self::ChangeTracking => &["fromversion"],
            Self::Electric => &[],
            Self::PowerSync => &["x-user-agent"],
        }
    }
}

/// What the dialects keep in memory.
pub(crate) struct State {
    pub(super) checkpoint_requests: powersync::Requests,
}

impl State {
    /// Nothing is kept yet.
    pub fn new(settings: &Settings) -> Self {
        let streams_max = settings.limits.event_streams_max;
        Self { checkpoint_requests: powersync::Requests::new(streams_max) }
    }
}

/// The headers of the dialects that are served, as browsers need them listed.
#[derive(Clone, Debug, Default)]
pub struct BrowserHeaders {
    /// Those of requests.
    pub requests: Vec<HeaderName>,
    /// Those of responses.
    pub responses: Vec<HeaderName>,
}

impl BrowserHeaders {
    /// The headers of these dialects.
    pub fn of(dialects: &[Dialect]) -> Self {
        let list = |headers: fn(Dialect) -> &'static [&'static str]| {
            dialects.iter().flat_map(|one| headers(*one)).map(|name| HeaderName::from_static(name)).collect()
        };
        Self { requests: list(Dialect::request_headers), responses: list(Dialect::response_headers) }
    }
}

/// Checks that the dialects can be served with these settings and this schema.
///
/// Errors: [`BadSetting`] that names the dialect, and the table or column that it cannot have.
pub fn check(settings: &Settings, schema: &Schema) -> Result<(), BadSetting> {
    let chosen = &settings.dialects.dialects;
    for (dialect, table) in
        chosen.iter().flat_map(|one| schema.tables().iter().map(move |table| (one, table)))
    {
        if let Some(fault) = dialect.fault(table) {
            return Err(BadSetting::new(format!("--dialect {}: {fault}", dialect.name())));
        }
    }
    if chosen.contains(&Dialect::Electric) && settings.dialects.electric_wait_s >= settings.limits.request_s {
        return Err(BadSetting::new(
            "--electric-wait-s must be below --request-s, or a request would end before its wait".into(),
        ));
    }
    Ok(())
}

/// The routes of the dialects that are served.
pub(crate) fn routes(app: &Arc<App>, who: &BoxedFilter<(Who,)>) -> BoxedFilter<(Response,)> {
    let none = warp::any().and_then(|| async { Err::<Response, Rejection>(reject::not_found()) }).boxed();
    app.settings.dialects.dialects.iter().fold(none, |routes, dialect| {
        let more = match dialect {
            Dialect::ChangeTracking => change_tracking::routes(app, who),
            Dialect::Electric => electric::routes(app, who),
            Dialect::PowerSync => powersync::routes(app),
        };
        routes.or(more).unify().boxed()
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// The sources of a dialect, by the path of its module.
    fn sources() -> Vec<(String, String)> {
        let mut found = Vec::new();
        let mut folders = vec![std::path::PathBuf::from("src/dialects")];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else {
                    found.push((path.display().to_string(), std::fs::read_to_string(path).unwrap()));
                }
            }
        }
        found
    }

    /// Goal: a dialect stays a translation. Method: its source names no SQL, no engine, no rule and no clock, and no
    /// other dialect.
    #[test]
    fn a_dialect_has_no_sql_no_rule_no_clock_and_no_other_dialect() {
        let forbidden = [
            "SELECT ",
            "INSERT ",
            "UPDATE ",
            "DELETE FROM",
            "rusqlite",
            "storage::sqlite",
            "storage::postgres",
            "reconcile::settle",
            "SystemTime",
            "Clock::",
            "std::time::Instant",
        ];
        let modules = Dialect::ALL.map(|one| one.name().replace('-', "_"));
        let mut files = 0;
        for (path, source) in sources().into_iter().filter(|(path, _)| *path != "src/dialects/mod.rs") {
            files += 1;
            for word in forbidden {
                assert!(!source.contains(word), "{path} has {word:?}");
            }
            for other in modules.iter().filter(|name| !path.contains(name.as_str())) {
                assert!(!source.contains(&format!("{other}::")), "{path} uses {other}");
            }
        }
        assert!(files >= Dialect::ALL.len(), "sources not found");
    }

    #[test]
    fn the_command_line_and_the_code_name_a_dialect_alike() {
        for dialect in Dialect::ALL {
            assert_eq!(dialect.to_possible_value().unwrap().get_name(), dialect.name());
        }
        assert_eq!(Dialect::ALL.len(), Dialect::value_variants().len());
    }
}
