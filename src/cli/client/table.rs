//! Tables and numbers for people.

use std::io::{self, Write};
use std::time::Duration;

/// Aligned columns; a column that is empty in every row is left out.
pub(super) struct Table {
    columns: Vec<(&'static str, Align)>,
    rows: Vec<Vec<String>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Align {
    Left,
    Right,
}

impl Table {
    pub(super) fn new(columns: impl IntoIterator<Item = (&'static str, Align)>) -> Self {
        Self { columns: columns.into_iter().collect(), rows: Vec::new() }
    }

    /// As many cells as there are columns.
    pub(super) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().map(|cell| shown(&cell)).collect());
    }

    pub(super) fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        let widths: Vec<usize> = (0..self.columns.len()).map(|index| self.width(index)).collect();
        let header: Vec<String> = self.columns.iter().map(|(name, _)| (*name).to_owned()).collect();
        for row in std::iter::once(&header).chain(&self.rows) {
            let mut line = String::new();
            for ((cell, (_, align)), width) in row.iter().zip(&self.columns).zip(&widths) {
                match align {
                    _ if *width == 0 => continue,
                    Align::Left => line.push_str(&format!("{cell:<width$}  ")),
                    Align::Right => line.push_str(&format!("{cell:>width$}  ")),
                }
            }
            writeln!(out, "{}", line.trim_end())?;
        }
        Ok(())
    }

    /// Zero: the column has nothing to show.
    fn width(&self, index: usize) -> usize {
        let cells = self.rows.iter().filter_map(|row| row.get(index));
        match cells.map(|cell| cell.chars().count()).max() {
            None | Some(0) => 0,
            Some(widest) => widest.max(self.columns.get(index).map_or(0, |(name, _)| name.len())),
        }
    }
}

/// Text from elsewhere, made harmless for a terminal.
pub(super) fn shown(text: &str) -> String {
    text.chars().flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] }).collect()
}

/// `1.5 MiB`.
pub(super) fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    // Tenths, so that no floating point is needed.
    let mut tenths = u128::from(count) * 10 / 1024;
    let mut unit = 0;
    while tenths >= 10_240 && unit + 1 < UNITS.len() {
        tenths /= 1024;
        unit += 1;
    }
    format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[unit])
}

/// `350ms`, `12s`, `3m 20s`, `2days 5h`: the two largest units.
pub(super) fn age(milliseconds: u64) -> String {
    let duration = if milliseconds < 1000 {
        Duration::from_millis(milliseconds)
    } else {
        Duration::from_secs(milliseconds / 1000)
    };
    let text = humantime::format_duration(duration).to_string();
    text.split(' ').take(2).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_for_people() {
        for (count, want) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1536, "1.5 KiB"),
            (1 << 20, "1.0 MiB"),
            (u64::MAX, "15.9 EiB"),
        ] {
            assert_eq!(bytes(count), want);
        }
        for (ms, want) in [(0, "0s"), (350, "350ms"), (1999, "1s"), (200_500, "3m 20s"), (190_000_000, "2days 4h")] {
            assert_eq!(age(ms), want);
        }
    }

    #[test]
    fn columns_line_up_and_empty_ones_vanish() {
        let mut table = Table::new([("A", Align::Left), ("EMPTY", Align::Left), ("N", Align::Right)]);
        table.row(["x".into(), String::new(), "5".into()]);
        table.row(["lo\nng".into(), String::new(), "1000".into()]);
        let mut out = Vec::new();
        table.write(&mut out).expect("write");
        assert_eq!(String::from_utf8(out).expect("utf-8"), "A          N\nx          5\nlo\\nng  1000\n");
    }
}
