//! The gauge on terminals that are emulated.

use std::cell::Cell;
use std::rc::Rc;

use vt100::{Parser, Screen};

use super::*;

const SIZES: [Size; 6] = [size(40, 6), size(80, 24), size(30, 2), size(33, 3), size(79, 10), size(200, 4)];

const WORDS: [&str; 26] = [
    " ",
    " ",
    " ",
    " ",
    "a",
    "the",
    "answer",
    "axis",
    "persona's",
    "2026",
    ",",
    ".",
    "\n",
    "\n\n",
    "\t",
    "—",
    "“quoted”",
    "é",
    "e\u{301}",
    "漢字",
    "日本語の文",
    "한국어",
    "🙂",
    "👩\u{200d}🔬",
    "☺\u{fe0f}",
    "👍🏽",
];

const fn size(columns: usize, rows: usize) -> Size {
    Size { columns, rows }
}

/// Returns numbers that are random enough, and the same every time.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % end
    }

    /// Returns a text whose lines are short, long, or end at the right margin.
    fn text(&mut self, columns: usize) -> String {
        let mut text = String::new();
        for _ in 0..self.below(120) {
            match self.below(20) {
                0 => text += &"x".repeat(columns * (1 + self.below(2))),
                1 => text += &"字".repeat(columns / 2),
                2 => text += &"y".repeat(columns - 1 - self.below(3)),
                _ => text += WORDS[self.below(WORDS.len())],
            }
            if self.below(40) == 0 {
                text.push('\n');
            }
        }
        text
    }

    fn pieces<'a>(&mut self, text: &'a str) -> Vec<&'a str> {
        let (mut pieces, mut rest) = (Vec::new(), text);
        let longest = 1 + self.below(60);
        while !rest.is_empty() {
            let count = 1 + self.below(longest);
            let end = rest.char_indices().nth(count).map_or(rest.len(), |(end, _)| end);
            let (piece, after) = rest.split_at(end);
            pieces.push(piece);
            rest = after;
        }
        pieces
    }
}

/// A terminal in cooked mode.
struct Terminal(Parser);

impl Terminal {
    fn new(size: Size) -> Self {
        Self(Parser::new(size.rows as u16, size.columns as u16, 1000))
    }

    fn write(&mut self, text: &str) {
        // This parser lacks IND. VT does the same in all terminals, but is no control of the ISO.
        self.0.process(text.replace("\x1bD", "\x0b").replace('\n', "\r\n").as_bytes());
    }

    fn screen(&self) -> &Screen {
        self.0.screen()
    }

    fn row(&self, row: u16) -> String {
        let columns = self.screen().size().1;
        self.screen().rows(0, columns).nth(row.into()).unwrap_or_default()
    }

    fn cursor(&self) -> (u16, u16) {
        self.screen().cursor_position()
    }

    fn below(&self) -> String {
        self.row(self.cursor().0 + 1)
    }

    fn text(&self) -> String {
        self.screen().contents()
    }
}

/// Demands that two screens are equal, up to a row by which the first has scrolled more.
fn assert_same(gauged: &Terminal, plain: &Terminal, context: &str) {
    let (rows, columns) = plain.screen().size();
    let shift = plain.cursor().0 - gauged.cursor().0;
    assert!(shift == 0 || shift == 1 && plain.cursor().0 == rows - 1, "{context}: shift {shift}");
    assert_eq!(gauged.cursor().1, plain.cursor().1, "{context}: column");
    for row in 0..rows - shift {
        assert_eq!(gauged.row(row), plain.row(row + shift), "{context}: row {row}");
        assert_eq!(
            gauged.screen().row_wrapped(row),
            plain.screen().row_wrapped(row + shift),
            "{context}: end of row {row}"
        );
        for column in 0..columns {
            let cells = (gauged.screen().cell(row, column), plain.screen().cell(row + shift, column));
            assert_eq!(cells.0, cells.1, "{context}: row {row}, column {column}");
        }
    }
    if shift == 1 {
        assert_eq!(gauged.row(rows - 1), "", "{context}: last row");
    }
}

