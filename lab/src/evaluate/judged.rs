//! Pairs of texts, scored by a judge outside.

use std::ops::ControlFlow;

use super::arm::Arm;
use super::findings::pairs;
use super::material::Material;
use super::record::{Record, Records};
use crate::error::Error;
use crate::judge::{Case, Judge, PairCase};

/// Has a judge score the pairs of an arm's conversations. `go_on` is called after every score with their number.
/// Returns `None` if it asked to stop.
///
/// # Errors
/// [`Error::Judge`].
pub fn judge_pairs(
    judge: &Judge,
    material: &Material,
    records: &Records,
    arm: Arm,
    mut go_on: impl FnMut(usize) -> ControlFlow<()>,
) -> Result<Option<Vec<Record>>, Error> {
    let pairs: Vec<_> = pairs(material, records.all()).into_iter().filter(|pair| pair.arm == arm).collect();
    let cases: Vec<_> = pairs
        .iter()
        .map(|pair| Case::Pair(PairCase { kind: pair.kind.name(), first: pair.first, second: pair.second }))
        .collect();
    let (mut found, by) = (Vec::new(), judge.name());
    let is_done = judge.judge(&cases, |index, score| {
        let pair = &pairs[index];
        found.push(Record::Judged {
            arm,
            conversation: pair.conversation.into(),
            kind: pair.kind,
            first_turn: pair.first_turn,
            second_turn: pair.second_turn,
            score,
            by: by.clone(),
        });
        go_on(found.len())
    })?;
    Ok(is_done.then_some(found))
}
