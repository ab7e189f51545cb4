//! `axiscap inspect`: the content of a cap file and how it was made.

use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};

use axiscap::file::gguf::{Array, Value};
use axiscap::file::{CapFile, ControlVector, FileError, ModelInfo, Warning};
use axiscap::{Axis, Bound, Cap};
use serde::ser::{Serialize, SerializeMap, Serializer};

use crate::fingerprint::Fingerprint;
use crate::output::{self, counted};

/// Below this cosine, axes of adjacent blocks are hardly the same trait: released axes have 0.96 to 0.996.
const UNRELATED: f64 = 0.5;
/// A unit axis with a coordinate above this is mostly that coordinate.
const DOMINANT: f32 = 0.5;

/// Show what a cap file holds and how it was made.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  axiscap inspect lab/assets/smollm2-135m-instruct.caps.gguf")]
pub(crate) struct Args {
    /// The cap file, file of axes, or control vector (GGUF)
    file: PathBuf,
    /// Print JSON instead of a table; a bound or norm that is not there is null
    #[arg(long)]
    json: bool,
}

/// Runs the command.
///
/// # Errors
/// The file cannot be read, or the output cannot be written.
pub(crate) fn run(args: Args) -> anyhow::Result<()> {
    let report = Report::of(&args.file)?;
    output::text(&if args.json { serde_json::to_string_pretty(&report)? + "\n" } else { report.to_string() })
}

/// The kind of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
enum Kind {
    /// Caps, at least one of which has a bound.
    Caps,
    /// Caps without bounds, the output of `extract`.
    Axes,
    /// A control vector that is no cap file.
    ControlVector,
}

/// Everything the command prints.
#[derive(Debug, serde::Serialize)]
struct Report {
    /// As text. Bytes that are not Unicode are replaced.
    file: String,
    kind: Kind,
    width: usize,
    model: Fingerprint,
    orientation: Option<String>,
    /// Rows at so many first positions are left alone.
    skip_positions: u32,
    caps: Vec<CapLine>,
    neighbours: Vec<Neighbours>,
    /// Whether llama.cpp accepts the file as a control vector.
    control_vector: bool,
    origin: Entries,
    unknown: Entries,
    warnings: Vec<Note>,
}

#[derive(Debug, serde::Serialize)]
struct CapLine {
    cap: usize,
    block: usize,
    name: Option<String>,
    floor: Option<f32>,
    ceiling: Option<f32>,
    strength: f32,
    norm: Option<f32>,
    largest: Coordinate,
    #[serde(skip)]
    bound: Bound,
}

/// The coordinate of an axis with the largest magnitude.
#[derive(Debug, serde::Serialize)]
struct Coordinate {
    index: usize,
    value: f32,
}

/// Two caps of one name on consecutive capped blocks.
#[derive(Debug, serde::Serialize)]
struct Neighbours {
    caps: [usize; 2],
    blocks: [usize; 2],
    cosine: f64,
}

/// A warning: its kind for machines, its text for people, and the caps it is about.
#[derive(Debug, serde::Serialize)]
struct Note {
    kind: &'static str,
    message: String,
    caps: Vec<usize>,
}

impl Report {
    fn of(path: &Path) -> Result<Self, FileError> {
        match CapFile::read(path) {
            Err(FileError::PlainControlVector { .. }) => {
                Ok(Self::new(path, from_control_vector(path)?, true))
            }
            other => Ok(Self::new(path, other?, false)),
        }
    }

    /// Makes the report on a file, which is a plain control vector if `plain`.
    fn new(path: &Path, file: CapFile, plain: bool) -> Self {
        let caps: Vec<_> = file
            .caps
            .caps()
            .iter()
            .enumerate()
            .map(|(index, entry)| CapLine::of(index, entry.block, &entry.cap))
            .collect();
        let neighbours = neighbours(&file);
        let kind = match (plain, file.is_unbounded()) {
            (true, _) => Kind::ControlVector,
            (false, true) => Kind::Axes,
            (false, false) => Kind::Caps,
        };
        let warnings = notes(kind, &file, &caps, &neighbours);
        let unknown = Entries(file.unknown().to_vec());
        let model = Fingerprint::new(file.model.clone(), file.caps.width());
        Self {
            file: path.display().to_string(),
            kind,
            width: file.caps.width(),
            control_vector: file.is_control_vector(),
            model: if plain { model.without_blocks() } else { model },
            orientation: file.orientation,
            skip_positions: file.caps.policy().skip_positions,
            caps,
            neighbours,
            origin: Entries(file.origin.iter().map(|(key, value)| (key.to_owned(), value.clone())).collect()),
            unknown,
            warnings,
        }
    }
}

