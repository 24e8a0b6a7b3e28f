use std::error::Error;

/// An error and its causes, on one line: libraries do not include the cause of the socket or the disk in
/// their own text.
pub fn error_chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        text = format!("{text}: {next}");
        cause = next.source();
    }
    text
}
