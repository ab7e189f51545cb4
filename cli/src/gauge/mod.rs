//! A gauge of the persona's drift on the line below an answer that is being written.
//!
//! The gauge consists of strings that the caller writes to the terminal, mixed with the text. The text keeps
//! its place: the gauge is drawn below the cursor and removed before text reaches its line.
//!
//! Terminals disagree about the width of some characters. The gauge therefore follows two columns, the
//! smallest and the largest in which the cursor may be, and is drawn where both are on one row.

use std::env;
use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};

use terminal_size::terminal_size_of;
use unicode_width::UnicodeWidthChar;

/// Time between two drawings. It makes at most 15 a second.
const INTERVAL: Duration = Duration::from_millis(67);

/// Columns of the narrowest terminal with a gauge.
const MIN_COLUMNS: usize = 30;

/// Rows of the lowest terminal with a gauge: the text's and the gauge's.
const MIN_ROWS: usize = 2;

/// Columns to the right of the cursor that have to be free while the gauge is there. The terminal itself
/// writes `^C` there for Ctrl-C. One more keeps the cursor from the right margin, where the next character
/// begins a new row: some terminals lose this state when they restore the cursor.
const ROOM: usize = 3;

/// Columns between two tab stops.
const TAB: usize = 8;

/// Cells of the bar.
const CELLS: usize = 24;

/// Goes to the beginning of the line below and remembers the cursor. IND (`ESC D`) keeps the column, and
/// scrolls where the text is at the bottom of the screen. A movement down alone would end on the text's own
/// line there.
const BELOW: &str = "\x1bD\x1b[A\x1b7\x1b[B\r";

/// Returns to the text, with its column and its colours.
const BACK: &str = "\x1b8";

/// What the gauge shows.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Shown {
    pub(crate) block: usize,
    /// Of the last token.
    pub(crate) projection: f64,
    /// Of the last tokens, which the alarm compares with its threshold.
    pub(crate) average: f64,
    pub(crate) alarm: Option<Scale>,
    pub(crate) is_raised: bool,
}

/// The thresholds of the alarm, in units of the projection.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Scale {
    /// The alarm is raised below it.
    pub(crate) alarm: f64,
    /// Where the projections usually are.
    pub(crate) usual: f64,
}

/// The size of a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Size {
    pub(crate) columns: usize,
    pub(crate) rows: usize,
}

/// A gauge below one answer, which begins in the first column.
///
/// After [`Gauge::end`] the screen shows what it would show without the gauge, with one exception. Where the
/// text ends on the last row, the screen may have scrolled by one row more, and the last row is empty.
pub(crate) struct Gauge {
    size: Box<dyn Fn() -> Option<Size>>,
    has_color: bool,
    /// Columns of the terminal when text was last written.
    columns: Option<usize>,
    /// Where the cursor is. `None` after a control character, up to the next newline.
    cursor: Option<Cursor>,
    /// An escape sequence of the text may have moved the cursor onto older text, or changed what any
    /// character means. There is no gauge after it.
    is_off: bool,
    /// The line that is below the text now.
    drawn: Option<String>,
    /// The time of the last drawing, and whether it showed a raised alarm.
    last: Option<(Instant, bool)>,
}

impl Gauge {
    /// Returns the gauge of stdout. `None` where stdout is no terminal, or none that moves its cursor.
    pub(crate) fn at_stdout() -> Option<Self> {
        // A console of Windows interprets escape sequences only after a request.
        let moves = cfg!(unix) && env::var_os("TERM").is_some_and(|term| !term.is_empty() && term != "dumb");
        let no_color = env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        (moves && io::stdout().is_terminal()).then(|| Self::new(size_of_stdout, no_color))
    }

    /// Makes the gauge of a terminal. `size` is called for every text, because a terminal may be resized.
    pub(crate) fn new(size: impl Fn() -> Option<Size> + 'static, no_color: bool) -> Self {
        Self {
            size: Box::new(size),
            has_color: !no_color,
            columns: None,
            cursor: Some(Cursor::default()),
            is_off: false,
            drawn: None,
            last: None,
        }
    }

