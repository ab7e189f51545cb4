//! What every cap did to every row, with the tokens the rows belong to.

use std::collections::{BTreeMap, VecDeque};

use axiscap_ggml::{BlockTrace, ProfileId};

use crate::Token;
use crate::batch::BatchRow;
use crate::schedule::Schedules;

/// What one cap did to one row of a decode.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TraceRow {
    /// Sequence of the row.
    pub sequence: i32,
    /// Position of the row in its sequence.
    pub position: i32,
    /// The token that was decoded there.
    pub token: Token,
    /// The capped block.
    pub block: usize,
    /// Index of the cap in its set.
    pub cap: usize,
    /// Projection before the cap, after the earlier caps of the same block.
    pub before: f32,
    /// Projection after it.
    pub after: f32,
    /// Whether the projection was outside the bounds.
    pub engaged: bool,
    /// Whether the projection was not finite. The cap leaves such a row unchanged.
    pub non_finite: bool,
    /// The profile of the row.
    pub profile: ProfileId,
    /// Whether the policy of the profile left the row alone. Its projection was measured.
    pub skipped: bool,
}

/// What one cap saw of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct AnswerMeans {
    /// Rows with a finite projection.
    pub rows: usize,
    /// Those of them whose projection was outside the bounds.
    pub engaged: usize,
    /// Mean projection before the cap and after it. `None` without rows.
    pub means: Option<(f64, f64)>,
    /// Standard deviation of the projections before the cap.
    pub deviation: f64,
}

/// Returns what each of `caps` caps saw of an answer on sequence 0, the rows from position `prompt` on. These
/// are the generated tokens that were decoded: of an answer that was cut off, all but the last.
#[must_use]
pub fn answer_means(trace: &[TraceRow], prompt: usize, caps: usize) -> Vec<AnswerMeans> {
    let mut sums = vec![(0.0, 0.0, 0.0, 0, 0); caps];
    let answer = trace.iter().filter(|row| usize::try_from(row.position).is_ok_and(|at| at >= prompt));
    for row in answer.filter(|row| row.sequence == 0 && !row.non_finite && !row.skipped) {
        let Some((before, squares, after, rows, engaged)) = sums.get_mut(row.cap) else { continue };
        *before += f64::from(row.before);
        *squares += f64::from(row.before).powi(2);
        *after += f64::from(row.after);
        *rows += 1;
        *engaged += usize::from(row.engaged);
    }
    let means = |(before, squares, after, rows, engaged): (f64, f64, f64, usize, usize)| {
        let count = rows.max(1) as f64;
        let deviation = (squares / count - (before / count).powi(2)).max(0.0).sqrt();
        AnswerMeans { rows, engaged, means: (rows > 0).then(|| (before / count, after / count)), deviation }
    };
    sums.into_iter().map(means).collect()
}

/// Decodes whose rows may still be traced.
#[derive(Debug, Default)]
pub(crate) struct Tracer {
    /// The rows of the last decodes, by number, in order.
    decodes: VecDeque<(u64, Vec<BatchRow>)>,
    /// Lines that were assembled and not taken.
    kept: Vec<TraceRow>,
}

/// Decodes that are remembered. Statistics of a GPU arrive a few decodes later at most, unless nothing takes
/// them.
const MAX_DECODES: usize = 1 << 16;

/// Decodes between one whose statistics have arrived and an earlier one whose statistics have not. The hook
/// waits for a GPU that is 256 graphs behind.
const MAX_LATE: u64 = 1024;

impl Tracer {
    /// Notes the rows of a decode that succeeded. Traces of other decodes are dropped.
    pub(crate) fn decoded(&mut self, number: u64, rows: &[BatchRow]) {
        if self.decodes.len() == MAX_DECODES {
            self.decodes.pop_front();
        }
        self.decodes.push_back((number, rows.to_vec()));
    }

    /// Assembles lines, shows them to the alarms, and keeps them.
    pub(crate) fn keep(&mut self, passes: &[BlockTrace], schedules: &mut Schedules) {
        let lines = self.assemble(passes);
        schedules.see(lines.iter().map(|((number, ..), line)| (*number, line)));
        // Nothing arrives as late as this any more.
        if let Some(((newest, ..), _)) = lines.last_key_value() {
            while self.decodes.front().is_some_and(|(number, _)| number + MAX_LATE < *newest) {
                self.decodes.pop_front();
            }
        }
        self.kept.extend(lines.into_values());
    }

    /// Takes the lines that were kept.
    pub(crate) fn take_lines(&mut self) -> Vec<TraceRow> {
        std::mem::take(&mut self.kept)
    }

