//! The routes: path, method, and what each handler needs.

use std::convert::Infallible;
use std::sync::Arc;

use http::HeaderMap;
use warp::filters::BoxedFilter;
use warp::{Filter, Reply};

use super::app::App;
use super::body::{Deadline, slow_body};
use super::console_routes::{boxed, console_routes};
use super::handlers::caller::{Scope, handle_caller};
use super::handlers::{
    accounts, caller, changes, conflicts, events, export, fetch, lock, service, synchronise,
};
use super::methods::{delete, get, post, shape};
use super::owner_routes::owner_routes;
use super::problem::ApiError;
use super::{Peer, body, no_body, peer, query};
use crate::accounts::Caller;
use crate::dialects;

type Who = Result<Caller, ApiError>;

/// Finds out who makes a request, from its headers as `translate` returns them.
pub(crate) fn caller_filter(
    app: &Arc<App>,
    scope: Scope,
    translate: impl Fn(HeaderMap) -> HeaderMap + Clone + Send + Sync + 'static,
) -> BoxedFilter<(Who,)> {
    let app = Arc::clone(app);
    warp::header::headers_cloned()
        .and(warp::ext::optional::<Deadline>())
        .and(peer())
        .and(warp::query::raw().or(warp::any().map(String::new)).unify())
        .then(move |headers: HeaderMap, deadline: Option<Deadline>, peer: Peer, query: String| {
            let (app, headers) = (Arc::clone(&app), translate(headers));
            let scope = scope.of(&query);
            async move {
                let named = if scope.names_owner() { query::named_owner(&query) } else { Ok(None) };
                let caller = match named {
                    Ok(named) => caller::caller(app, peer, headers, scope, named).await,
                    Err(refusal) => Err(refusal),
                };
                match (&caller, deadline) {
                    (Ok(caller), Some(deadline)) => deadline.of_owner(caller.owner),
                    (Err(_), Some(deadline)) => deadline.refuse(),
                    (_, None) => {}
                }
                caller
            }
        })
        // Boxed, since every route contains it: otherwise compiling takes many minutes.
        .boxed()
}