    /// Returns what to write to the terminal for a piece of text, gauge included. Without a level the gauge
    /// stays as it is, or is removed if the text needs its line. An empty piece only updates the gauge.
    pub(crate) fn text(&mut self, piece: &str, level: Option<&Shown>, now: Instant) -> String {
        let size = (self.size)();
        let is_resized = self.columns.is_some() && self.columns != size.map(|size| size.columns);
        self.columns = size.map(|size| size.columns);
        if is_resized {
            // The terminal may have broken the lines elsewhere.
            self.cursor = None;
        }
        let before = self.cursor;
        self.follow(piece);
        let place = self.place();
        let stays = place.is_some()
            && place == before.and_then(Cursor::row)
            && !piece.contains(|c: char| c.is_control() && c != '\t');
        let mut written = if stays { String::new() } else { self.clear(size, is_resized) };
        written += piece;
        if let (Some(_), Some(size), Some(level)) = (place, size, level)
            && self.is_due(level, now)
            && let Some(line) = self.line(level, size)
            && self.drawn.as_ref() != Some(&line)
        {
            // What is there is overwritten. A line that is cleared before it is drawn would flicker.
            written += BELOW;
            written += &line;
            written += "\x1b[K";
            written += BACK;
            self.drawn = Some(line);
            self.last = Some((now, level.is_raised));
        }
        written
    }

    /// Returns what removes the gauge.
    pub(crate) fn end(&mut self) -> String {
        let size = (self.size)();
        let is_resized = self.columns != size.map(|size| size.columns);
        self.clear(size, is_resized)
    }

    fn clear(&mut self, size: Option<Size>, is_resized: bool) -> String {
        // With one row the gauge is out of sight, and there is no line below.
        if self.drawn.take().is_none() || size.is_some_and(|size| size.rows < MIN_ROWS) {
            return String::new();
        }
        // A terminal that became narrower may have broken the gauge into several lines.
        let erase = if is_resized { "\x1b[J" } else { "\x1b[2K" };
        // Terminals erase with the background of the text.
        let plain = if self.has_color { "\x1b[0m" } else { "" };
        format!("{BELOW}{plain}{erase}{BACK}")
    }

    /// Moves the cursor over a piece of text.
    fn follow(&mut self, piece: &str) {
        for c in piece.chars() {
            // C1 controls are escape sequences in one character.
            self.is_off |= c == '\x1b' || ('\u{80}'..='\u{9f}').contains(&c);
            self.cursor = match (c, self.cursor, self.columns) {
                ('\n', ..) => Some(Cursor::default()),
                ('\t', Some(cursor), Some(columns)) => Some(cursor.tab(columns)),
                (c, Some(cursor), Some(columns)) if !c.is_control() => Some(cursor.put(c, columns)),
                _ => None,
            };
        }
    }

    /// Returns the row of the cursor where the gauge may be below it.
    fn place(&self) -> Option<usize> {
        let cursor = self.cursor.filter(|_| !self.is_off)?;
        cursor.row().filter(|_| self.columns.is_some_and(|columns| cursor.wide.column + ROOM <= columns))
    }

    /// Returns whether a level is drawn now. A change of the alarm is drawn at once.
    fn is_due(&self, level: &Shown, now: Instant) -> bool {
        self.last.is_none_or(|(time, was_raised)| {
            level.is_raised != was_raised || now.saturating_duration_since(time) >= INTERVAL
        })
    }

    /// Returns the line of a level with its colours. `None` where the terminal is too small.
    fn line(&self, level: &Shown, size: Size) -> Option<String> {
        if size.columns < MIN_COLUMNS || size.rows < MIN_ROWS {
            return None;
        }
        // A line up to the right margin would have some terminals begin another.
        let line = level.line(size.columns - 1);
        Some(match (self.has_color, level.is_raised) {
            (false, _) => line,
            (true, false) => format!("\x1b[0;2m{line}\x1b[0m"),
            (true, true) => format!("\x1b[0;31m{line}\x1b[0m"),
        })
    }
}

