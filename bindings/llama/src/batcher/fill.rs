//! The rows of the next batch.

use super::id_of;
use super::slot::Slot;
use crate::batch::BatchRow;

/// Returns the next rows of all requests, at most `max`, and with them the rows to sample from and their
/// sequences.
///
/// One token of each answer in progress comes first. A long prompt therefore delays no answer. The rest is
/// shared equally by the prompts, beginning with another one in each turn. Where answers leave no rest, all take
/// turns with one row each.
pub(super) fn fill(
    slots: &mut [Option<Slot>],
    max: usize,
    turn: u64,
) -> (Vec<BatchRow>, Vec<(usize, usize)>) {
    let (mut rows, mut ends) = (Vec::new(), Vec::new());
    let wanted = |slots: &[Option<Slot>], answering: bool| -> Vec<usize> {
        let is = |slot: &Slot| slot.is_answering() == answering && slot.left() > 0;
        (0..slots.len()).filter(|&index| slots[index].as_ref().is_some_and(is)).collect()
    };
    let rotated = |mut sequences: Vec<usize>| {
        if !sequences.is_empty() {
            let first = (turn % sequences.len() as u64) as usize;
            sequences.rotate_left(first);
        }
        sequences
    };
    let (mut answers, mut prompts) = (wanted(slots, true), wanted(slots, false));
    // Answers that leave no room take turns with the prompts, which would wait for the end of an answer.
    let take_turns = answers.len() >= max && !prompts.is_empty();
    if take_turns {
        answers.append(&mut prompts);
    }
    let (answers, prompts) = (rotated(answers), rotated(prompts));
    let count = answers.len() + prompts.len();
    for (index, sequence) in answers.iter().chain(&prompts).copied().enumerate() {
        let Some(slot) = slots[sequence].as_mut() else { continue };
        let room = max.saturating_sub(rows.len());
        let share = if take_turns || slot.is_answering() { 1 } else { room.div_ceil(count - index) };
        for _ in 0..share.min(room).min(slot.left()) {
            let (token, position, logits) = slot.feed();
            if logits {
                ends.push((rows.len(), sequence));
            }
            rows.push(BatchRow { token, position: id_of(position), sequence: id_of(sequence), logits });
        }
    }
    (rows, ends)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use llama_cpp_2::sampling::LlamaSampler;

    use super::super::{Request, RequestId};
    use super::*;
    use crate::Token;
    use crate::generate::GenerateOptions;

    fn prompt(length: usize, fed: usize) -> Option<Slot> {
        let tokens = (0..length as i32).map(Token).collect();
        let request = Request::new(tokens, GenerateOptions::default());
        Some(Slot::new(RequestId(0), request, LlamaSampler::greedy(), fed, Duration::ZERO))
    }

    fn answer(length: usize) -> Option<Slot> {
        let mut slot = prompt(length, length)?;
        slot.answer_for_test(Token(7));
        Some(slot)
    }

    fn rows_of(rows: &[BatchRow], sequence: i32) -> Vec<i32> {
        rows.iter().filter(|row| row.sequence == sequence).map(|row| row.position).collect()
    }

    #[test]
    fn a_batch_mixes_single_tokens_and_parts_of_prompts() {
        let mut slots = [answer(3), None, prompt(10, 0), prompt(4, 2)];
        let (rows, ends) = fill(&mut slots, 8, 0);
        assert_eq!((rows[0].position, rows[0].token, rows[0].logits), (3, Token(7), true));
        assert_eq!(rows_of(&rows, 2), [0, 1, 2, 3]);
        assert_eq!(rows_of(&rows, 3), [2, 3]);
        assert_eq!(ends, [(0, 0), (6, 3)]);
        slots.iter_mut().flatten().for_each(|slot| slot.took(Duration::ZERO));
        let (rows, ends) = fill(&mut slots, 8, 1);
        // The others wait for their next tokens.
        assert_eq!(rows_of(&rows, 2), [4, 5, 6, 7, 8, 9]);
        assert_eq!(ends, [(5, 2)]);
    }

    #[test]
    fn a_batch_that_failed_is_filled_again_alike() {
        let mut slots = [answer(3), prompt(10, 0)];
        let first = fill(&mut slots, 5, 0);
        slots.iter_mut().flatten().for_each(Slot::unfeed);
        assert_eq!(fill(&mut slots, 5, 0), first);
    }

    #[test]
    fn a_long_prompt_delays_neither_answers_nor_short_prompts() {
        let mut slots = [prompt(500, 0), answer(3), prompt(9, 0), answer(5)];
        let (rows, ends) = fill(&mut slots, 8, 0);
        assert_eq!(ends, [(0, 1), (1, 3)]);
        assert_eq!((rows_of(&rows, 0).len(), rows_of(&rows, 2).len()), (3, 3));
        // More answers than rows take turns.
        let mut slots = [answer(1), answer(2), answer(3)];
        let mut served = [0; 3];
        for turn in 0..3 {
            let (rows, _) = fill(&mut slots, 2, turn);
            rows.iter().for_each(|row| served[row.sequence as usize] += 1);
            slots.iter_mut().flatten().for_each(Slot::unfeed);
        }
        assert_eq!(served, [2; 3]);
    }

    #[test]
    fn answers_that_fill_a_batch_take_turns_with_prompts() {
        let mut slots = [answer(1), prompt(9, 0), answer(3), prompt(2, 0)];
        let mut served = [0; 4];
        for turn in 0..4 {
            let (rows, _) = fill(&mut slots, 2, turn);
            rows.iter().for_each(|row| served[row.sequence as usize] += 1);
            slots.iter_mut().flatten().for_each(Slot::unfeed);
        }
        assert_eq!(served, [2; 4]);
    }
}
