//! The methods of a path, and the responses for warp's rejections.
//!
//! A route is a path, then one of [`get`], [`post`], [`put`], [`patch`] and [`delete`], then what its handler needs. This order
//! alone determines 404 and 405: each of these filters leaves its own mark if the path matched and the method
//! did not. From the marks [`shape`] knows which methods the path has.
//!
//! ```
//! use rollcall::http::methods::{get, post, shape};
//! use warp::Filter;
//!
//! let routes = warp::path!("lock")
//!     .and(get())
//!     .map(|| "who holds it")
//!     .or(warp::path!("lock").and(post()).map(|| "yours now"))
//!     .recover(shape);
//! ```

use std::convert::Infallible;

use http::Method;
use warp::reject::{self, Reject, Rejection};
use warp::{Filter, ext};

use super::problem::ApiError;

/// Left by a route whose path matched; `M` stands for the method that it takes.
#[derive(Debug)]
struct Wants<M>(M);

impl<M: std::fmt::Debug + Send + Sync + 'static> Reject for Wants<M> {}

#[derive(Clone, Copy, Debug)]
struct Get;
#[derive(Clone, Copy, Debug)]
struct Post;
#[derive(Clone, Copy, Debug)]
struct Put;
#[derive(Clone, Copy, Debug)]
struct Patch;
#[derive(Clone, Copy, Debug)]
struct Delete;

/// Takes `GET`, and `HEAD`, for which the layers leave the body out. It must follow the path directly, so
/// that a wrong path is 404 and not 405.
pub fn get() -> impl Filter<Extract = (), Error = Rejection> + Clone {
    only(&[Method::GET, Method::HEAD], Get)
}

/// Takes `POST`; see [`get`].
pub fn post() -> impl Filter<Extract = (), Error = Rejection> + Clone {
    only(&[Method::POST], Post)
}

/// Takes `DELETE`; see [`get`].
pub fn delete() -> impl Filter<Extract = (), Error = Rejection> + Clone {
    only(&[Method::DELETE], Delete)
}

/// Takes `PUT`; see [`get`].
pub fn put() -> impl Filter<Extract = (), Error = Rejection> + Clone {
    only(&[Method::PUT], Put)
}

/// Takes `PATCH`; see [`get`].
pub fn patch() -> impl Filter<Extract = (), Error = Rejection> + Clone {
    only(&[Method::PATCH], Patch)
}

fn only<M>(wanted: &'static [Method], mark: M) -> impl Filter<Extract = (), Error = Rejection> + Clone
where
    M: std::fmt::Debug + Copy + Send + Sync + 'static,
{
    warp::method()
        .and_then(move |method: Method| {
            let fits = wanted.contains(&method);
            async move { if fits { Ok(()) } else { Err(reject::custom(Wants(mark))) } }
        })
        .untuple_one()
}

/// Converts warp's rejections to problems; for `.recover(shape)` after the last route.
///
/// - Errors: 404, or 405 with `Allow` for a path with other methods. A refusal of warp's own filters in a
///   route is 400, 411 or 415; an unexpected rejection is 500 and is logged.
pub async fn shape(rejection: Rejection) -> Result<ApiError, Infallible> {
    Ok(problem(&rejection))
}

fn problem(rejection: &Rejection) -> ApiError {
    if rejection.is_not_found() {
        return ApiError::no_such_path();
    }
    // A refusal by a filter after the method is more informative than the other methods of the path.
    let refusals = [
        rejection.find::<reject::InvalidQuery>().map(ToString::to_string),
        rejection.find::<reject::InvalidHeader>().map(ToString::to_string),
        rejection.find::<reject::MissingHeader>().map(ToString::to_string),
        rejection.find::<warp::body::BodyDeserializeError>().map(ToString::to_string),
    ];
    if let Some(reason) = refusals.into_iter().flatten().next() {
        return ApiError::InvalidRequest { reason: format!("{reason}.") };
    }
    if rejection.find::<reject::LengthRequired>().is_some() {
        return ApiError::LengthRequired;
    }
    if rejection.find::<reject::UnsupportedMediaType>().is_some() {
        return ApiError::UnsupportedMediaType { reason: "The body must be application/json." };
    }
    let broken = rejection.find::<ext::MissingExtension>().is_some();
    match allowed(rejection) {
        Some(allow) if !broken => ApiError::MethodNotAllowed { allow },
        _ => ApiError::Internal(format!("a rejection without an answer: {rejection:?}").into()),
    }
}

/// The methods of a matching path, from the marks of its routes.
fn allowed(rejection: &Rejection) -> Option<String> {
    let wanted = [
        ("GET, HEAD", rejection.find::<Wants<Get>>().is_some()),
        ("POST", rejection.find::<Wants<Post>>().is_some()),
        ("PUT", rejection.find::<Wants<Put>>().is_some()),
        ("PATCH", rejection.find::<Wants<Patch>>().is_some()),
        ("DELETE", rejection.find::<Wants<Delete>>().is_some()),
    ];
    let methods: Vec<&str> = wanted.into_iter().filter(|(_, is)| *is).map(|(method, _)| method).collect();
    (!methods.is_empty()).then(|| methods.join(", "))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// Goal: 404, 405 and `Allow` follow from the routes alone. Method: three paths with various methods.
    #[tokio::test]
    async fn a_path_knows_its_methods() {
        let lock = || warp::path!("lock");
        let routes = lock()
            .and(get())
            .map(|| "got")
            .or(lock().and(post()).map(|| "posted"))
            .or(warp::path!("devices" / String).and(delete()).map(|_| "deleted"))
            .or(lock().and(delete()).map(|| "given back"))
            .or(warp::path!("fetch").and(get()).and(warp::query::<Vec<(String, bool)>>()).map(|_| "fetched"))
            .recover(shape);
        for (method, path, status, allow) in [
            ("GET", "/lock", 200, None),
            ("DELETE", "/lock", 200, None),
            ("HEAD", "/lock", 200, None),
            ("PUT", "/lock", 405, Some("GET, HEAD, POST, DELETE")),
            ("GET", "/devices/1", 405, Some("DELETE")),
            ("HEAD", "/devices/1", 405, Some("DELETE")),
            ("POST", "/fetch", 405, Some("GET, HEAD")),
            ("GET", "/fetch?lock=perhaps", 400, None),
            ("GET", "/devices", 404, None),
            ("GET", "/", 404, None),
            ("PUT", "/none", 404, None),
        ] {
            let response = warp::test::request().method(method).path(path).reply(&routes).await;
            assert_eq!(response.status(), status, "{method} {path}");
            let refusals = response.headers().get("allow").map(|allow| allow.to_str().unwrap());
            assert_eq!(refusals, allow, "{method} {path}");
            if status != 200 {
                assert_eq!(response.headers()["content-type"], "application/problem+json", "{method} {path}");
            }
        }
    }
}
