use std::fmt;

use jiff::civil::Date;
use jiff::fmt::temporal::{DateTimeParser, Pieces};

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
    /// The text is a time in neither format.
    #[error("expected a time such as \"2013-05-01T15:42:50.000Z\" or \"2013-05-01 15:42:50\"")]
    Spelling,
    /// The year does not have four digits.
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
    /// 9999-12-31T23:59:59.999Z: later times have no four-digit year.
    const MAX_MS: i64 = 253_402_300_799_999;

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

    /// The time without what is finer than `precision`.
    pub const fn truncated(self, precision: Precision) -> Self {
        let unit = precision.unit_ms();
        Self(self.0.div_euclid(unit) * unit)
    }

    /// The time moved by `ms`, held within bounds.
    pub const fn shifted(self, ms: i64) -> Self {
        Self::from_ms(self.0.saturating_add(ms))
    }

    /// How many whole days lie between `earlier` and this instant; negative if this instant is the earlier
    /// one.
    pub const fn days_since(self, earlier: Self) -> i64 {
        (self.0 - earlier.0).div_euclid(Self::DAY_MS)
    }

    /// The day of this instant, UTC.
    pub fn date(self) -> Date {
        let (year, month, day) = civil(self.0.div_euclid(Self::DAY_MS));
        Date::new(year, month, day).unwrap_or(EPOCH_DAY)
    }

    /// The instant `ms` milliseconds after 1970, if it lies within the years 0001 to 9999.
    pub fn try_from_ms(ms: i64) -> Result<Self, TimeError> {
        if (Self::MIN_MS..=Self::MAX_MS).contains(&ms) { Ok(Self(ms)) } else { Err(TimeError::Range) }
    }

    /// Reads RFC 3339 in any zone, or `YYYY-MM-DD HH:MM:SS`, which is UTC. Parts finer than a millisecond are
    /// rounded down, before 1970 as well as after.
    pub fn parse(text: &str) -> Result<Self, TimeError> {
        static PARSER: DateTimeParser = DateTimeParser::new();
        if !text.as_bytes().get(..4).is_some_and(|year| year.iter().all(u8::is_ascii_digit)) {
            return Err(TimeError::Spelling);
        }
        let ms = match PARSER.parse_timestamp(text) {
            // The library truncates towards 1970, so times before 1970 need one less.
            Ok(instant) if instant.subsec_nanosecond() % 1_000_000 < 0 => instant.as_millisecond() - 1,
            Ok(instant) => instant.as_millisecond(),
            // A text without a zone, or an instant of the last day of the year 9999, which the library does
            // not support.
            Err(_) => ms_of_parts(text)?,
        };
        Self::try_from_ms(ms)
    }

    /// Writes the instant in the format of `precision`.
    pub fn format(self, precision: Precision) -> TimestampText {
        let (year, month, day) = civil(self.0.div_euclid(Self::DAY_MS));
        let of_day = self.0.rem_euclid(Self::DAY_MS);
        let mut text = *b"0000-00-00T00:00:00.000Z";
        digits(&mut text[..4], year.unsigned_abs());
        digits(&mut text[5..7], month.unsigned_abs().into());
        digits(&mut text[8..10], day.unsigned_abs().into());
        digits(&mut text[11..13], (of_day / 3_600_000) as u16);
        digits(&mut text[14..16], (of_day / 60_000 % 60) as u16);
        digits(&mut text[17..19], (of_day / 1_000 % 60) as u16);
        match precision {
            Precision::Seconds => {
                text[10] = b' ';
                TimestampText { text, length: 19 }
            }
            Precision::Milliseconds => {
                digits(&mut text[20..23], (of_day % 1_000) as u16);
                TimestampText { text, length: 24 }
            }
        }
    }
}

/// Fills `out` with the last digits of `number`. A manifest writes a time for every row, and `fmt` would take
/// most of that time.
fn digits(out: &mut [u8], mut number: u16) {
    for digit in out.iter_mut().rev() {
        *digit = b'0' + (number % 10) as u8;
        number /= 10;
    }
}

/// An instant as text.
#[derive(Clone, Copy)]
pub struct TimestampText {
    text: [u8; 24],
    length: usize,
}

impl TimestampText {
    /// The text: ASCII without anything that JSON would escape.
    pub fn as_bytes(&self) -> &[u8] {
        &self.text[..self.length]
    }

    /// The text as a string.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(self.as_bytes()).unwrap_or_default()
    }
}

impl fmt::Display for TimestampText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

const EPOCH_DAY: Date = Date::constant(1970, 1, 1);

/// The instant that a text denotes by date, time and an optional offset, in ms since 1970, rounded down.
fn ms_of_parts(text: &str) -> Result<i64, TimeError> {
    let parts = Pieces::parse(text).map_err(|_| TimeError::Spelling)?;
    let time = parts.time().ok_or(TimeError::Spelling)?;
    let offset_s = parts.to_numeric_offset().map(|offset| i64::from(offset.seconds()));
    let is_whole = offset_s.is_some() || text.len() >= "0000-00-00 00:00:00".len();
    if !is_whole || parts.time_zone_annotation().is_some() {
        return Err(TimeError::Spelling); // an hour without a zone, or a named zone
    }
    let days = i64::from((parts.date() - EPOCH_DAY).get_days());
    let of_day_s = i64::from(time.hour()) * 3_600 + i64::from(time.minute()) * 60 + i64::from(time.second());
    let seconds = days * (Timestamp::DAY_MS / 1_000) + of_day_s - offset_s.unwrap_or(0);
    Ok(seconds * 1_000 + i64::from(time.millisecond()))
}

