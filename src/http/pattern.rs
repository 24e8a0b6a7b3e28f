//! The route of a request as a label of metrics: few values, whatever clients request.

use http::Method;

/// The path as the contract writes it: `/devices/{device_id}`. Other paths are `other`.
///
/// It is known before any route is tried, so a request that was refused, timed out or aborted has one too.
pub(super) fn route_of(path: &str) -> &'static str {
    let mut parts = [""; 7];
    let mut count = 0;
    for part in path.strip_prefix('/').unwrap_or(path).split('/') {
        let Some(place) = parts.get_mut(count) else { return "other" };
        *place = part;
        count += 1;
    }
    match &parts[..count] {
        ["fetch" | "fetch.json"] => "/fetch",
        ["synchronise" | "synchronise.json"] => "/synchronise",
        ["changes"] => "/changes",
        ["digests"] => "/digests",
        ["events"] => "/events",
        ["conflicts"] => "/conflicts",
        ["conflicts", _, "restore"] => "/conflicts/{id}/restore",
        ["lock"] => "/lock",
        ["register"] => "/register",
        ["login"] => "/login",
        ["logout"] => "/logout",
        ["me"] => "/me",
        ["password"] => "/password",
        ["password", "reset"] => "/password/reset",
        ["password", "reset", "confirm"] => "/password/reset/confirm",
        ["email", "verify"] => "/email/verify",
        ["account", "erase"] => "/account/erase",
        ["account", "export"] => "/account/export",
        ["devices"] => "/devices",
        ["devices", _] => "/devices/{device_id}",
        ["owners"] => "/owners",
        ["owners", _] => "/owners/{owner}",
        ["owners", _, "members"] => "/owners/{owner}/members",
        ["owners", _, "members", _] => "/owners/{owner}/members/{user}",
        ["owners", _, "invitations"] => "/owners/{owner}/invitations",
        ["owners", _, "invitations", _] => "/owners/{owner}/invitations/{id}",
        ["invitations", "accept"] => "/invitations/accept",
        ["v1", "shape"] => "/v1/shape",
        ["sync"] => "/sync",
        ["sync", "stream"] => "/sync/stream",
        ["sync", "checkpoint-request"] => "/sync/checkpoint-request",
        ["write-checkpoint2.json"] => "/write-checkpoint2.json",
        [_, "sync"] => "/{table}/sync",
        ["healthz"] => "/healthz",
        ["readyz"] => "/readyz",
        ["limits"] => "/limits",
        ["metrics"] => "/metrics",
        ["openapi.json"] => "/openapi.json",
        ["openapi.yaml"] => "/openapi.yaml",
        ["console", "api", rest @ ..] => match rest {
            ["overview"] => "/console/api/overview",
            ["series"] => "/console/api/series",
            ["owners"] => "/console/api/owners",
            ["owners", _] => "/console/api/owners/{owner}",
            ["owners", _, "conflicts"] => "/console/api/owners/{owner}/conflicts",
            ["owners", _, "conflicts", _, "restore"] => "/console/api/owners/{owner}/conflicts/{id}/restore",
            ["owners", _, "lock"] => "/console/api/owners/{owner}/lock",
            ["owners", _, "why"] => "/console/api/owners/{owner}/why",
            _ => "other",
        },
        ["demo", ..] => "/demo/*",
        ["console", ..] => "/console/*",
        _ => "other",
    }
}

/// The method as a label of metrics.
pub(super) fn method_of(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        Method::OPTIONS => "OPTIONS",
        _ => "other",
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// Goal: no route is left out. Method: every path of the contract has its own name, or that of its alias.
    #[test]
    fn every_path_of_the_contract_has_a_name() {
        let contract = include_str!("../../openapi.yaml");
        let (_, paths) = contract.split_once("\npaths:\n").unwrap();
        let (paths, _) = paths.split_once("\ncomponents:\n").unwrap();
        let paths: Vec<&str> = paths
            .lines()
            .filter_map(|line| line.strip_prefix("  ").filter(|line| line.starts_with('/')))
            .map(|line| line.trim_end_matches(':'))
            .collect();
        assert!(paths.len() > 10, "{paths:?}");
        for path in &paths {
            let first = path.strip_suffix(".json").filter(|first| paths.contains(first));
            assert_eq!(route_of(path), first.unwrap_or(path), "{path}");
        }
    }

    #[test]
    fn what_no_route_has_shares_one_name() {
        for path in ["", "/", "//fetch", "/fetch/x", "/devices/a/b", "/conflicts/1", "/a/b/c/d/e", "*"] {
            assert_eq!(route_of(path), "other", "{path}");
        }
    }
}