fn gauge(size: Size) -> Gauge {
    Gauge::new(move || Some(size), false)
}

fn level() -> Shown {
    let alarm = Some(Scale { alarm: -32.9, usual: -8.0 });
    Shown { block: 21, projection: -12.3, average: -8.1, alarm, is_raised: false }
}

fn raised() -> Shown {
    Shown { average: -40.0, is_raised: true, ..level() }
}

fn later(start: Instant, milliseconds: u64) -> Instant {
    start + Duration::from_millis(milliseconds)
}

#[test]
fn random_texts_are_on_the_screen_as_without_the_gauge() {
    let mut random = Random(7);
    let mut drawings = 0;
    for run in 0..180 {
        let size = SIZES[run % SIZES.len()];
        let (mut gauged, mut plain) = (Terminal::new(size), Terminal::new(size));
        let mut gauge = gauge(size);
        let mut now = Instant::now();
        // A conversation that goes on is further down.
        let above = "\n".repeat(random.below(2 * size.rows));
        gauged.write(&above);
        plain.write(&above);
        let text = random.text(size.columns);
        let mut shown = level();
        for (number, piece) in random.pieces(&text).into_iter().enumerate() {
            let context = format!("run {run}, {size:?}, piece {number}: {piece:?} of {text:?}");
            now = later(now, random.below(100) as u64);
            shown.projection = random.below(1000) as f64 / -10.0;
            shown.is_raised ^= random.below(20) == 0;
            gauged.write(&gauge.text(piece, (random.below(10) > 0).then_some(&shown), now));
            plain.write(piece);
            // Where the gauge is removed, the screen is already the same.
            match &gauge.drawn {
                None => assert_same(&gauged, &plain, &context),
                Some(line) => {
                    drawings += 1;
                    let below = gauged.below();
                    assert!(below.starts_with("block 21 ") && line.contains(&below), "{context}");
                    assert_eq!(gauged.text().matches("block").count(), 1, "{context}");
                }
            }
        }
        gauged.write(&gauge.end());
        assert_same(&gauged, &plain, &format!("run {run}, {size:?}, end of {text:?}"));
        // The newline after an answer leaves no difference.
        gauged.write("\n");
        plain.write("\n");
        assert_eq!(gauged.text(), plain.text());
        assert_eq!(gauged.cursor(), plain.cursor());
    }
    assert!(drawings > 1000, "{drawings}");
}

#[test]
fn the_gauge_is_below_the_cursor_and_goes_at_the_end() {
    let size = size(80, 24);
    let mut terminal = Terminal::new(size);
    let mut gauge = gauge(size);
    terminal.write(&gauge.text("Hello", Some(&level()), Instant::now()));
    assert_eq!(terminal.cursor(), (0, 5));
    assert_eq!(
        terminal.text(),
        "Hello\nblock 21 [########|#######........]  -12.3, average   -8.1, alarm below -32.9"
    );
    assert!(terminal.screen().cell(1, 0).is_some_and(|cell| cell.dim()));
    terminal.write(&gauge.end());
    assert_eq!((terminal.text().as_str(), terminal.cursor()), ("Hello", (0, 5)));
    assert_eq!(gauge.end(), "");
}

#[test]
fn at_the_bottom_the_text_scrolls_for_the_gauge() {
    let size = size(80, 4);
    let mut terminal = Terminal::new(size);
    let mut gauge = gauge(size);
    let start = Instant::now();
    terminal.write(&gauge.text("1\n2\n3\n4", Some(&level()), start));
    assert_eq!(terminal.cursor(), (2, 1));
    assert!(terminal.text().starts_with("2\n3\n4\nblock 21 "), "{}", terminal.text());
    terminal.write(&gauge.text("\n5", Some(&level()), later(start, 100)));
    assert_eq!(terminal.cursor(), (2, 1));
    assert!(terminal.text().starts_with("3\n4\n5\nblock 21 "), "{}", terminal.text());
    terminal.write(&gauge.end());
    assert_eq!((terminal.text().as_str(), terminal.cursor()), ("3\n4\n5", (2, 1)));
}

