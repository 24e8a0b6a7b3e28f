use std::fmt;

use jiff::civil::{Date, DateTime};
use jiff::fmt::temporal::DateTimeParser;
use jiff::tz::Offset;

/// An instant: milliseconds since 1970, UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(i64);

/// How finely a schema's times are kept and how they are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Precision {
    /// `2013-05-01T15:42:50.000Z`
    #[default]
    Milliseconds,
    /// `2013-05-01 15:42:50`, as the core seed writes them.
    Seconds,
}

/// Why a text is not an instant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TimeError {
    /// Not a time in either spelling.
    #[error("expected a time such as \"2013-05-01T15:42:50.000Z\" or \"2013-05-01 15:42:50\"")]
    Spelling,
    /// A time that the four digits of a year do not reach.
    #[error("expected a time between the years 0001 and 9999")]
    Range,
}

impl Precision {
    /// The smallest step between two times, in milliseconds.
    pub const fn unit_ms(self) -> i64 {
        match self {
            Self::Milliseconds => 1,
            Self::Seconds => 1_000,
        }
    }
}

impl Timestamp {
    /// Milliseconds in a day.
    pub const DAY_MS: i64 = 86_400_000;
    /// 0001-01-01T00:00:00Z: earlier times have no four-digit year.
    const MIN_MS: i64 = -62_135_596_800_000;
    /// 9999-12-30T22:00:00Z: the latest that the time library prints in every zone.
    const MAX_MS: i64 = 253_402_207_200_000;

    /// The instant `ms` milliseconds after 1970, held within the years 0001 to 9999.
    pub const fn from_ms(ms: i64) -> Self {
        if ms < Self::MIN_MS {
            Self(Self::MIN_MS)
        } else if ms > Self::MAX_MS {
            Self(Self::MAX_MS)
        } else {
            Self(ms)
        }
    }

    /// Milliseconds since 1970.
    pub const fn ms(self) -> i64 {
        self.0
    }

    /// Cut down to what `precision` keeps.
    pub const fn truncated(self, precision: Precision) -> Self {
        let unit = precision.unit_ms();
        Self(self.0.div_euclid(unit) * unit)
    }

    /// Moved by `ms`, held within bounds.
    pub const fn shifted(self, ms: i64) -> Self {
        Self::from_ms(self.0.saturating_add(ms))
    }

    /// How many whole days lie between `earlier` and this instant; below 0 if it is the later one.
    pub const fn days_since(self, earlier: Self) -> i64 {
        (self.0 - earlier.0).div_euclid(Self::DAY_MS)
    }

    /// The day it falls on, UTC.
    pub fn date(self) -> Date {
        civil(self).date()
    }

    /// Reads RFC 3339 in any zone, or `YYYY-MM-DD HH:MM:SS`, which is UTC.
    pub fn parse(text: &str) -> Result<Self, TimeError> {
        static PARSER: DateTimeParser = DateTimeParser::new();
        if !text.as_bytes().get(..4).is_some_and(|year| year.iter().all(u8::is_ascii_digit)) {
            return Err(TimeError::Spelling);
        }
        let ms = match PARSER.parse_timestamp(text) {
            Ok(instant) => instant.as_millisecond(),
            Err(_) => {
                let civil = PARSER.parse_datetime(text).map_err(|_| TimeError::Spelling)?;
                if text.len() < "0000-00-00 00:00:00".len() || text.contains('[') {
                    return Err(TimeError::Spelling); // a bare date, or one with a named zone
                }
                let instant = Offset::UTC.to_timestamp(civil).map_err(|_| TimeError::Range)?;
                instant.as_millisecond()
            }
        };
        if (Self::MIN_MS..=Self::MAX_MS).contains(&ms) { Ok(Self(ms)) } else { Err(TimeError::Range) }
    }

    /// Writes the instant as `precision` spells it.
    pub fn spelt(self, precision: Precision) -> Spelt {
        let civil = civil(self);
        let mut text = *b"0000-00-00T00:00:00.000Z";
        digits(&mut text[..4], civil.year().unsigned_abs());
        digits(&mut text[5..7], civil.month().unsigned_abs().into());
        digits(&mut text[8..10], civil.day().unsigned_abs().into());
        digits(&mut text[11..13], civil.hour().unsigned_abs().into());
        digits(&mut text[14..16], civil.minute().unsigned_abs().into());
        digits(&mut text[17..19], civil.second().unsigned_abs().into());
        match precision {
            Precision::Seconds => {
                text[10] = b' ';
                Spelt { text, length: 19 }
            }
            Precision::Milliseconds => {
                digits(&mut text[20..23], civil.millisecond().unsigned_abs());
                Spelt { text, length: 24 }
            }
        }
    }
}

/// Fills `place` with the last digits of `number`. A roll call writes a time for every row: `fmt` would take
/// most of it.
fn digits(place: &mut [u8], mut number: u16) {
    for digit in place.iter_mut().rev() {
        *digit = b'0' + (number % 10) as u8;
        number /= 10;
    }
}

/// An instant as text.
#[derive(Clone, Copy)]
pub struct Spelt {
    text: [u8; 24],
    length: usize,
}

impl Spelt {
    /// The text: ASCII without anything that JSON would escape.
    pub fn as_bytes(&self) -> &[u8] {
        &self.text[..self.length]
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(self.as_bytes()).unwrap_or_default()
    }
}

impl fmt::Display for Spelt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// `Timestamp` is held within jiff's range, so the conversion cannot fail; 1970 stands in.
fn civil(at: Timestamp) -> DateTime {
    let instant = jiff::Timestamp::from_millisecond(at.0).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
    Offset::UTC.to_datetime(instant)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_of_one_instant_is_one_instant() {
        let spellings = [
            "2013-05-01T15:42:50.343Z",
            "2013-05-01T15:42:50.343000+00:00",
            "2013-05-01T17:42:50.343+02:00",
            "2013-05-01 15:42:50.343",
            "2013-05-01T15:42:50.3439Z",
        ];
        for text in spellings {
            assert_eq!(Timestamp::parse(text), Ok(Timestamp(1_367_422_970_343)), "{text}");
        }
        let at = Timestamp(1_367_422_970_343);
        assert_eq!(at.spelt(Precision::Milliseconds).to_string(), "2013-05-01T15:42:50.343Z");
        assert_eq!(at.spelt(Precision::Seconds).to_string(), "2013-05-01 15:42:50");
    }

    #[test]
    fn what_is_no_instant_is_refused() {
        for text in
            ["", "2013-05-01", "yesterday", "2013-13-01 00:00:00", "15:42:50", "+002013-05-01T15:42:50Z"]
        {
            assert!(Timestamp::parse(text).is_err(), "{text:?}");
        }
        assert_eq!(Timestamp::parse("9999-12-31 23:59:59"), Err(TimeError::Range));
    }

    #[test]
    fn bounds_print_and_read_back() {
        for ms in [Timestamp::MIN_MS, Timestamp::MAX_MS, -1, 0] {
            let text = Timestamp(ms).spelt(Precision::Milliseconds).to_string();
            assert_eq!(Timestamp::parse(&text), Ok(Timestamp(ms)), "{text}");
        }
        assert_eq!(Timestamp(-1).truncated(Precision::Seconds).ms(), -1_000);
    }
}