    /// Returns the lines of traced rows, ordered by decode, row of the batch, and cap.
    fn assemble(&self, passes: &[BlockTrace]) -> BTreeMap<(u64, usize, usize), TraceRow> {
        // Caps need not ascend with their blocks.
        let mut lines = BTreeMap::new();
        for pass in passes {
            let Some(number) = pass.decode else { continue };
            let Ok(decode) = self.decodes.binary_search_by_key(&number, |(number, _)| *number) else {
                continue;
            };
            for traced in &pass.rows {
                let (Some(index), Some(profile)) = (traced.batch_row, traced.profile) else { continue };
                let Some(row) = self.decodes[decode].1.get(index) else { continue };
                for &(cap, stat) in &traced.caps {
                    let line = TraceRow {
                        sequence: row.sequence,
                        position: row.position,
                        token: row.token,
                        block: pass.block,
                        cap,
                        before: stat.before,
                        after: stat.after,
                        engaged: stat.engaged() && !traced.skipped,
                        non_finite: stat.non_finite(),
                        profile,
                        skipped: traced.skipped,
                    };
                    lines.insert((number, index, cap), line);
                }
            }
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axiscap::RowStat;
    use axiscap_ggml::RowTrace;

    fn pass(decode: u64, block: usize, caps: &[usize], first: f32, rows: &[usize]) -> BlockTrace {
        let row = |(i, &row): (usize, &usize)| {
            let stat = RowStat { before: first + i as f32, after: 0.0, flags: 0 };
            let caps = caps.iter().map(|&cap| (cap, stat)).collect();
            let profile = Some(ProfileId::DEFAULT);
            RowTrace { batch_row: Some(row), profile, skipped: false, caps }
        };
        BlockTrace { decode: Some(decode), block, rows: rows.iter().enumerate().map(row).collect() }
    }

    fn batch(first: i32, rows: i32) -> Vec<BatchRow> {
        let row =
            |i| BatchRow { token: crate::Token(100 + i), position: first + i, sequence: 0, logits: true };
        (0..rows).map(row).collect()
    }

    #[test]
    fn rows_have_their_tokens_whatever_the_order_of_computation() {
        let mut tracer = Tracer::default();
        tracer.decoded(4, &batch(7, 3));
        tracer.decoded(6, &batch(10, 1));
        // Cap 1 is on an earlier block than caps 0 and 2. Decode 5 failed.
        let passes = [
            pass(4, 0, &[1], 10.0, &[0, 2]),
            pass(4, 5, &[0, 2], 50.0, &[2]),
            pass(5, 0, &[1], 90.0, &[0]),
            pass(4, 0, &[1], 12.0, &[1]),
        ];
        let shown = |lines: Vec<TraceRow>| -> Vec<_> {
            lines.iter().map(|l| (l.position, l.cap, l.block, l.token.0, l.before)).collect()
        };
        let expected =
            [(7, 1, 0, 100, 10.0), (8, 1, 0, 101, 12.0), (9, 0, 5, 102, 50.0), (9, 1, 0, 102, 11.0)];
        let mut schedules = Schedules::default();
        let mut lines = |tracer: &mut Tracer, passes: &[BlockTrace]| {
            tracer.keep(passes, &mut schedules);
            shown(tracer.take_lines())
        };
        let found = lines(&mut tracer, &passes);
        assert_eq!(found[..4], expected);
        assert_eq!(found[4..], [(9, 2, 5, 102, 50.0)]);
        let late = [pass(6, 0, &[1], 1.0, &[0]), pass(4, 3, &[3], 2.0, &[0])];
        assert_eq!(lines(&mut tracer, &late), [(7, 3, 3, 100, 2.0), (10, 1, 0, 100, 1.0)]);
    }

    #[test]
    fn decodes_are_not_remembered_without_end() {
        let mut tracer = Tracer::default();
        (0..MAX_DECODES as u64 + 5).for_each(|number| tracer.decoded(number, &batch(0, 1)));
        assert_eq!(tracer.decodes.len(), MAX_DECODES);
        assert!(tracer.assemble(&[pass(4, 0, &[0], 1.0, &[0])]).is_empty());
        assert_eq!(tracer.assemble(&[pass(5, 0, &[0], 1.0, &[0])]).len(), 1);
        // While statistics arrive, those of the last ones are enough.
        tracer.keep(&[pass(9000, 0, &[0], 1.0, &[0])], &mut Schedules::default());
        assert_eq!(tracer.decodes.front().map(|(number, _)| *number), Some(9000 - MAX_LATE));
    }
}
