use http::HeaderValue;

/// Whether a line of `If-None-Match` contains the tag, or `*`. Tags are compared weakly (RFC 9110, 13.1.2).
pub(super) fn matches<'a>(lines: impl IntoIterator<Item = &'a HeaderValue>, etag: &str) -> bool {
    let opaque = |tag: &'a str| tag.trim().trim_start_matches("W/");
    let lines = lines.into_iter().filter_map(|line| line.to_str().ok());
    lines
        .flat_map(|line| line.split(','))
        .any(|tag| tag.trim() == "*" || opaque(tag) == etag.trim_start_matches("W/"))
}