impl Shown {
    /// Returns the level as a line of at most `width` characters. Parts that do not fit are left out, those
    /// to the right first. `ALARM` stays. A terminal too narrow for the bar shows numbers in its place.
    fn line(&self, width: usize) -> String {
        let end = if self.is_raised { " ALARM" } else { "" };
        let bar = self.alarm.as_ref().and_then(|scale| scale.bar(self.average));
        let parts = [
            Some(format!("block {}", self.block)),
            bar.map(|bar| format!(" [{bar}]")),
            Some(format!(" {:6.1}", self.projection)),
            Some(format!(", average {:6.1}", self.average)),
            self.alarm.as_ref().map(|scale| format!(", alarm below {:.1}", scale.alarm)),
        ];
        let mut line = String::new();
        for part in parts.into_iter().flatten() {
            if line.len() + part.len() + end.len() <= width {
                line += &part;
            }
        }
        line + end
    }
}

impl Scale {
    /// Returns the bar of an average: `|` is the alarm's threshold, and `#` reaches up to the average. `None`
    /// where the thresholds are in no order.
    fn bar(&self, average: f64) -> Option<String> {
        let unit = self.usual - self.alarm;
        // The bar is three units wide. The thresholds divide it into thirds.
        let cells = |value: f64| ((value - self.alarm + unit) / (3.0 * unit)) * CELLS as f64;
        // A conversion to an integer clamps, and makes 0 of NaN.
        let filled = cells(average).round() as usize;
        let cell = |cell| match cell {
            _ if cell == CELLS / 3 => '|',
            _ if cell < filled => '#',
            _ => '.',
        };
        (unit > 0.0 && unit.is_finite()).then(|| (0..CELLS).map(cell).collect())
    }
}

/// A place on the screen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Place {
    /// From the last newline on.
    row: usize,
    /// The number of columns at the right margin, before the row is broken.
    column: usize,
}

impl Place {
    /// Moves by the width of a character. One that does not fit begins a row.
    fn put(self, width: usize, columns: usize) -> Self {
        if self.column + width > columns {
            Self { row: self.row + 1, column: width }
        } else {
            Self { column: self.column + width, ..self }
        }
    }

    /// Moves to the next tab stop. The last one is the last column.
    fn tab(self, columns: usize) -> Self {
        let next = (self.column / TAB + 1) * TAB;
        Self { column: next.min(columns.saturating_sub(1)), ..self }
    }
}

/// Between which places the cursor is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Cursor {
    /// If every character is as narrow as terminals draw it.
    narrow: Place,
    /// If every character is as wide as terminals draw it.
    wide: Place,
    /// Whether a joiner came last. Some terminals draw what follows in the same cell.
    is_joined: bool,
}

impl Cursor {
    /// Returns the row, if it is certain.
    fn row(self) -> Option<usize> {
        (self.narrow.row == self.wide.row).then_some(self.wide.row)
    }

    fn put(self, c: char, columns: usize) -> Self {
        let narrow = if self.is_joined { 0 } else { narrow(c) };
        Self {
            narrow: self.narrow.put(narrow, columns),
            wide: self.wide.put(wide(c), columns),
            is_joined: c == '\u{200d}',
        }
    }

    fn tab(self, columns: usize) -> Self {
        // At the right margin some terminals forget that the next character begins a row, others keep it.
        let wide = if self.wide.column < columns { self.wide.tab(columns) } else { self.wide };
        Self { narrow: self.narrow.tab(columns), wide, is_joined: false }
    }
}

/// Returns the smallest width of a character in any terminal.
fn narrow(c: char) -> usize {
    match c {
        // A skin tone is part of the emoji before it.
        '\u{1f3fb}'..='\u{1f3ff}' => 0,
        // Older terminals draw emoji in one column.
        '\u{2300}'..='\u{2bff}' | '\u{1f000}'..='\u{1faff}' => c.width().unwrap_or(0).min(1),
        _ => c.width().unwrap_or(0),
    }
}

/// Returns the largest width of a character in any terminal: East Asian ones draw many signs in two columns,
/// and simple ones draw a mark beside its letter.
fn wide(c: char) -> usize {
    c.width_cjk().unwrap_or(0).max(1)
}

fn size_of_stdout() -> Option<Size> {
    let (columns, rows) = terminal_size_of(io::stdout())?;
    Some(Size { columns: columns.0.into(), rows: rows.0.into() })
}

#[cfg(test)]
mod tests;
