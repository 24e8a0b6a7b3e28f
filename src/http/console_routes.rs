//! The routes below `/console/api`. Without a console token in the settings every path of it is a 404.

use std::sync::Arc;

use http::HeaderMap;
use warp::filters::BoxedFilter;
use warp::reply::{Reply, Response};
use warp::{Filter, Rejection};

use super::app::App;
use super::console::Operator;
use super::handlers::console;
use super::methods::{delete, get, post};
use super::peer::{Peer, peer};
use super::{ApiError, no_body};

/// Every route of the console.
pub(super) fn console_routes(app: Arc<App>) -> BoxedFilter<(Response,)> {
    let no_body = no_body(Arc::clone(&app.bounds));
    let with_app = {
        let app = Arc::clone(&app);
        warp::any().map(move || Arc::clone(&app))
    };
    let operator = warp::header::headers_cloned().and(peer()).map(
        move |headers: HeaderMap, peer: Peer| -> Result<Operator, ApiError> {
            Operator::admit(&app, &headers, peer)
        },
    );
    let query = warp::query::raw().or(warp::any().map(String::new)).unify();

    let overview = warp::path!("console" / "api" / "overview")
        .and(get())
        .and(with_app.clone())
        .and(operator.clone())
        .then(console::overview);
    let series = warp::path!("console" / "api" / "series")
        .and(get())
        .and(with_app.clone())
        .and(operator.clone())
        .then(console::series);
    let owners = warp::path!("console" / "api" / "owners")
        .and(get())
        .and(with_app.clone())
        .and(operator.clone())
        .and(query)
        .then(console::owners);
    let owner = warp::path!("console" / "api" / "owners" / String)
        .and(get())
        .and(with_app.clone())
        .and(operator.clone())
        .then(console::owner);
    let conflicts = warp::path!("console" / "api" / "owners" / String / "conflicts")
        .and(get())
        .and(with_app.clone())
        .and(operator.clone())
        .and(query)
        .then(console::list_conflicts);
    let restore = warp::path!("console" / "api" / "owners" / String / "conflicts" / String / "restore")
        .and(post())
        .and(no_body)
        .and(with_app.clone())
        .and(operator.clone())
        .and(warp::header::headers_cloned())
        .then(console::restore);
    let lock = warp::path!("console" / "api" / "owners" / String / "lock")
        .and(delete())
        .and(with_app.clone())
        .and(operator.clone())
        .then(console::break_lock);
    let why = warp::path!("console" / "api" / "owners" / String / "why")
        .and(get())
        .and(with_app)
        .and(operator)
        .and(query)
        .then(console::why);

    let all = boxed(overview).or(boxed(series)).unify().or(boxed(owners)).unify().or(boxed(owner)).unify();
    let all = all.or(boxed(conflicts)).unify().or(boxed(restore)).unify();
    all.or(boxed(lock)).unify().or(boxed(why)).unify().boxed()
}

/// Gives every route the same type: otherwise the compiler would nest all types into each other.
pub(crate) fn boxed<T: Reply + 'static>(
    route: impl Filter<Extract = (T,), Error = Rejection> + Clone + Send + Sync + 'static,
) -> BoxedFilter<(Response,)> {
    route.map(Reply::into_response).boxed()
}
