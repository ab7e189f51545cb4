//! What every cap did to every row, with the tokens the rows belong to.

use std::collections::BTreeMap;

use axiscap_ggml::{BlockTrace, ProfileId};

use crate::Token;
use crate::batch::BatchRow;
use crate::error::Error;

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
}

/// Returns what each of `caps` caps saw of an answer on sequence 0, the rows from position `prompt` on. These
/// are the generated tokens that were decoded: of an answer that was cut off, all but the last.
#[must_use]
pub fn answer_means(trace: &[TraceRow], prompt: usize, caps: usize) -> Vec<AnswerMeans> {
    let mut sums = vec![(0.0, 0.0, 0, 0); caps];
    let answer = trace.iter().filter(|row| usize::try_from(row.position).is_ok_and(|at| at >= prompt));
    for row in answer.filter(|row| row.sequence == 0 && !row.non_finite && !row.skipped) {
        let Some((before, after, rows, engaged)) = sums.get_mut(row.cap) else { continue };
        *before += f64::from(row.before);
        *after += f64::from(row.after);
        *rows += 1;
        *engaged += usize::from(row.engaged);
    }
    let means = |(before, after, rows, engaged): (f64, f64, usize, usize)| AnswerMeans {
        rows,
        engaged,
        means: (rows > 0).then(|| (before / rows as f64, after / rows as f64)),
    };
    sums.into_iter().map(means).collect()
}

/// Gives the traced rows of one decode their tokens.
///
/// llama.cpp computes a batch in micro-batches, whose rows are given as indices of the batch. The last block
/// may have only the rows with logits.
pub(crate) fn assemble(
    rows: &[BatchRow],
    micro_batches: &[Vec<usize>],
    passes: &[BlockTrace],
) -> Result<Vec<TraceRow>, Error> {
    // Ordered by (row of the batch, index of the cap): caps need not ascend with their blocks.
    let mut traced = BTreeMap::new();
    for (block, passes) in by_block(passes) {
        let found = passes.iter().map(|pass| pass.rows.len()).sum();
        let outputs = rows.iter().filter(|row| row.logits).count();
        let misfit = || Error::Trace { block, found, rows: rows.len(), outputs };
        let all = found == rows.len();
        if !all && found != outputs {
            return Err(misfit());
        }
        // Passes without rows may be missing.
        let passes = passes.iter().filter(|pass| !pass.rows.is_empty());
        let shown = |micro_batch: &Vec<usize>| {
            let indices = micro_batch.iter().copied().filter(|&index| all || rows[index].logits);
            indices.collect::<Vec<_>>()
        };
        let micro_batches = micro_batches.iter().map(shown).filter(|indices| !indices.is_empty());
        if !passes.clone().map(|pass| pass.rows.len()).eq(micro_batches.clone().map(|indices| indices.len()))
        {
            return Err(misfit());
        }
        for (pass, indices) in passes.zip(micro_batches) {
            for (&index, traced_row) in indices.iter().zip(&pass.rows) {
                let (row, Some(profile)) = (rows[index], traced_row.profile) else { continue };
                for &(cap, stat) in &traced_row.caps {
                    let line = TraceRow {
                        sequence: row.sequence,
                        position: row.position,
                        token: row.token,
                        block,
                        cap,
                        before: stat.before,
                        after: stat.after,
                        engaged: stat.engaged() && !traced_row.skipped,
                        non_finite: stat.non_finite(),
                        profile,
                        skipped: traced_row.skipped,
                    };
                    traced.insert((index, cap), line);
                }
            }
        }
    }
    Ok(traced.into_values().collect())
}

/// Returns the passes of each block, in order.
fn by_block(passes: &[BlockTrace]) -> BTreeMap<usize, Vec<&BlockTrace>> {
    let mut blocks = BTreeMap::<usize, Vec<_>>::new();
    for pass in passes {
        blocks.entry(pass.block).or_default().push(pass);
    }
    blocks
}

#[cfg(test)]
mod tests {
    use super::*;
    use axiscap::RowStat;
    use axiscap_ggml::RowTrace;

    fn pass(block: usize, caps: &[usize], first: f32, rows: usize) -> BlockTrace {
        let row = |row: usize| {
            let stat = RowStat { before: first + row as f32, after: 0.0, flags: 0 };
            let caps = caps.iter().map(|&cap| (cap, stat)).collect();
            RowTrace { profile: Some(ProfileId::DEFAULT), skipped: false, caps }
        };
        BlockTrace { block, rows: (0..rows).map(row).collect() }
    }

    fn batch(rows: usize, logits: &[usize]) -> Vec<BatchRow> {
        let row = |i| BatchRow {
            token: crate::Token(100 + i as i32),
            position: 7 + i as i32,
            sequence: 0,
            logits: logits.contains(&i),
        };
        (0..rows).map(row).collect()
    }

    #[test]
    fn passes_are_joined_and_rows_of_the_last_block_are_those_with_logits() {
        // Two passes of 2 and 1 rows. Cap 1 is on an earlier block than caps 0 and 2.
        let passes = [
            pass(0, &[1], 10.0, 2),
            pass(5, &[0, 2], 50.0, 0),
            pass(0, &[1], 12.0, 1),
            pass(5, &[0, 2], 50.0, 1),
        ];
        let lines = assemble(&batch(3, &[2]), &[vec![0, 1], vec![2]], &passes).unwrap();
        let seen: Vec<_> = lines.iter().map(|l| (l.position, l.cap, l.block, l.token.0, l.before)).collect();
        assert_eq!(
            seen,
            [
                (7, 1, 0, 100, 10.0),
                (8, 1, 0, 101, 11.0),
                (9, 0, 5, 102, 50.0),
                (9, 1, 0, 102, 12.0),
                (9, 2, 5, 102, 50.0)
            ]
        );
    }

    #[test]
    fn rows_that_were_computed_in_another_order_keep_their_tokens() {
        let micro_batches = [vec![0, 2], vec![1]];
        let passes =
            [pass(0, &[0], 10.0, 2), pass(5, &[1], 50.0, 1), pass(0, &[0], 20.0, 1), pass(5, &[1], 60.0, 1)];
        let lines = assemble(&batch(3, &[1, 2]), &micro_batches, &passes).unwrap();
        let seen: Vec<_> = lines.iter().map(|l| (l.position, l.block, l.before)).collect();
        assert_eq!(seen, [(7, 0, 10.0), (8, 0, 20.0), (8, 5, 60.0), (9, 0, 11.0), (9, 5, 50.0)]);
    }

    #[test]
    fn rows_that_do_not_add_up_are_an_error() {
        let error = assemble(&batch(3, &[0, 2]), &[vec![0, 1, 2]], &[pass(4, &[0], 0.0, 1)]).unwrap_err();
        assert!(matches!(error, Error::Trace { block: 4, found: 1, rows: 3, outputs: 2 }), "{error}");
        // As many rows as the batch has, in other passes than llama.cpp was taken to make.
        let passes = [pass(4, &[0], 0.0, 1), pass(4, &[0], 0.0, 2)];
        for micro_batches in [[vec![0, 1], vec![2]].as_slice(), &[vec![0, 1, 2]]] {
            let error = assemble(&batch(3, &[0, 2]), micro_batches, &passes).unwrap_err();
            assert!(matches!(error, Error::Trace { block: 4, found: 3, rows: 3, outputs: 2 }), "{error}");
        }
    }
}