/// Reads a control vector as a file of axes. It does not hold the number of blocks of its model, so the
/// smallest possible number is assumed.
fn from_control_vector(path: &Path) -> Result<CapFile, FileError> {
    let vector = ControlVector::read(path)?;
    let blocks = vector.directions.iter().map(|(block, _)| block + 1).max().unwrap_or(1);
    vector.into_axes(ModelInfo::new("", blocks)).map_err(|error| error.in_file(path))
}

impl CapLine {
    fn of(index: usize, block: usize, cap: &Cap) -> Self {
        let finite = |bound: f32| Some(bound).filter(|bound| bound.is_finite());
        Self {
            cap: index,
            block,
            name: cap.name().map(str::to_owned),
            floor: finite(cap.bound().lo()),
            ceiling: finite(cap.bound().hi()),
            strength: cap.strength(),
            norm: cap.axis().norm(),
            largest: largest(cap.axis()),
            bound: cap.bound(),
        }
    }
}

fn largest(axis: &Axis) -> Coordinate {
    let values = axis.values().iter().copied().enumerate();
    let (index, value) = values.max_by(|(_, a), (_, b)| a.abs().total_cmp(&b.abs())).unwrap_or((0, 0.0));
    Coordinate { index, value }
}

/// Compares, for each name, the first cap of that name on each block with the one on the next capped block.
fn neighbours(file: &CapFile) -> Vec<Neighbours> {
    let caps = file.caps.caps();
    let mut named = BTreeMap::<_, BTreeMap<usize, usize>>::new();
    for (index, entry) in caps.iter().enumerate() {
        named.entry(entry.cap.name()).or_default().entry(entry.block).or_insert(index);
    }
    let mut neighbours = Vec::new();
    for blocks in named.into_values() {
        let blocks: Vec<_> = blocks.into_iter().collect();
        for pair in blocks.windows(2) {
            let [(from, i), (to, j)] = [pair[0], pair[1]];
            // Axes of one set are of one width.
            if let Ok(cosine) = caps[i].cap.axis().cosine(caps[j].cap.axis()) {
                neighbours.push(Neighbours { caps: [i, j], blocks: [from, to], cosine });
            }
        }
    }
    neighbours
}

fn notes(kind: Kind, file: &CapFile, caps: &[CapLine], neighbours: &[Neighbours]) -> Vec<Note> {
    let mut notes = Vec::new();
    let mut note = |kind, message: String, caps| notes.push(Note { kind, message, caps });
    let calibrate = "`axiscap calibrate` gives it bounds on its model";
    match kind {
        Kind::ControlVector => {
            note(
                "plain-control-vector",
                format!("a plain control vector has no bounds; {calibrate}"),
                vec![],
            );
        }
        Kind::Axes => {
            note(
                "unbounded",
                format!("no cap has a bound: the file observes, and moves nothing; {calibrate}"),
                vec![],
            );
        }
        Kind::Caps => {}
    }
    for warning in file.warnings() {
        let kind = match warning {
            Warning::UnusedTensor { .. } => "unused-tensor",
            Warning::MisnamedTensor { .. } => "misnamed-tensor",
            _ => "other",
        };
        note(kind, warning.to_string(), vec![]);
    }
    for pair in neighbours.iter().filter(|pair| pair.blocks[1] - pair.blocks[0] == 1) {
        let [from, to] = pair.blocks;
        let cosine = pair.cosine;
        if cosine <= -UNRELATED {
            let message = format!(
                "the axes of blocks {from} and {to} point opposite ways (cosine {cosine:.3}): one of them has the wrong sign"
            );
            note("opposite-axes", message, pair.caps.into());
        } else if cosine < UNRELATED {
            let message = format!(
                "the axes of blocks {from} and {to} hardly agree (cosine {cosine:.3}): too few answers, or not one trait"
            );
            note("unrelated-axes", message, pair.caps.into());
        }
    }
    for group in duplicates(file) {
        let places: Vec<_> = group.iter().map(|&cap| format!("{cap} (block {})", caps[cap].block)).collect();
        let message = format!(
            "caps {} share one axis: on one block a band says the same, and on several each block has an axis of its own",
            places.join(", ")
        );
        note("duplicate-axes", message, group);
    }
    let dominated: Vec<_> = caps.iter().filter(|cap| cap.largest.value.abs() > DOMINANT).collect();
    if !dominated.is_empty() {
        let places: Vec<_> = dominated
            .iter()
            .map(|cap| format!("{} (coordinate {}: {:.2})", cap.cap, cap.largest.index, cap.largest.value))
            .collect();
        let message = format!(
            "one coordinate carries more than half of the axis of caps {}: a massive activation, which moves with quantisation and position",
            places.join(", ")
        );
        note("massive-activation", message, dominated.iter().map(|cap| cap.cap).collect());
    }
    notes
}