/// All routes. Unmatched requests get a problem document too.
#[expect(clippy::too_many_lines, reason = "a table")]
pub fn routes(
    app: Arc<App>,
) -> impl Filter<Extract = (impl Reply,), Error = Infallible> + Clone + Send + Sync + 'static {
    let console = console_routes(Arc::clone(&app));
    let with_app = {
        let app = Arc::clone(&app);
        warp::any().map(move || Arc::clone(&app))
    };
    let of = |scope| caller_filter(&app, scope, |headers| headers);
    let (caller, account) = (of(Scope::Owner), of(Scope::Account));
    let public = of(Scope::PublicOwner);
    let (entering, now) = (of(Scope::OwnerEntering), of(Scope::OwnerNow));
    let (default, of_all) = (of(Scope::DefaultOwner), of(Scope::OwnersNow));
    // When the request arrived, before its body, which may take long.
    let received = {
        let app = Arc::clone(&app);
        warp::any().map(move || app.clock.now())
    };
    let headers = warp::header::headers_cloned();
    // The owner is named to the filter of the caller.
    let query = warp::query::raw().or(warp::any().map(String::new)).unify();
    let all_owners = query.map(|query: String| query::names_all_owners(&query));
    let query = query.map(|query: String| query::without_owner(&query));
    let no_body = no_body(Arc::clone(&app.bounds));
    let slow_body = slow_body(Arc::clone(&app.bounds), Arc::clone(&app.memory)).boxed();
    let body = body(Arc::clone(&app.bounds), Arc::clone(&app.memory)).boxed();

    let dialects = dialects::routes(&app, &default);
    let owners = owner_routes(&app);

    // Both forms of a path work the same.
    let fetch_path = warp::path!("fetch").or(warp::path!("fetch.json")).unify();
    let synchronise_path = warp::path!("synchronise").or(warp::path!("synchronise.json")).unify();

    let fetch = fetch_path
        .and(get())
        .and(with_app.clone())
        .and(public.clone())
        .and(headers)
        .and(warp::method())
        .and(query)
        .then(|app, who: Who, headers, method, query| {
            handle_caller(who, |who| fetch::fetch(app, who, headers, method, query))
        });
    let synchronise = synchronise_path
        .and(post())
        .and(with_app.clone())
        .and(received)
        .and(entering)
        .and(headers)
        .and(slow_body)
        .then(synchronise::synchronise);

    let changes = warp::path!("changes")
        .and(get())
        .and(with_app.clone())
        .and(public.clone())
        .and(headers)
        .and(query)
        .then(|app, who: Who, headers, query| {
            handle_caller(who, |who| changes::changes(app, who, headers, query))
        });
    let digests = warp::path!("digests")
        .and(get())
        .and(with_app.clone())
        .and(public)
        .then(|app, who: Who| handle_caller(who, |who| changes::digests(app, who)));
    let events = warp::path!("events")
        .and(get())
        .and(with_app.clone())
        .and(of_all)
        .and(all_owners)
        .and(headers)
        .and(warp::method())
        .then(|app, who: Who, has_all, headers, method| {
            handle_caller(who, move |who| events::events(app, who, has_all, headers, method))
        });
    let conflicts = warp::path!("conflicts")
        .and(get())
        .and(with_app.clone())
        .and(caller.clone())
        .and(query)
        .then(|app, who: Who, query| handle_caller(who, |who| conflicts::list(app, who, query)));
    let restore = warp::path!("conflicts" / String / "restore")
        .and(post())
        .and(no_body.clone())
        .and(with_app.clone())
        .and(caller.clone())
        .and(headers)
        .then(|id, app, who: Who, headers| {
            handle_caller(who, |who| conflicts::restore(id, app, who, headers))
        });

    let lock_shown = warp::path!("lock")
        .and(get())
        .and(with_app.clone())
        .and(now.clone())
        .then(|app, who: Who| handle_caller(who, |who| lock::show(app, who)));
    let lock_taken = warp::path!("lock")
        .and(post())
        .and(no_body.clone())
        .and(with_app.clone())
        .and(now.clone())
        .and(headers)
        .then(|app, who: Who, headers| handle_caller(who, |who| lock::take(app, who, headers)));
    let lock_ended = warp::path!("lock")
        .and(delete())
        .and(with_app.clone())
        .and(now.clone())
        .and(query)
        .then(|app, who: Who, query| handle_caller(who, |who| lock::end(app, who, query)));

    let register = warp::path!("register")
        .and(post())
        .and(with_app.clone())
        .and(peer())
        .and(body.clone())
        .then(accounts::register);
    let login = warp::path!("login")
        .and(post())
        .and(with_app.clone())
        .and(peer())
        .and(headers)
        .and(body.clone())
        .then(accounts::log_in);
    let password = warp::path!("password")
        .and(post())
        .and(with_app.clone())
        .and(peer())
        .and(account.clone())
        .and(body.clone())
        .then(|app, peer: Peer, who: Who, body| {
            handle_caller(who, move |who| accounts::change_password(app, peer, who, body))
        });
    let reset = warp::path!("password" / "reset")
        .and(post())
        .and(with_app.clone())
        .and(peer())
        .and(body.clone())
        .then(accounts::ask_for_reset);
    let reset_confirmed = warp::path!("password" / "reset" / "confirm")
        .and(post())
        .and(with_app.clone())
        .and(peer())
        .and(body.clone())
        .then(accounts::reset_password);
    let verified = warp::path!("email" / "verify")
        .and(post())
        .and(with_app.clone())
        .and(peer())
        .and(body.clone())
        .then(accounts::verify_email);
    let exported = warp::path!("account" / "export")
        .and(get())
        .and(with_app.clone())
        .and(account.clone())
        .then(|app, who: Who| handle_caller(who, |who| export::export(app, who)));
    let erased = warp::path!("account" / "erase")
        .and(post())
        .and(with_app.clone())
        .and(peer())
        .and(account.clone())
        .and(body)
        .then(|app, peer: Peer, who: Who, body| {
            handle_caller(who, move |who| accounts::erase(app, peer, who, body))
        });
    let logout = warp::path!("logout")
        .and(post())
        .and(no_body.clone())
        .and(with_app.clone())
        .and(peer())
        .and(account.clone())
        .then(|app, peer: Peer, who: Who| handle_caller(who, move |who| accounts::log_out(app, peer, who)));
    let me =
        warp::path!("me").and(get()).and(account.clone()).then(|who: Who| handle_caller(who, caller::me));
    let devices = warp::path!("devices")
        .and(get())
        .and(with_app.clone())
        .and(account.clone())
        .then(|app, who: Who| handle_caller(who, |who| accounts::devices(app, who)));
    let devices_ended =
        warp::path!("devices").and(delete()).and(with_app.clone()).and(peer()).and(account.clone()).then(
            |app, peer: Peer, who: Who| {
                handle_caller(who, move |who| accounts::revoke_others(app, peer, who))
            },
        );
    let device =
        warp::path!("devices" / String).and(delete()).and(with_app.clone()).and(peer()).and(account).then(
            |id: String, app, peer: Peer, who: Who| {
                handle_caller(who, move |who| accounts::revoke(app, peer, who, id))
            },
        );

    let healthz = warp::path!("healthz").and(get()).then(service::healthz);
    let readyz = warp::path!("readyz").and(get()).and(with_app.clone()).then(service::readyz);
    let limits = warp::path!("limits").and(get()).and(with_app.clone()).then(service::limits);
    let metrics = warp::path!("metrics").and(get()).and(with_app.clone()).and(headers).then(service::metrics);
    let general = warp::path!("openapi.yaml").and(get()).then(service::general_contract);
    let typed =
        warp::path!("openapi.json").and(get()).and(with_app).and(headers).then(service::typed_contract);

    let sync = boxed(fetch).or(boxed(synchronise)).unify().or(boxed(changes)).unify();
    let sync = sync.or(boxed(digests)).unify().or(boxed(conflicts)).unify().or(boxed(restore)).unify();
    let sync = sync.or(boxed(events)).unify().or(dialects).unify();
    let locks = boxed(lock_shown).or(boxed(lock_taken)).unify().or(boxed(lock_ended)).unify();
    let people = boxed(register).or(boxed(login)).unify().or(boxed(logout)).unify().or(boxed(me)).unify();
    let people = people.or(boxed(password)).unify();
    let people =
        people.or(boxed(reset)).unify().or(boxed(reset_confirmed)).unify().or(boxed(verified)).unify();
    let people = people.or(boxed(erased)).unify().or(boxed(exported)).unify().or(owners).unify();
    let devices = boxed(devices).or(boxed(devices_ended)).unify().or(boxed(device)).unify();
    let about = boxed(healthz).or(boxed(readyz)).unify().or(boxed(limits)).unify().or(boxed(metrics)).unify();
    let about = about.or(boxed(general)).unify().or(boxed(typed)).unify();
    let sync = sync.or(console).unify();
    // Boxed again, since the service is cloned for every request.
    let all = sync.or(locks).unify().or(people).unify().or(devices).unify().or(about).unify().boxed();
    all.recover(shape)
}