#[test]
fn a_text_up_to_the_right_margin_stays_there() {
    for columns in [40, 80] {
        let size = size(columns, 6);
        let (mut terminal, mut plain) = (Terminal::new(size), Terminal::new(size));
        let mut gauge = gauge(size);
        let mut now = Instant::now();
        for _ in 0..3 * columns {
            now = later(now, 100);
            terminal.write(&gauge.text("x", Some(&level()), now));
            plain.write("x");
        }
        terminal.write(&gauge.end());
        assert_same(&terminal, &plain, "at the margin");
        assert_eq!(terminal.cursor(), (2, columns as u16));
    }
}

#[test]
fn text_that_stays_on_its_line_leaves_the_gauge_alone() {
    let mut gauge = gauge(size(80, 24));
    let start = Instant::now();
    assert!(gauge.text("a", Some(&level()), start).contains("block 21"));
    let changed = Shown { projection: 3.0, ..level() };
    assert_eq!(gauge.text(" word", Some(&changed), later(start, 50)), " word");
    assert!(gauge.text("!", Some(&changed), later(start, 70)).contains("    3.0"));
    assert_eq!(gauge.text("?", Some(&changed), later(start, 200)), "?");
    assert_eq!(gauge.text("?", None, later(start, 400)), "?");
}

#[test]
fn there_are_at_most_15_drawings_a_second() {
    for shown in [level(), raised()] {
        let mut gauge = gauge(size(80, 24));
        let start = Instant::now();
        let drawings = (0..1000).filter(|&time| {
            let shown = Shown { projection: time as f64, ..shown.clone() };
            gauge.text("a\n", Some(&shown), later(start, time)).contains("block")
        });
        assert_eq!(drawings.count(), 15);
    }
}

#[test]
fn a_change_of_the_alarm_is_drawn_at_once() {
    let size = size(90, 24);
    let mut terminal = Terminal::new(size);
    let mut gauge = gauge(size);
    let start = Instant::now();
    terminal.write(&gauge.text("a", Some(&level()), start));
    terminal.write(&gauge.text("b", Some(&raised()), later(start, 1)));
    assert_eq!(
        terminal.below(),
        "block 21 [######..|...............]  -12.3, average  -40.0, alarm below -32.9 ALARM"
    );
    assert_eq!(terminal.screen().cell(1, 0).map(|cell| cell.fgcolor()), Some(vt100::Color::Idx(1)));
    terminal.write(&gauge.text("c", Some(&level()), later(start, 2)));
    assert!(!terminal.text().contains("ALARM"));
    assert_eq!((terminal.row(0).as_str(), terminal.cursor()), ("abc", (0, 3)));
    // At the right margin the change has to wait.
    let margin = "d".repeat(87);
    assert!(!gauge.text(&margin, Some(&raised()), later(start, 3)).contains("block"));
    assert!(gauge.text("e", Some(&raised()), later(start, 4)).contains("ALARM"));
}

#[test]
fn a_line_loses_parts_in_a_narrow_terminal() {
    let lines = [
        (77, "block 21 [########|#######........]  -12.3, average   -8.1, alarm below -32.9"),
        (76, "block 21 [########|#######........]  -12.3, average   -8.1"),
        (57, "block 21 [########|#######........]  -12.3"),
        (41, "block 21 [########|#######........]"),
        (34, "block 21  -12.3, average   -8.1"),
        (29, "block 21  -12.3"),
    ];
    for (width, line) in lines {
        assert_eq!(level().line(width), line);
    }
    let line = "block 21 [######..|...............]  -12.3, average  -40.0 ALARM";
    assert_eq!(raised().line(79), line);
    for width in 29..100 {
        let line = raised().line(width);
        assert!(line.len() <= width && line.ends_with(" ALARM"), "{line}");
    }
}

