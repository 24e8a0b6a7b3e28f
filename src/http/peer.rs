//! The address of a client: that of the socket, or the one that a trusted proxy reports.

use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use http::HeaderMap;
use warp::Filter;

use super::bounds::Bounds;
use crate::accounts::network_of;

/// The address of the client. IPv4 addresses are always IPv4, also on a dual-stack socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Peer(pub IpAddr);

impl Peer {
    /// The client behind a socket: the rightmost address of `X-Forwarded-For` that is not a trusted proxy.
    /// The client wrote everything to the left of it, so it may be false.
    pub(super) fn behind(socket: IpAddr, headers: &HeaderMap, bounds: &Bounds) -> Self {
        let mut nearest = socket.to_canonical();
        let lines: Vec<&str> =
            headers.get_all("x-forwarded-for").iter().filter_map(|line| line.to_str().ok()).collect();
        let mut hops = lines.iter().rev().flat_map(|line| line.rsplit(','));
        while bounds.trusts(nearest) {
            // An unreadable entry ends the walk: the proxy that wrote it is the last trustworthy address.
            let Some(hop) = hops.next().and_then(address) else { break };
            nearest = hop;
        }
        Self(nearest)
    }

    /// What counts as one address in a limit: an IPv6 customer has a whole /64.
    pub fn bucket(self) -> IpAddr {
        network_of(self.0)
    }
}

/// An address as proxies write it: plain, with a port, or IPv6 in brackets.
fn address(hop: &str) -> Option<IpAddr> {
    let hop = hop.trim();
    let bare = hop.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(hop);
    let parsed = bare.parse::<IpAddr>().ok();
    parsed.or_else(|| hop.parse::<SocketAddr>().ok().map(|socket| socket.ip())).map(|ip| ip.to_canonical())
}

/// The client's address; `0.0.0.0` without a socket, as in a test of the routes.
pub fn peer() -> impl Filter<Extract = (Peer,), Error = Infallible> + Copy {
    warp::ext::optional::<Peer>().map(|peer: Option<Peer>| peer.unwrap_or(Peer(Ipv4Addr::UNSPECIFIED.into())))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::config::Settings;

    /// Goal: nobody can claim another's address. Method: headers as proxies and forgers write them.
    #[test]
    fn only_what_trusted_proxies_wrote_counts() {
        let mut settings = Settings::default();
        settings.http.trusted_proxies = vec!["10.0.0.0/24".parse().unwrap(), "fd00::1".parse().unwrap()];
        let bounds = Bounds::from_settings(&settings).unwrap();
        for (socket, lines, expected) in [
            ("192.0.2.7", &["203.0.113.9"][..], "192.0.2.7"), // not a trusted proxy: its header is ignored
            ("10.0.0.1", &[], "10.0.0.1"),
            ("10.0.0.1", &["203.0.113.9"], "203.0.113.9"),
            ("10.0.0.1", &["203.0.113.9, 10.0.0.7"], "203.0.113.9"),
            ("10.0.1.1", &["203.0.113.9"], "10.0.1.1"),
            ("::ffff:10.0.0.1", &["203.0.113.9"], "203.0.113.9"),
            ("10.0.0.1", &["1.1.1.1, 203.0.113.9"], "203.0.113.9"),
            ("10.0.0.1", &["1.1.1.1", "203.0.113.9, fd00::1"], "203.0.113.9"),
            ("10.0.0.1", &["203.0.113.9:4711"], "203.0.113.9"),
            ("fd00::1", &["[2001:db8::5]:4711"], "2001:db8::5"),
            ("fd00::1", &["[2001:db8::5]"], "2001:db8::5"),
            ("10.0.0.1", &["203.0.113.9, unknown"], "10.0.0.1"),
            ("10.0.0.1", &["fd00::1"], "fd00::1"),
        ] {
            let mut headers = HeaderMap::new();
            for line in lines {
                headers.append("x-forwarded-for", line.parse().unwrap());
            }
            let peer = Peer::behind(socket.parse().unwrap(), &headers, &bounds);
            assert_eq!(peer.0.to_string(), expected, "{socket} {lines:?}");
        }
    }
}