/// Returns groups of caps whose axes are the same to the bit, or exactly opposite.
fn duplicates(file: &CapFile) -> Vec<Vec<usize>> {
    let mut groups = HashMap::<u64, Vec<usize>>::new();
    let mut order = Vec::new();
    for (index, entry) in file.caps.caps().iter().enumerate() {
        let mut hasher = DefaultHasher::new();
        let values = entry.cap.axis().values();
        let flip = values.iter().find(|&&v| v != 0.0).is_some_and(|&v| v < 0.0);
        for &value in values {
            // + 0.0 makes -0.0 and 0.0 equal.
            (if flip { -value } else { value } + 0.0).to_bits().hash(&mut hasher);
        }
        let digest = hasher.finish();
        let group = groups.entry(digest).or_default();
        if group.is_empty() {
            order.push(digest);
        }
        group.push(index);
    }
    order.iter().filter_map(|digest| groups.remove(digest)).filter(|group| group.len() > 1).collect()
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kind = match self.kind {
            Kind::Caps => "caps",
            Kind::Axes => "axes without bounds",
            Kind::ControlVector => "a plain control vector",
        };
        writeln!(f, "{}: {kind}", self.file)?;
        writeln!(f, "  model           {}", self.model)?;
        if let Some(norms) = self.model.norms_in_words() {
            writeln!(f, "  norms           {norms}")?;
        }
        if let Some(orientation) = &self.orientation {
            writeln!(f, "  positive means  {}", printable(orientation))?;
        }
        if self.skip_positions > 0 {
            let positions = counted(self.skip_positions as usize, "position");
            writeln!(f, "  left alone      rows at the first {positions} of each sequence")?;
        }
        let blocks: Vec<_> = self.caps.iter().map(|cap| cap.block).collect();
        writeln!(f, "  caps            {} on blocks {}", self.caps.len(), ranges(blocks))?;
        let control_vector =
            if self.control_vector { "accepts it, without its bounds" } else { "does not accept it" };
        writeln!(f, "  control vector  llama.cpp {control_vector}")?;
        writeln!(f)?;
        self.table().into_iter().try_for_each(|line| writeln!(f, "  {line}"))?;
        for (title, entries) in [("how it was made", &self.origin), ("unknown keys, kept", &self.unknown)] {
            if !entries.0.is_empty() {
                writeln!(f, "\n  {title}")?;
                for (key, value) in &entries.0 {
                    writeln!(f, "    {}: {}", printable(key), shown(value))?;
                }
            }
        }
        if !self.warnings.is_empty() {
            writeln!(f)?;
        }
        self.warnings.iter().try_for_each(|note| writeln!(f, "warning: {}", note.message))
    }
}

impl Report {
    /// Returns one line per cap, columns aligned.
    fn table(&self) -> Vec<String> {
        let next: HashMap<_, _> = self.neighbours.iter().map(|pair| (pair.caps[0], pair)).collect();
        let mut rows = vec![
            ["cap", "block", "name", "bound", "strength", "norm", "largest coordinate", "cosine to next"]
                .map(str::to_owned),
        ];
        for cap in &self.caps {
            rows.push([
                cap.cap.to_string(),
                cap.block.to_string(),
                cap.name.as_deref().map_or("-".into(), |name| elided(&printable(name))),
                cap.bound.to_string(),
                cap.strength.to_string(),
                cap.norm.map_or("-".into(), |norm| format!("{norm:.2}")),
                format!("{:.3} at {}", cap.largest.value, cap.largest.index),
                next.get(&cap.cap).map_or("-".into(), |pair| match pair.blocks {
                    [from, to] if to - from == 1 => format!("{:.3}", pair.cosine),
                    [_, to] => format!("{:.3} (block {to})", pair.cosine),
                }),
            ]);
        }
        let widths: [usize; 8] = std::array::from_fn(|column| {
            rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0)
        });
        let line = |row: &[String; 8]| {
            let cells = row.iter().zip(widths).map(|(cell, width)| {
                // format! panics at widths beyond u16.
                cell.clone() + &" ".repeat(width - cell.chars().count())
            });
            cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
        };
        rows.iter().map(line).collect()
    }
}