#[test]
fn a_level_without_an_alarm_has_no_bar() {
    let level = Shown { alarm: None, ..level() };
    assert_eq!(level.line(79), "block 21  -12.3, average   -8.1");
}

#[test]
fn the_bar_ends_at_its_ends() {
    let scale = Scale { alarm: -10.0, usual: 0.0 };
    let bars = [
        (-1e9, "........|..............."),
        (f64::NAN, "........|..............."),
        (-20.0, "........|..............."),
        (-15.0, "####....|..............."),
        (-10.0, "########|..............."),
        (0.0, "########|#######........"),
        (10.0, "########|###############"),
        (1e9, "########|###############"),
    ];
    for (average, bar) in bars {
        assert_eq!(scale.bar(average).as_deref(), Some(bar), "{average}");
    }
    for usual in [-10.0, -11.0, f64::NAN, f64::INFINITY] {
        assert_eq!(Scale { alarm: -10.0, usual }.bar(0.0), None);
    }
}

#[test]
fn a_small_terminal_has_no_gauge() {
    for size in [Some(size(29, 24)), Some(size(80, 1)), Some(size(0, 0)), Some(size(1, 5)), None] {
        let mut gauge = Gauge::new(move || size, false);
        for piece in ["Hello", "\n", "\t", "漢字"] {
            assert_eq!(gauge.text(piece, Some(&level()), Instant::now()), piece);
        }
        assert_eq!(gauge.end(), "");
    }
}

#[test]
fn without_colour_no_attribute_is_set() {
    let size = size(90, 24);
    for shown in [level(), raised()] {
        let mut terminal = Terminal::new(size);
        let mut gauge = Gauge::new(move || Some(size), true);
        let drawn = gauge.text("a", Some(&shown), Instant::now());
        terminal.write(&drawn);
        assert!(terminal.below().starts_with("block 21 "));
        let cell = terminal.screen().cell(1, 0).expect("the screen has a second row");
        assert_eq!((cell.fgcolor(), cell.dim()), (vt100::Color::Default, false));
        for written in [drawn, gauge.end()] {
            let ends = written.split("\x1b[").skip(1).map(|rest| rest.trim_start_matches(['0', '2', ';']));
            assert!(ends.clone().count() > 0 && ends.clone().all(|end| !end.starts_with('m')));
        }
    }
}

#[test]
fn after_a_control_character_there_is_no_gauge_up_to_the_next_newline() {
    for control in ["\r", "\x08", "\x07", "\x0b", "\x0c", "\x7f"] {
        let mut gauge = gauge(size(80, 24));
        let start = Instant::now();
        assert!(gauge.text("a", Some(&level()), start).contains("block"));
        let cleared = gauge.text(control, Some(&level()), later(start, 100));
        assert!(cleared.ends_with(&format!("\x1b[2K{BACK}{control}")), "{cleared:?}");
        assert_eq!(gauge.text("b", Some(&level()), later(start, 200)), "b");
        assert!(gauge.text("\nc", Some(&level()), later(start, 300)).contains("block"));
    }
}

#[test]
fn after_an_escape_sequence_there_is_no_gauge() {
    for escape in ["\x1b[5A", "\x1b", "\u{9b}5A"] {
        let mut gauge = gauge(size(80, 24));
        let start = Instant::now();
        let _ = gauge.text("a", Some(&level()), start);
        let cleared = gauge.text(escape, Some(&level()), later(start, 100));
        assert!(cleared.ends_with(escape) && cleared.contains("\x1b[2K"), "{cleared:?}");
        assert_eq!(gauge.text("b\nc", Some(&level()), later(start, 200)), "b\nc");
        assert_eq!(gauge.end(), "");
    }
}

