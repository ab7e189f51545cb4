//! An even choice among all pairs of a system prompt and a question.

use super::files::Question;

/// Returns `count` pairs of a system prompt and a question, or all of them, sorted. Prompts take turns, and so do
/// styles. `turn` moves the questions within their styles, and with it the half of the questions that a style is
/// asked from, so that every role has questions of both halves.
pub(super) fn choose(
    prompts: usize,
    questions: &[Question],
    turn: usize,
    count: Option<usize>,
) -> Vec<(usize, usize)> {
    let order = order(questions, turn);
    let all = prompts * order.len();
    let count = count.map_or(all, |count| count.min(all));
    let pair = |index: usize| {
        let (place, round) = (index % order.len(), index / order.len());
        // In each round every question is asked under the next prompt.
        ((place + round) % prompts, order[place])
    };
    let mut pairs: Vec<_> = (0..count).map(pair).collect();
    pairs.sort_unstable();
    pairs
}

/// Returns every question once, style after style in turns.
fn order(questions: &[Question], turn: usize) -> Vec<usize> {
    let mut styles: Vec<(&str, Vec<usize>)> = Vec::new();
    for (index, question) in questions.iter().enumerate() {
        match styles.iter_mut().find(|(style, _)| *style == question.style) {
            Some((_, members)) => members.push(index),
            None => styles.push((&question.style, vec![index])),
        }
    }
    let longest = styles.iter().map(|(_, members)| members.len()).max().unwrap_or(0);
    let mut order = Vec::new();
    for round in 0..longest {
        for (place, (_, members)) in styles.iter().enumerate().filter(|(_, (_, m))| round < m.len()) {
            order.push(members[(turn + place + round) % members.len()]);
        }
    }
    order
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_pair_is_chosen_once_before_any_is_left_out() {
        let question =
            |(style, text): (&str, usize)| Question { style: style.into(), text: text.to_string() };
        let questions: Vec<_> =
            [("a", 0), ("a", 1), ("a", 2), ("b", 3), ("c", 4), ("c", 5)].map(question).into();
        for prompts in 1..8 {
            for turn in 0..7 {
                let all = choose(prompts, &questions, turn, None);
                assert_eq!(all.len(), prompts * 6);
                assert_eq!(all.iter().collect::<HashSet<_>>().len(), all.len());
                let part = choose(prompts, &questions, turn, Some(prompts * 2));
                let each = |prompt| part.iter().filter(|(p, _)| *p == prompt).count();
                assert!(
                    (0..prompts).all(|prompt| (1..=3).contains(&each(prompt))),
                    "{prompts} {turn} {part:?}"
                );
                assert_eq!(choose(prompts, &questions, turn, Some(999)), all);
            }
        }
    }
}
