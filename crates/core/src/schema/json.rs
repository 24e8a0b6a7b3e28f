//! JSON in one canonical form. Numbers stay text, not doubles, so no digit is lost.

use std::collections::BTreeMap;

/// Why a `json` column cannot hold a valid JSON text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JsonFault {
    /// Arrays and objects nest deeper than a row allows.
    #[error("expected JSON of fewer arrays and objects inside one another")]
    TooDeep,
    /// An escape such as `\ud83d` without its other half. The grammar allows it, but it is not Unicode.
    #[error("expected text, not half of a surrogate pair (\\ud800 to \\udfff)")]
    HalfPair,
    /// A number beyond every double. Most JSON libraries fail on it, and so on the whole response.
    #[error("expected numbers that a double can hold")]
    HugeNumber,
}

/// Writes JSON compactly and with sorted members. Of a duplicate member the last one counts, as in
/// JavaScript. Numbers keep the digits that were sent: `1.0` stays `1.0`, and `1e2` stays `1e2`.
///
/// - `raw` is one valid JSON value, such as a `RawValue` holds. For other input the result is unspecified
///   text.
/// - Bounds: at most `levels` nested arrays and objects.
pub fn canonical_json(raw: &str, levels: usize) -> Result<String, JsonFault> {
    let mut out = String::with_capacity(raw.len());
    Scanner { raw, at: 0 }.value(levels, &mut out)?;
    Ok(out)
}

struct Scanner<'a> {
    raw: &'a str,
    at: usize,
}

impl<'a> Scanner<'a> {
    /// Returns the next byte that is not a blank, without consuming it.
    fn peek(&mut self) -> Option<u8> {
        let bytes = self.raw.as_bytes();
        while matches!(bytes.get(self.at), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
        bytes.get(self.at).copied()
    }

    /// Consumes the opening bracket or a separator; returns `false` after it has consumed the closing
    /// bracket.
    fn goes_on(&mut self, end: u8) -> bool {
        let next = self.peek();
        self.at += 1;
        if next != Some(b',') && next != Some(b'[') && next != Some(b'{') {
            return false;
        }
        let is_empty = self.peek().is_none_or(|byte| byte == end);
        self.at += usize::from(is_empty);
        !is_empty
    }

    fn value(&mut self, levels: usize, out: &mut String) -> Result<(), JsonFault> {
        match self.peek() {
            Some(b'[') => {
                let levels = levels.checked_sub(1).ok_or(JsonFault::TooDeep)?;
                out.push('[');
                let first = out.len();
                while self.goes_on(b']') {
                    if out.len() > first {
                        out.push(',');
                    }
                    self.value(levels, out)?;
                }
                out.push(']');
            }
            Some(b'{') => self.object(levels.checked_sub(1).ok_or(JsonFault::TooDeep)?, out)?,
            Some(b'"') => {
                let text = self.string();
                // Without an escape a text has one form only.
                if text.contains('\\') {
                    out.push_str(&written(&unescaped(text)?))
                } else {
                    out.push_str(text)
                }
            }
            _ => {
                let rest = self.raw.get(self.at..).unwrap_or_default();
                let ends = |byte: char| matches!(byte, ',' | ']' | '}' | ' ' | '\t' | '\n' | '\r');
                let word = rest.find(ends).map_or(rest, |end| &rest[..end]);
                self.at += word.len();
                // Only an exponent or many digits reach such a size.
                let may_be_huge = word.len() > 300 || word.contains(['e', 'E']);
                if may_be_huge && word.parse::<f64>().is_ok_and(f64::is_infinite) {
                    return Err(JsonFault::HugeNumber);
                }
                out.push_str(word);
            }
        }
        Ok(())
    }

    fn object(&mut self, levels: usize, out: &mut String) -> Result<(), JsonFault> {
        let mut members = BTreeMap::new();
        while self.goes_on(b'}') {
            self.peek();
            let name = unescaped(self.string())?;
            self.peek();
            self.at += 1; // the colon
            let mut value = String::new();
            self.value(levels, &mut value)?;
            members.insert(name, value);
        }
        out.push('{');
        for (index, (name, value)) in members.iter().enumerate() {
            if index > 0 {
                out.push(',');
            }
            out.push_str(&written(name));
            out.push(':');
            out.push_str(value);
        }
        out.push('}');
        Ok(())
    }

    /// Reads a string with its quotes.
    fn string(&mut self) -> &'a str {
        let (raw, start) = (self.raw, self.at);
        let mut bytes = raw.as_bytes().iter().enumerate().skip(start + 1);
        let mut end = raw.len();
        while let Some((at, byte)) = bytes.next() {
            match byte {
                b'\\' => drop(bytes.next()),
                b'"' => {
                    end = at + 1;
                    break;
                }
                _ => {}
            }
        }
        self.at = end;
        raw.get(start..end).unwrap_or_default()
    }
}

fn unescaped(string: &str) -> Result<String, JsonFault> {
    serde_json::from_str(string).map_err(|_| JsonFault::HalfPair)
}

fn written(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn one_spelling_for_all() {
        let cases = [
            (" null ", "null"),
            ("[ ]", "[]"),
            ("{ }", "{}"),
            ("\t[\n1 ,\r2 ]", "[1,2]"),
            (r#"{"b":1,"a":{"d":[ ],"c":""}}"#, r#"{"a":{"c":"","d":[]},"b":1}"#),
            (r#"{"a":1,"\u0061":2}"#, r#"{"a":2}"#),
            (r#""a\/\u00e9\n\"\\""#, r#""a/é\n\"\\""#),
            (r#""\ud83d\ude00""#, "\"\u{1f600}\""),
            (r#"["]",",","}"]"#, r#"["]",",","}"]"#),
            ("-0.0", "-0.0"),
            (
                "[123456789012345678901234567890,1.0,1e2,1E+2,1e-999]",
                "[123456789012345678901234567890,1.0,1e2,1E+2,1e-999]",
            ),
        ];
        for (raw, canonical) in cases {
            assert_eq!(canonical_json(raw, 9).as_deref(), Ok(canonical), "{raw}");
        }
    }

    #[test]
    fn what_no_column_holds() {
        assert_eq!(canonical_json("[[[]]]", 2), Err(JsonFault::TooDeep));
        assert_eq!(canonical_json(&"{\"a\":".repeat(100_000), 16), Err(JsonFault::TooDeep));
        for half in [r#""\ud83d""#, r#"["\ude00"]"#, r#"{"\ud83d":1}"#, r#""\ud83d\ud83d""#] {
            assert_eq!(canonical_json(half, 9), Err(JsonFault::HalfPair), "{half}");
        }
        for huge in ["1e309", "[-1E400]", "{\"a\":1e999}", &"9".repeat(400)] {
            assert_eq!(canonical_json(huge, 9), Err(JsonFault::HugeNumber), "{huge}");
        }
    }

    /// The scanner ends without a panic for any text.
    #[test]
    fn other_text_does_no_harm() {
        for text in
            ["", "[", "{", "\"", "\"\\", "{\"a\"", "{\"a\":", "[1", "]", "é", "[é", "{é", "{}}", "[,", "\"é"]
        {
            let _ = canonical_json(text, 9);
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "[\\[\\]{}\",:\\\\u0d8é 1e-]{0,40}") {
            let _ = canonical_json(&text, 4);
        }
    }
}