#[test]
fn a_resized_terminal_is_cleared_and_has_a_gauge_after_the_next_newline() {
    let columns = Rc::new(Cell::new(80));
    let asked = Rc::clone(&columns);
    let mut gauge = Gauge::new(move || Some(size(asked.get(), 24)), false);
    let start = Instant::now();
    assert!(gauge.text("a", Some(&level()), start).contains("block"));
    columns.set(60);
    let cleared = gauge.text("b", Some(&level()), later(start, 100));
    assert!(cleared.ends_with("\x1b[J\x1b8b"), "{cleared:?}");
    assert_eq!(gauge.text("c", Some(&level()), later(start, 200)), "c");
    assert!(gauge.text("\nd", Some(&level()), later(start, 300)).contains("block"));
    columns.set(20);
    assert!(gauge.end().contains("\x1b[J"));
}

#[test]
fn an_echoed_interrupt_leaves_no_gauge_behind() {
    let size = size(40, 6);
    for count in 1..=2 * size.columns {
        let mut terminal = Terminal::new(size);
        let mut gauge = gauge(size);
        let text = "x".repeat(count);
        terminal.write(&gauge.text(&text, Some(&level()), Instant::now()));
        terminal.write("^C");
        assert!(gauge.drawn.is_none() || terminal.cursor().1 < size.columns as u16, "{count}");
        terminal.write(&gauge.end());
        assert_eq!(terminal.text().replace('\n', ""), text + "^C");
    }
}

#[test]
fn no_width_is_outside_of_the_two_that_are_followed() {
    for c in ('\0'..=char::MAX).filter(|c| !c.is_control()) {
        let widths = [c.width(), c.width_cjk()].map(Option::unwrap_or_default);
        assert!(widths.iter().all(|width| (narrow(c)..=wide(c)).contains(width)), "{c:?}: {widths:?}");
    }
}

#[test]
fn the_gauge_leaves_the_last_column_free() {
    let line = level().line(usize::MAX);
    for (columns, is_whole) in [(line.len(), false), (line.len() + 1, true)] {
        let drawn = gauge(size(columns, 6)).text("a", Some(&level()), Instant::now());
        assert_eq!(drawn.contains(&line), is_whole);
    }
}

#[test]
fn both_columns_are_those_of_some_terminal() {
    // Narrow: an emoji of several characters is one, and old ones are letters. Wide: each is for itself.
    let columns = [
        ("👍🏽", (1, 4)),
        ("👩\u{200d}🔬", (1, 5)),
        ("☺\u{fe0f}", (1, 2)),
        ("漢字", (4, 4)),
        ("e\u{301}", (1, 2)),
        ("—", (1, 2)),
        ("a\tb", (9, 9)),
    ];
    for (text, expected) in columns {
        let mut gauge = gauge(size(40, 6));
        gauge.text(text, None, Instant::now());
        let cursor = gauge.cursor.map(|cursor| (cursor.narrow.column, cursor.wide.column));
        assert_eq!(cursor, Some(expected), "{text}");
    }
}

#[test]
fn a_tab_at_the_right_margin_may_lead_to_either_row() {
    let mut gauge = gauge(size(40, 6));
    let start = Instant::now();
    let text = "x".repeat(40) + "\ty";
    assert_eq!(gauge.text(&text, Some(&level()), start), text);
    let places = gauge.cursor.map(|cursor| (cursor.narrow, cursor.wide));
    assert_eq!(places, Some((Place { row: 0, column: 40 }, Place { row: 1, column: 1 })));
    assert!(gauge.text("y", Some(&level()), later(start, 100)).contains("block"));
}

#[test]
fn a_row_that_is_uncertain_has_no_gauge() {
    let mut gauge = gauge(size(40, 6));
    let start = Instant::now();
    // Between 36 and 42 columns, depending on how wide the terminal draws a dash.
    let text = "—".repeat(6) + &"x".repeat(30);
    assert_eq!(gauge.text(&text, Some(&level()), start), text);
    // On the second row in both cases.
    assert!(gauge.text("xxxxxx", Some(&level()), later(start, 100)).contains("block"));
}
