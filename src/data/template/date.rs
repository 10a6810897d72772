//! The function `strftime_now` of chat templates. The clock is read once per process, in UTC.
//! `SOURCE_DATE_EPOCH` (seconds since 1970) replaces the clock, so that a run of an earlier day can be
//! reproduced. Format codes that depend on a locale or time zone are an error.

use std::sync::OnceLock;
use std::time::{SystemTime, UNIX_EPOCH};

/// Last second of the year 9999, in seconds since 1970; later years do not fit in four digits.
const LAST_SECOND: u64 = 253_402_300_799;

const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

/// Time that every template of this process sees, in seconds since 1970.
static NOW: OnceLock<u64> = OnceLock::new();

/// Returns the frozen time in seconds since 1970. The first call in a process freezes it.
pub(crate) fn now() -> u64 {
    *NOW.get_or_init(|| {
        let fixed = std::env::var("SOURCE_DATE_EPOCH").ok().and_then(|text| text.trim().parse().ok());
        fixed
            .filter(|&seconds| seconds <= LAST_SECOND)
            .unwrap_or_else(|| SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs()))
    })
}

/// Sets the frozen time of a worker process to its parent's. Has no effect after the first call of [`now`].
pub(crate) fn freeze_date(seconds: u64) {
    let _ = NOW.set(seconds.min(LAST_SECOND));
}

/// The frozen date as `YYYY-MM-DD`, for the log.
pub fn frozen_date() -> String {
    let date = Date::new(now());
    format!("{:04}-{:02}-{:02}", date.year, date.month, date.day)
}

/// Formats the frozen time.
pub(super) fn strftime_now(format: &str) -> Result<String, String> {
    strftime(now(), format)
}

/// Formats a time in seconds since 1970 as `YYYY-MM-DD HH:MM:SS`, in UTC.
pub fn utc(seconds: u64) -> String {
    let date = Date::new(seconds.min(LAST_SECOND));
    let (hour, minute, second) = (date.second / 3600, date.second / 60 % 60, date.second % 60);
    format!("{:04}-{:02}-{:02} {hour:02}:{minute:02}:{second:02}", date.year, date.month, date.day)
}

/// Date and time in UTC.
struct Date {
    year: u64,
    /// 1 to 12.
    month: u64,
    /// 1 to 31.
    day: u64,
    /// 1 to 366.
    day_of_year: u64,
    /// 0 is Sunday.
    weekday: u64,
    /// Seconds since midnight.
    second: u64,
}

impl Date {
    fn new(seconds: u64) -> Self {
        let leap = |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
        let length = |year: u64| if leap(year) { 366 } else { 365 };
        let days = seconds / 86_400;
        let (mut year, mut rest) = (1970, days);
        while rest >= length(year) {
            rest -= length(year);
            year += 1;
        }
        let day_of_year = rest + 1;
        let february = if leap(year) { 29 } else { 28 };
        let mut month = 1;
        for days in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
            if rest < days {
                break;
            }
            rest -= days;
            month += 1;
        }
        Self { year, month, day: rest + 1, day_of_year, weekday: (days + 4) % 7, second: seconds % 86_400 }
    }
}

fn strftime(seconds: u64, format: &str) -> Result<String, String> {
    let date = Date::new(seconds);
    let (hour, minute, second) = (date.second / 3600, date.second / 60 % 60, date.second % 60);
    let hour12 = if hour % 12 == 0 { 12 } else { hour % 12 };
    let (month, weekday) = (MONTHS[date.month as usize - 1], DAYS[date.weekday as usize]);
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut code = chars.next();
        // `%-d` is `%d` without its leading zero.
        let unpadded = code == Some('-');
        if unpadded {
            code = chars.next();
        }
        let number = |value: u64, width: usize| if unpadded { value.to_string() } else { format!("{value:0width$}") };
        let text = match code {
            Some('Y') => number(date.year, 4),
            Some('y') => number(date.year % 100, 2),
            Some('m') => number(date.month, 2),
            Some('d') => number(date.day, 2),
            Some('j') => number(date.day_of_year, 3),
            Some('H') => number(hour, 2),
            Some('I') => number(hour12, 2),
            Some('M') => number(minute, 2),
            Some('S') => number(second, 2),
            Some('w') => date.weekday.to_string(),
            Some('B') => month.to_owned(),
            Some('b') => month[..3].to_owned(),
            Some('A') => weekday.to_owned(),
            Some('a') => weekday[..3].to_owned(),
            Some('p') => if hour < 12 { "AM" } else { "PM" }.to_owned(),
            Some('F') => format!("{:04}-{:02}-{:02}", date.year, date.month, date.day),
            Some('T') => format!("{hour:02}:{minute:02}:{second:02}"),
            Some('%') => "%".to_owned(),
            Some(other) => return Err(format!("strftime_now: the code %{other} is not supported")),
            None => return Err("strftime_now: the format ends with a single %".into()),
        };
        out.push_str(&text);
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::strftime;

    #[test]
    fn dates_match_the_calendar() {
        // Expected values are from Python's datetime.fromtimestamp(t, timezone.utc).strftime(...).
        let all = "%Y-%m-%d %H:%M:%S %a %A %b %B %j %y %I %p %-d %w %%";
        assert_eq!(
            strftime(951_827_696, all).unwrap(),
            "2000-02-29 12:34:56 Tue Tuesday Feb February 060 00 12 PM 29 2 %"
        );
        assert_eq!(strftime(0, "%d %b %Y").unwrap(), "01 Jan 1970");
        assert_eq!(strftime(4_107_542_399, "%F %T").unwrap(), "2100-02-28 23:59:59");
        assert_eq!(strftime(4_107_542_400, "%F").unwrap(), "2100-03-01");
        assert_eq!(strftime(1_735_689_599, "%-d %j").unwrap(), "31 366");
        assert_eq!(super::utc(951_827_696), "2000-02-29 12:34:56");
        assert_eq!(super::utc(u64::MAX), "9999-12-31 23:59:59");
    }

    #[test]
    fn unknown_codes_are_refused() {
        assert!(strftime(0, "%Q").unwrap_err().contains("%Q"));
        assert!(strftime(0, "x%").is_err());
    }
}
