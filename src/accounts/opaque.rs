//! Passwords as text: the profile OpaqueString of RFC 8265, and which passwords may be chosen.

use std::borrow::Cow;

use unicode_normalization::UnicodeNormalization as _;

/// The commonest passwords, in lower case, one a line; lines with `#` say where they come from.
const COMMONEST: &str = include_str!("commonest.txt");

/// Fewest characters of a password, once it is prepared.
const CHARS_MIN: usize = 8;
/// Longest password, bytes: a longer one is only sent to keep the server busy.
pub(super) const BYTES_MAX: usize = 1_024;

/// The form in which a password is hashed and compared: each blank of Unicode is U+0020, and letters with accents are
/// composed (NFC). Keyboards and systems send the same password in different forms.
pub(super) fn prepared(password: &str) -> Cow<'_, str> {
    if password.is_ascii() {
        return Cow::Borrowed(password);
    }
    let form: String = password.chars().map(|c| if is_blank(c) { ' ' } else { c }).nfc().collect();
    if form == password { Cow::Borrowed(password) } else { Cow::Owned(form) }
}

/// Says why a password cannot be chosen for the account of this (lower-case) email; `None` if it can.
///
/// A code point that Unicode may assign later is accepted, unlike in RFC 8265: it has one form only, and new ones come
/// every year.
pub(super) fn refusal(password: &str, email: &str) -> Option<&'static str> {
    let form = prepared(password);
    if form.len() > BYTES_MAX || password.len() > BYTES_MAX {
        return Some("A password has at most 1024 bytes.");
    }
    if form.chars().count() < CHARS_MIN {
        return Some("A password has at least 8 characters.");
    }
    if form.chars().any(is_forbidden) {
        return Some("A password has no control characters and no invisible ones.");
    }
    let lower = form.to_lowercase();
    if is_common(&lower) {
        return Some("This password is one of the commonest, which are guessed first. Choose another one.");
    }
    let name = email.split('@').next().unwrap_or_default();
    if lower == email || lower == name {
        return Some("The password is the email. Choose another one.");
    }
    None
}

fn is_common(lower: &str) -> bool {
    COMMONEST.lines().filter(|line| !line.starts_with('#')).any(|line| line == lower)
}

/// Space separators (Zs) except U+0020.
fn is_blank(c: char) -> bool {
    matches!(c, '\u{a0}' | '\u{1680}' | '\u{2000}'..='\u{200a}' | '\u{202f}' | '\u{205f}' | '\u{3000}')
}

/// What the class FreeformClass of RFC 8264 disallows: control characters, invisible ones, parts of old Hangul
/// syllables, private ones. The joiners U+200C and U+200D are let through: words of several scripts need them.
fn is_forbidden(c: char) -> bool {
    let is_ignorable = matches!(c,
        '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{17b4}'..='\u{17b5}' | '\u{180b}'..='\u{180f}' | '\u{200b}'
        | '\u{200e}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{3164}'
        | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{ffa0}' | '\u{fff0}'..='\u{fff8}' | '\u{1bca0}'..='\u{1bca3}'
        | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{e0fff}');
    let is_old_hangul =
        matches!(c, '\u{1100}'..='\u{11ff}' | '\u{a960}'..='\u{a97c}' | '\u{d7b0}'..='\u{d7fb}');
    let is_private =
        matches!(c, '\u{e000}'..='\u{f8ff}' | '\u{f0000}'..='\u{ffffd}' | '\u{100000}'..='\u{10fffd}');
    let is_no_character = matches!(c, '\u{fdd0}'..='\u{fdef}') || u32::from(c) & 0xfffe == 0xfffe;
    c.is_control() || is_ignorable || is_old_hangul || is_private || is_no_character
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The examples of RFC 8265, section 4.3, and the forms that systems send.
    #[test]
    fn a_password_has_one_form_however_it_is_typed() {
        for (typed, form) in [
            ("correct horse battery staple", "correct horse battery staple"),
            ("Correct Horse Battery Staple", "Correct Horse Battery Staple"),
            ("πßå", "πßå"),
            ("Jack of ♦s", "Jack of ♦s"),
            ("foo\u{1680}bar", "foo bar"),
            ("foo\u{a0}bar\u{3000}", "foo bar "),
            ("fru\u{308}hstu\u{308}ck", "fr\u{fc}hst\u{fc}ck"),
            ("\u{212b}ngstr\u{f6}m", "\u{c5}ngstr\u{f6}m"),
            ("ｐａｓｓ", "ｐａｓｓ"), // its width stays
        ] {
            assert_eq!(prepared(typed), form, "{typed:?}");
        }
    }

    #[test]
    fn what_cannot_be_typed_again_or_is_guessed_first_is_refused() {
        let refused = |password: &str| refusal(password, "anna@example.org");
        for good in [
            "correct horse",
            "frühstück",
            "fru\u{308}hstu\u{308}ck",
            "eight \u{1fae8}\u{1f9d1}\u{200d}\u{1f680}",
            "می\u{200c}خواهم",
            "password is long enough",
            "Anna@example.org ",
        ] {
            assert_eq!(refused(good), None, "{good:?}");
        }
        for (bad, why) in [
            ("", "8 characters"),
            ("seven c", "8 characters"),
            ("u\u{308}u\u{308}u\u{308}u\u{308}", "8 characters"), // four letters, with their dots apart
            ("my cat is a tab\t", "control"),
            ("soft\u{ad}hyphen", "invisible"),
            ("henry\u{200b}henry", "invisible"),
            ("private \u{e000}", "invisible"),
            ("noncharacter \u{1fffe}", "invisible"),
            ("Password1", "commonest"),
            ("QWERTYUIOP", "commonest"),
            ("passwort2025", "commonest"),
            ("ANNA@example.org", "email"),
        ] {
            assert!(refused(bad).is_some_and(|reason| reason.contains(why)), "{bad:?}: {:?}", refused(bad));
        }
        assert!(refused(&"x".repeat(1_025)).is_some_and(|reason| reason.contains("1024")));
        assert_eq!(refused(&"xy z".repeat(256)), None);
    }

    /// Goal: the list says what it is to say. Method: its order, and that each entry could be chosen but for the list.
    #[test]
    fn the_list_is_in_order_and_has_only_what_could_be_chosen() {
        let lines: Vec<&str> = COMMONEST.lines().filter(|line| !line.starts_with('#')).collect();
        assert!(lines.len() > 5_000, "{}", lines.len());
        assert!(lines.is_sorted_by(|a, b| a < b));
        for line in lines {
            assert!(line.chars().count() >= CHARS_MIN && prepared(line) == line, "{line:?}");
            assert_eq!(line.to_lowercase(), line);
        }
    }
}