/// Year, month and day of the day that begins this many days after 1970-01-01, in the Gregorian calendar.
///
/// Source: Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms", `civil_from_days`. The time library
/// has no instant on the last day of the year 9999.
const fn civil(days: i64) -> (i16, i8, i8) {
    let from_march = days + 719_468; // 0000-03-01: a leap day comes last in its year
    let era = from_march.div_euclid(146_097); // an era has 400 years
    let day_of_era = from_march.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + (month <= 2) as i64;
    (year as i16, month as i8, day as i8)
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
        assert_eq!(at.format(Precision::Milliseconds).to_string(), "2013-05-01T15:42:50.343Z");
        assert_eq!(at.format(Precision::Seconds).to_string(), "2013-05-01 15:42:50");
    }

    #[test]
    fn what_is_no_instant_is_refused() {
        for text in
            ["", "2013-05-01", "yesterday", "2013-13-01 00:00:00", "15:42:50", "+002013-05-01T15:42:50Z"]
        {
            assert!(Timestamp::parse(text).is_err(), "{text:?}");
        }
        for text in ["9999-12-31T23:59:59-00:01", "0001-01-01T00:00:59+00:01", "0000-12-31 23:59:59"] {
            assert_eq!(Timestamp::parse(text), Err(TimeError::Range), "{text}");
        }
        for text in ["9999-12-31T23", "9999-12-31T23:59:59[Asia/Tokyo]", "9999-12-31T24:00:00Z"] {
            assert_eq!(Timestamp::parse(text), Err(TimeError::Spelling), "{text}");
        }
    }

    #[test]
    fn what_is_finer_than_a_millisecond_is_rounded_down() {
        for (text, ms) in [
            ("1969-12-31T23:59:59.343999Z", -657),
            ("1969-12-31T23:59:59.343Z", -657),
            ("1969-12-31 23:59:59.343999999", -657),
            ("1969-12-31T23:59:59.999999999Z", -1),
            ("1969-12-31T23:59:59.000000001Z", -1_000),
            ("1970-01-01T00:00:00.000999999Z", 0),
            ("1970-01-01T00:00:00.343999Z", 343),
            ("0001-01-01T00:00:00.000000001Z", Timestamp::MIN_MS),
            ("9999-12-31T23:59:59.999999999Z", Timestamp::MAX_MS),
            ("9999-12-31 23:59:59.999999999", Timestamp::MAX_MS),
        ] {
            assert_eq!(Timestamp::parse(text), Ok(Timestamp(ms)), "{text}");
        }
    }

    /// Goal: the last day of the year 9999 works like any other. Method: every format of its times, for which
    /// the time library has no instants.
    #[test]
    fn the_last_day_is_a_day() {
        const LAST: i64 = Timestamp::MAX_MS - 999;
        for (text, ms) in [
            ("9999-12-31T23:59:59Z", LAST),
            ("9999-12-31T23:59:59z", LAST),
            ("9999-12-31t23:59:59Z", LAST),
            ("9999-12-31 23:59:59", LAST),
            ("9999-12-31T23:59:59", LAST),
            ("9999-12-31 23:59:59Z", LAST),
            ("9999-12-31T23:59:60Z", LAST),
            ("9999-12-31T23:59:59+00:00", LAST),
            ("9999-12-31T23:59:59-00:00", LAST),
            ("9999-12-31T18:59:59-05:00", LAST),
            ("9999-12-31T23:59:59.5+14:00", LAST - 14 * 3_600_000 + 500),
            ("9999-12-31T00:00:00Z", LAST + 1_000 - Timestamp::DAY_MS),
            ("0001-01-01T00:00:00Z", Timestamp::MIN_MS),
            ("0001-01-01 00:00:00", Timestamp::MIN_MS),
            ("0001-01-01T14:00:00+14:00", Timestamp::MIN_MS),
        ] {
            assert_eq!(Timestamp::parse(text), Ok(Timestamp(ms)), "{text}");
        }
        assert_eq!(Timestamp(LAST).format(Precision::Seconds).to_string(), "9999-12-31 23:59:59");
        assert_eq!(Timestamp(LAST).date(), Date::constant(9999, 12, 31));
    }

    /// Method: every day of the range is compared with the time library's own count.
    #[test]
    fn days_are_counted_as_the_calendar_has_them() {
        let mut day = Date::constant(1, 1, 1);
        for days in Timestamp::MIN_MS / Timestamp::DAY_MS..=Timestamp::MAX_MS / Timestamp::DAY_MS {
            assert_eq!(civil(days), (day.year(), day.month(), day.day()));
            day = day.tomorrow().unwrap_or(day);
        }
    }

    #[test]
    fn bounds_print_and_read_back() {
        for ms in [Timestamp::MIN_MS, Timestamp::MAX_MS, -1, 0] {
            let text = Timestamp(ms).format(Precision::Milliseconds).to_string();
            assert_eq!(Timestamp::parse(&text), Ok(Timestamp(ms)), "{text}");
        }
        assert_eq!(Timestamp(-1).truncated(Precision::Seconds).ms(), -1_000);
    }
}
