//! Unix milliseconds as RFC 3339 text, without a clock.

/// Appends `2024-03-01T12:00:00.000Z`.
pub fn push_rfc3339(out: &mut Vec<u8>, unix_ms: i64) {
    let days = unix_ms.div_euclid(86_400_000);
    let ms_of_day = unix_ms.rem_euclid(86_400_000);
    // Days to civil date, after Howard Hinnant's algorithm (era of 400 years).
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let day_of_era = z.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_shifted + 2) / 5 + 1;
    let month = if month_shifted < 10 { month_shifted + 3 } else { month_shifted - 9 };
    let year = (year_of_era + era * 400 + i64::from(month <= 2)).clamp(0, 9999);
    let mut digits = |value: i64, width: u32, after: &[u8]| {
        for place in (0..width).rev() {
            out.push(b'0' + (value / 10_i64.pow(place) % 10) as u8);
        }
        out.extend_from_slice(after);
    };
    digits(year, 4, b"-");
    digits(month, 2, b"-");
    digits(day, 2, b"T");
    digits(ms_of_day / 3_600_000, 2, b":");
    digits(ms_of_day / 60_000 % 60, 2, b":");
    digits(ms_of_day / 1_000 % 60, 2, b".");
    digits(ms_of_day % 1_000, 3, b"Z");
}

/// `2024-03-01T12:00:00.000Z`.
#[must_use]
pub fn rfc3339(unix_ms: i64) -> String {
    let mut out = Vec::with_capacity(24);
    push_rfc3339(&mut out, unix_ms);
    String::from_utf8(out).expect("digits and ASCII separators")
}

#[cfg(test)]
mod tests {
    #[test]
    fn known_instants() {
        assert_eq!(super::rfc3339(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(super::rfc3339(1_709_294_400_123), "2024-03-01T12:00:00.123Z");
        assert_eq!(super::rfc3339(951_782_399_999), "2000-02-28T23:59:59.999Z");
        assert_eq!(super::rfc3339(-1), "1969-12-31T23:59:59.999Z");
    }
}