/// Writes block numbers as ranges: `3, 14-21`.
pub(crate) fn ranges(mut blocks: Vec<usize>) -> String {
    blocks.sort_unstable();
    blocks.dedup();
    let runs = blocks.chunk_by(|a, b| a + 1 == *b);
    let run = |run: &[usize]| match *run {
        [first, .., last] => format!("{first}-{last}"),
        [only] => only.to_string(),
        [] => String::new(),
    };
    runs.map(run).collect::<Vec<_>>().join(", ")
}

/// Escapes control characters: text in a stranger's file must not steer a terminal.
pub(crate) fn printable(text: &str) -> String {
    text.escape_debug().to_string().replace("\\\"", "\"").replace("\\'", "'")
}

/// Cuts a text that is too long for a column. `--json` has all of it.
fn elided(text: &str) -> String {
    const SHOWN: usize = 40;
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}... ({} bytes)", &text[..end], text.len()),
        None => text.to_owned(),
    }
}

/// Writes a value in one line. A long array is cut after the first few values.
fn shown(value: &Value) -> String {
    const SHOWN: usize = 6;
    match value {
        Value::Array(array) => {
            let first: Vec<_> =
                (0..SHOWN).filter_map(|index| array.get(index)).map(|v| v.summary()).collect();
            let more = array.len().saturating_sub(SHOWN);
            let tail = if more > 0 { format!(", ... {more} more") } else { String::new() };
            format!("[{}{tail}]", first.join(", "))
        }
        Value::String(text) => printable(text),
        other => other.summary(),
    }
}

/// Keys and values in their order.
#[derive(Debug)]
struct Entries(Vec<(String, Value)>);

impl Serialize for Entries {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        self.0.iter().try_for_each(|(key, value)| map.serialize_entry(key, &Json(value)))?;
        map.end()
    }
}

/// A metadata value as JSON.
struct Json<'a>(&'a Value);

