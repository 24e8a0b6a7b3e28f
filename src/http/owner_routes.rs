//! The routes of owners, members and invitations.

use std::sync::Arc;

use warp::Filter;
use warp::filters::BoxedFilter;
use warp::reply::Response;

use super::app::App;
use super::console_routes::boxed;
use super::handlers::caller::{Scope, handle_caller};
use super::handlers::{invitations, owners};
use super::methods::{delete, get, patch, post, put};
use super::problem::ApiError;
use super::routes::caller_filter;
use super::{Peer, body, peer};
use crate::accounts::Caller;

type Who = Result<Caller, ApiError>;

/// Every route of owners, members and invitations.
pub(super) fn owner_routes(app: &Arc<App>) -> BoxedFilter<(Response,)> {
    owners_themselves(app).or(members(app)).unify().or(invitations(app)).unify().boxed()
}

fn with(
    app: &Arc<App>,
) -> impl Filter<Extract = (Arc<App>,), Error = std::convert::Infallible> + Clone + use<> {
    let app = Arc::clone(app);
    warp::any().map(move || Arc::clone(&app))
}

fn owners_themselves(app: &Arc<App>) -> BoxedFilter<(Response,)> {
    let caller = caller_filter(app, Scope::Account, |headers| headers);
    let body = body(Arc::clone(&app.bounds), Arc::clone(&app.memory)).boxed();
    let headers = warp::header::headers_cloned();
    let listed = warp::path!("owners")
        .and(get())
        .and(with(app))
        .and(caller.clone())
        .and(headers)
        .then(|app, who: Who, headers| handle_caller(who, |who| owners::list(app, who, headers)));
    let made = warp::path!("owners")
        .and(post())
        .and(with(app))
        .and(peer())
        .and(caller.clone())
        .and(headers)
        .and(body.clone())
        .then(|app, peer: Peer, who: Who, headers, body| {
            handle_caller(who, move |who| owners::create(app, peer, who, headers, body))
        });
    let renamed = warp::path!("owners" / String)
        .and(patch())
        .and(with(app))
        .and(peer())
        .and(caller.clone())
        .and(body)
        .then(|id, app, peer: Peer, who: Who, body| {
            handle_caller(who, move |who| owners::describe(id, app, peer, who, body))
        });
    let deleted = warp::path!("owners" / String).and(delete()).and(with(app)).and(peer()).and(caller).then(
        |id, app, peer: Peer, who: Who| handle_caller(who, move |who| owners::delete(id, app, peer, who)),
    );
    boxed(listed).or(boxed(made)).unify().or(boxed(renamed)).unify().or(boxed(deleted)).unify().boxed()
}

fn members(app: &Arc<App>) -> BoxedFilter<(Response,)> {
    let caller = caller_filter(app, Scope::Account, |headers| headers);
    let body = body(Arc::clone(&app.bounds), Arc::clone(&app.memory)).boxed();
    let query = warp::query::raw().or(warp::any().map(String::new)).unify();
    let listed = warp::path!("owners" / String / "members")
        .and(get())
        .and(with(app))
        .and(caller.clone())
        .and(query)
        .then(|id, app, who: Who, query| handle_caller(who, |who| owners::list_members(id, app, who, query)));
    let changed = warp::path!("owners" / String / "members" / String)
        .and(put())
        .and(with(app))
        .and(peer())
        .and(caller.clone())
        .and(body)
        .then(|id, user, app, peer: Peer, who: Who, body| {
            handle_caller(who, move |who| owners::set_role(id, user, app, peer, who, body))
        });
    let removed = warp::path!("owners" / String / "members" / String)
        .and(delete())
        .and(with(app))
        .and(peer())
        .and(caller)
        .then(|id, user, app, peer: Peer, who: Who| {
            handle_caller(who, move |who| owners::remove_member(id, user, app, peer, who))
        });
    boxed(listed).or(boxed(changed)).unify().or(boxed(removed)).unify().boxed()
}

fn invitations(app: &Arc<App>) -> BoxedFilter<(Response,)> {
    let caller = caller_filter(app, Scope::Account, |headers| headers);
    let body = body(Arc::clone(&app.bounds), Arc::clone(&app.memory)).boxed();
    let listed = warp::path!("owners" / String / "invitations")
        .and(get())
        .and(with(app))
        .and(caller.clone())
        .then(|id, app, who: Who| handle_caller(who, |who| invitations::list(id, app, who)));
    let made = warp::path!("owners" / String / "invitations")
        .and(post())
        .and(with(app))
        .and(peer())
        .and(caller.clone())
        .and(body.clone())
        .then(|id, app, peer: Peer, who: Who, body| {
            handle_caller(who, move |who| invitations::invite(id, app, peer, who, body))
        });
    let revoked = warp::path!("owners" / String / "invitations" / String)
        .and(delete())
        .and(with(app))
        .and(peer())
        .and(caller.clone())
        .then(|id, invitation, app, peer: Peer, who: Who| {
            handle_caller(who, move |who| invitations::revoke(id, invitation, app, peer, who))
        });
    let accepted = warp::path!("invitations" / "accept")
        .and(post())
        .and(with(app))
        .and(peer())
        .and(caller)
        .and(body)
        .then(|app, peer: Peer, who: Who, body| {
            handle_caller(who, move |who| invitations::accept(app, peer, who, body))
        });
    boxed(listed).or(boxed(made)).unify().or(boxed(revoked)).unify().or(boxed(accepted)).unify().boxed()
}
