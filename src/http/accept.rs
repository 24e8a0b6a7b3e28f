//! Content negotiation: which of several media types a client prefers (RFC 9110, 12.5.1).

use http::HeaderMap;
use http::header::ACCEPT;

/// The preference of a header line for one media type.
#[derive(Clone, Copy, PartialEq, PartialOrd)]
struct Wish {
    /// From 0, never, to 1.
    quality: f32,
    /// How exactly the type is named: from 0 for `*/*` to 2 for the type itself.
    exactness: u8,
}

/// The media type of `offered` that the client prefers; the first one if the client has no preference, or
/// accepts none of them.
///
/// The type with the higher `q` wins, then the one that is named more exactly, then the one that comes first
/// in the header, or in `offered`.
pub(super) fn preferred<'a>(headers: &HeaderMap, offered: &[&'a str]) -> &'a str {
    let lines = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let ranges: Vec<(String, f32)> = lines.flat_map(|line| line.split(',')).filter_map(range).collect();
    let mut best: Option<(Wish, usize, &str)> = None;
    for kind in offered {
        let Some((wish, place)) = wish(&ranges, kind) else { continue };
        let is_better =
            best.is_none_or(|(other, before, _)| wish > other || (wish == other && place < before));
        if wish.quality > 0.0 && is_better {
            best = Some((wish, place, kind));
        }
    }
    best.map(|(_, _, kind)| kind).or(offered.first().copied()).unwrap_or_default()
}

/// One range of a header line, in lower case, with its `q`; other parameters are ignored.
fn range(text: &str) -> Option<(String, f32)> {
    let mut parts = text.split(';');
    let kind = parts.next()?.trim().to_ascii_lowercase();
    let mut quality = 1.0;
    for (name, value) in parts.filter_map(|part| part.split_once('=')) {
        if name.trim().eq_ignore_ascii_case("q") {
            quality = value.trim().parse().ok().filter(|q| (0.0..=1.0).contains(q))?;
        }
    }
    Some((kind, quality))
}

/// The preference for a type, and its position: the range that names the type most exactly counts.
fn wish(ranges: &[(String, f32)], kind: &str) -> Option<(Wish, usize)> {
    let class = kind.split('/').next().unwrap_or_default();
    let exactness = |range: &str| match range {
        _ if range == kind => Some(2),
        "*/*" => Some(0),
        _ => (range.strip_suffix("/*")? == class).then_some(1),
    };
    let fitting = ranges.iter().enumerate().filter_map(|(place, (range, quality))| {
        Some((Wish { quality: *quality, exactness: exactness(range)? }, place))
    });
    // Of two equally exact ranges the first one counts.
    fitting.reduce(|best, next| if next.0.exactness > best.0.exactness { next } else { best })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_client_gets_what_it_prefers() {
        const JSON: &str = "application/json";
        const LINES: &str = "application/x-ndjson";
        for (accept, kind) in [
            ("application/x-ndjson", LINES),
            ("application/json", JSON),
            ("application/json, application/x-ndjson;q=0.5", JSON),
            ("application/json;q=0.5, application/x-ndjson", LINES),
            ("application/json;q=0.5,application/x-ndjson;q=0.51", LINES),
            ("application/x-ndjson, application/json", LINES),
            ("application/json, application/x-ndjson", JSON),
            ("application/x-ndjson;q=0", JSON),
            ("application/x-ndjson;q=0, */*", JSON),
            ("application/x-ndjson;q=0.0, application/json;q=0", JSON),
            ("*/*", JSON),
            ("application/*", JSON),
            ("*/*, application/x-ndjson", LINES),
            ("application/x-ndjson, */*;q=0.8", LINES),
            ("application/x-ndjson;q=0.2, */*;q=0.8", JSON),
            ("application/json, text/plain, */*", JSON),
            ("Application/X-NDJSON; Q=0.9 , application/json ; q=0.1", LINES),
            ("application/x-ndjson; charset=utf-8", LINES),
            ("application/x-ndjson;q=2, application/json;q=0.1", JSON),
            ("text/html", JSON),
            ("", JSON),
            (",;,q=1", JSON),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(ACCEPT, accept.parse().unwrap());
            assert_eq!(preferred(&headers, &[JSON, LINES]), kind, "{accept}");
        }
        let mut two_lines = HeaderMap::new();
        two_lines.append(ACCEPT, "application/json;q=0.5".parse().unwrap());
        two_lines.append(ACCEPT, LINES.parse().unwrap());
        assert_eq!(preferred(&two_lines, &[JSON, LINES]), LINES);
        assert_eq!(preferred(&HeaderMap::new(), &[JSON, LINES]), JSON);
    }
}