impl Serialize for Json<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Value::U8(v) => v.serialize(serializer),
            Value::I8(v) => v.serialize(serializer),
            Value::U16(v) => v.serialize(serializer),
            Value::I16(v) => v.serialize(serializer),
            Value::U32(v) => v.serialize(serializer),
            Value::I32(v) => v.serialize(serializer),
            Value::F32(v) => v.serialize(serializer),
            Value::Bool(v) => v.serialize(serializer),
            Value::String(v) => v.serialize(serializer),
            Value::U64(v) => v.serialize(serializer),
            Value::I64(v) => v.serialize(serializer),
            Value::F64(v) => v.serialize(serializer),
            Value::Array(array) => match array {
                Array::U8(v) => v.serialize(serializer),
                Array::I8(v) => v.serialize(serializer),
                Array::U16(v) => v.serialize(serializer),
                Array::I16(v) => v.serialize(serializer),
                Array::U32(v) => v.serialize(serializer),
                Array::I32(v) => v.serialize(serializer),
                Array::F32(v) => v.serialize(serializer),
                Array::Bool(v) => v.serialize(serializer),
                Array::String(v) => v.serialize(serializer),
                Array::U64(v) => v.serialize(serializer),
                Array::I64(v) => v.serialize(serializer),
                Array::F64(v) => v.serialize(serializer),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use axiscap::{BlockCap, CapSet};

    use super::*;

    fn report(caps: &[(usize, &[f32], Bound)]) -> Report {
        let cap = |&(block, direction, bound): &(usize, &[f32], Bound)| BlockCap {
            block,
            cap: Cap::new(Axis::from_direction(direction).unwrap(), bound),
        };
        let caps = CapSet::new(caps.iter().map(cap)).unwrap();
        let mut file = CapFile::new(caps, ModelInfo::new("llama", 30));
        file.orientation = Some("more\x1b[2J Assistant".into());
        file.origin.set("percentiles", (0..9).map(|v| v as f32 / 10.0).collect::<Vec<_>>());
        Report::new(Path::new("caps.gguf"), file, false)
    }

    fn kinds(report: &Report) -> Vec<&'static str> {
        report.warnings.iter().map(|note| note.kind).collect()
    }

    const EVEN: &[f32] = &[1.0, 1.0, 1.0, 1.0, 1.0, 1.0];
    const NEARLY: &[f32] = &[1.0, 1.0, 1.0, 1.0, 1.0, 1.1];
    const ACROSS: &[f32] = &[1.0, -1.0, 1.0, -1.0, 1.0, -1.0];
    const SPIKE: &[f32] = &[0.0, 0.0, -9.0, 1.0, 1.0, 1.0];

    #[test]
    fn a_sound_file_has_no_warnings() {
        let floor = Bound::floor(1.5).unwrap();
        let report = report(&[(7, EVEN, floor), (6, NEARLY, floor)]);
        assert!(kinds(&report).is_empty(), "{:?}", report.warnings);
        let [pair] = report.neighbours.as_slice() else { panic!("{:?}", report.neighbours) };
        assert_eq!((pair.blocks, pair.caps), ([6, 7], [1, 0]));
        assert!(pair.cosine > 0.99);
    }

    #[test]
    fn a_suspicious_file_has_warnings() {
        let floor = Bound::floor(1.5).unwrap();
        assert_eq!(kinds(&report(&[(3, EVEN, Bound::NONE)])), ["unbounded"]);
        assert_eq!(kinds(&report(&[(3, EVEN, floor), (4, ACROSS, floor)])), ["unrelated-axes"]);
        // Blocks far apart need not agree.
        assert!(kinds(&report(&[(3, EVEN, floor), (14, ACROSS, floor)])).is_empty());
        let minus: Vec<_> = NEARLY.iter().map(|v| -v).collect();
        assert_eq!(kinds(&report(&[(3, EVEN, floor), (4, &minus, floor)])), ["opposite-axes"]);
        let twice = report(&[(3, EVEN, floor), (3, ACROSS, floor), (3, EVEN, floor)]);
        assert_eq!(kinds(&twice), ["duplicate-axes"]);
        assert_eq!(twice.warnings[0].caps, [0, 2]);
        let spike = report(&[(3, SPIKE, floor)]);
        assert_eq!(kinds(&spike), ["massive-activation"]);
        assert_eq!(spike.caps[0].largest.index, 2);
    }

    #[test]
    fn a_missing_bound_is_null_in_json() {
        let report = report(&[(3, EVEN, Bound::ceiling(0.1).unwrap())]);
        let json: serde_json::Value = serde_json::from_str(&serde_json::to_string(&report).unwrap()).unwrap();
        let cap = &json["caps"][0];
        assert!(cap["floor"].is_null() && cap["name"].is_null());
        assert_eq!((&cap["ceiling"], &cap["block"]), (&0.1.into(), &3.into()));
        assert_eq!(json["kind"], "caps");
        assert_eq!(json["control_vector"], true);
        assert_eq!(json["origin"]["percentiles"][1], 0.1);
    }

    #[test]
    fn the_table_is_aligned_and_holds_no_control_characters() {
        let band = Bound::band(-1.0, 2.0).unwrap();
        let text = report(&[(0, EVEN, band), (1, NEARLY, band), (2, SPIKE, Bound::NONE)]).to_string();
        assert!(!text.contains('\x1b'), "{text}");
        assert!(text.contains("caps            3 on blocks 0-2"), "{text}");
        assert!(text.contains("percentiles: [0, 0.1, 0.2, 0.3, 0.4, 0.5, ... 3 more]"), "{text}");
        let columns = |line: &str| line.find("[-1, 2]").or(line.find("unbounded")).or(line.find("bound"));
        let table: Vec<_> = text.lines().skip_while(|line| !line.starts_with("  cap ")).take(4).collect();
        assert!(table.iter().all(|line| columns(line) == columns(table[0])), "{text}");
    }

    #[test]
    fn a_long_name_leaves_the_table_readable() {
        let mut report = report(&[(0, EVEN, Bound::NONE), (1, NEARLY, Bound::NONE)]);
        report.caps[0].name = Some("ä".repeat(40_000));
        let text = report.to_string();
        let line = text.lines().find(|line| line.contains('ä')).unwrap();
        assert!(line.contains("ä... (80000 bytes)") && line.chars().count() < 200, "{line}");
    }

    #[test]
    fn blocks_are_written_as_ranges() {
        assert_eq!(ranges(vec![21, 14, 15, 15, 3]), "3, 14-15, 21");
    }
}
