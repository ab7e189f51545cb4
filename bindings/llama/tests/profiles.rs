//! Profiles: sequences under different caps in one batch.

mod support;

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex};

use axiscap::cpu::{Job, RowsMut};
use axiscap::{Axis, BlockCap, Bound, Cap, CapSet, CapTable, Policy, RowStat};
use axiscap_llama::{
    BatchRow, Context, ContextOptions, Error, HookError, Model, ProfileId, RouteChoice, Tap, Token, TraceRow,
    generate,
};
use axiscap_testing::numbers::Random;
use support::{ARCHITECTURES, greedy, load, options};

const SEQUENCES: usize = 4;

/// Caps on some blocks, several on one. Sets of different seeds cap different blocks.
fn caps(model: &Model, seed: u64) -> CapSet {
    let (blocks, mut random) = (model.shape().blocks, Random(seed));
    let mut cap = |block| {
        let direction: Vec<f32> = (0..model.shape().width).map(|_| random.signed()).collect();
        let bound = match random.below(3) {
            0 => Bound::floor(0.5),
            1 => Bound::ceiling(-0.5),
            _ => Bound::band(-0.1, 0.1),
        };
        let cap = Cap::new(Axis::from_direction(&direction).expect("an axis"), bound.expect("a bound"));
        let strength = [1.0, 0.5][random.below(2)];
        BlockCap { block, cap: cap.with_strength(strength).expect("a strength") }
    };
    let mut set = vec![cap(0), cap(blocks - 1), cap(seed as usize % blocks), cap(0)];
    if seed.is_multiple_of(2) {
        set.remove(0);
    }
    CapSet::new(set).expect("a set")
}

/// What a sequence is under.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Under {
    None,
    Default,
    Added(usize),
}

const ALL: [Under; 4] = [Under::None, Under::Default, Under::Added(0), Under::Added(1)];

/// Block outputs before the caps, by block, in the order of computation.
type Seen = Arc<Mutex<BTreeMap<usize, Vec<Vec<f32>>>>>;

/// A traced context with a default profile that skips one position, two added ones, and a tap.
struct Mixed<'m> {
    context: Context<'m>,
    sets: [CapSet; 3],
    added: [ProfileId; 2],
    seen: Seen,
}

impl<'m> Mixed<'m> {
    fn new(model: &'m Model, ubatch: u32, route: RouteChoice) -> Self {
        let options = ContextOptions { sequences: SEQUENCES as u32, ubatch, ctx: Some(256), ..options() };
        let mut context = Context::new(model, &options).expect("a context");
        let sets = [(5, 1), (6, 0), (7, 3)]
            .map(|(seed, skip)| caps(model, seed).with_policy(Policy::default().with_skip_positions(skip)));
        let seen = Seen::default();
        let session = context.session().expect("hooked");
        session.set_caps(Some(&sets[0])).expect("it fits");
        let add = |set: usize| session.add_profile(&format!("added {set}"), &sets[set]).expect("it fits");
        let added = [add(1), add(2)];
        session.update(|settings| settings.route = route);
        let blocks = (0..model.shape().blocks).collect();
        let see = {
            let seen = Arc::clone(&seen);
            move |block, rows: axiscap_llama::TapRows<'_>| {
                let mut seen = seen.lock().expect("no panic");
                let of_block = seen.entry(block).or_default();
                of_block.extend((0..rows.rows()).map(|row| rows.row(row).to_vec()));
            }
        };
        session.set_tap(Some(Tap { blocks, see: Arc::new(see) })).expect("a tap");
        context.set_tracing(true).expect("hooked");
        Self { context, sets, added, seen }
    }

    fn put(&mut self, sequence: usize, under: Under) {
        let profile = match under {
            Under::None => None,
            Under::Default => Some(ProfileId::DEFAULT),
            Under::Added(index) => Some(self.added[index]),
        };
        self.context.set_profile(sequence as i32, profile).expect("a profile");
    }

    /// The logits of a decode's rows, what its caps did, and the block outputs before them.
    fn decode(&mut self, rows: &[BatchRow]) -> Decoded {
        self.seen.lock().expect("no panic").clear();
        self.context.decode(rows).unwrap_or_else(|error| panic!("{error}: {rows:?}"));
        let logits = (0..rows.len()).map(|row| self.context.logits(row).map(bits)).collect();
        Decoded {
            logits,
            trace: self.context.take_trace(),
            seen: self.seen.lock().expect("no panic").clone(),
        }
    }
}

struct Decoded {
    /// Per row of the batch.
    logits: Vec<Option<Vec<u32>>>,
    trace: Vec<TraceRow>,
    seen: BTreeMap<usize, Vec<Vec<f32>>>,
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// Rows of a trace that belong to a sequence, with their numbers as bits.
fn of_sequence(trace: &[TraceRow], sequence: i32) -> Vec<(i32, usize, usize, u32, u32, bool, bool)> {
    let rows = trace.iter().filter(|row| row.sequence == sequence);
    rows.map(|r| (r.position, r.block, r.cap, r.before.to_bits(), r.after.to_bits(), r.engaged, r.skipped))
        .collect()
}

/// Runs of rows of random sequences, some of them interrupted by others.
fn batch(random: &mut Random, next: &mut [usize; SEQUENCES]) -> Vec<BatchRow> {
    let mut rows = Vec::new();
    for _ in 0..1 + random.below(6) {
        let sequence = random.below(SEQUENCES);
        for _ in 0..1 + random.below(4) {
            let position = next[sequence];
            let token = Token(((sequence * 31 + position * 7) % 90) as i32 + 3);
            let (at, id) = (position as i32, sequence as i32);
            rows.push(BatchRow { token, position: at, sequence: id, logits: random.below(3) == 0 });
            next[sequence] += 1;
        }
    }
    rows
}

/// Checks that `after` of each row follows from the row itself and its own profile's caps of the block.
fn check_rows(
    decoded: &Decoded,
    rows: &[BatchRow],
    under: &[Under; SEQUENCES],
    sets: &[CapSet; 3],
    model: &Model,
) {
    let mut by_cap = BTreeMap::<(i32, i32, usize), Vec<&TraceRow>>::new();
    for line in &decoded.trace {
        by_cap.entry((line.sequence, line.position, line.block)).or_default().push(line);
    }
    let mut checked = 0;
    for ((sequence, position, block), lines) in &by_cap {
        let (set, skip) = match under[*sequence as usize] {
            Under::None => panic!("a row without a profile has no caps: {lines:?}"),
            Under::Default => (&sets[0], 1),
            Under::Added(0) => (&sets[1], 0),
            Under::Added(_) => (&sets[2], 3),
        };
        let indices = &set.blocks()[block];
        assert_eq!(lines.iter().map(|line| line.cap).collect::<Vec<_>>(), *indices);
        let skipped = *position < skip;
        let caps: Vec<_> = indices
            .iter()
            .map(|&index| {
                let cap = set.caps()[index].cap.clone();
                if skipped { cap.with_bound(Bound::NONE) } else { cap }
            })
            .collect();
        // Which row of the block it was is known by its projections: find the one that gives them.
        let table = CapTable::new(&caps).expect("a table");
        let expected: Vec<_> =
            lines.iter().map(|line| (line.before.to_bits(), line.after.to_bits())).collect();
        let fits = decoded.seen[block].iter().any(|row| {
            let (mut row, mut stats) = (row.clone(), vec![RowStat::default(); caps.len()]);
            let rows = RowsMut::from_slice(&mut row, model.shape().width).expect("a row");
            Job::cap(rows).stats(&mut stats).run(&table).expect("a row");
            stats.iter().map(|s| (s.before.to_bits(), s.after.to_bits())).eq(expected.iter().copied())
        });
        assert!(fits, "{lines:?}");
        assert!(lines.iter().all(|line| line.skipped == skipped && !(skipped && line.engaged)), "{lines:?}");
        checked += 1;
    }
    // Every row that has caps in a block was shown. Some architectures compute all rows in the last block.
    let last = model.shape().blocks - 1;
    let expected = |all: bool| -> usize {
        let blocks = |row: &BatchRow| {
            let set = match under[row.sequence as usize] {
                Under::None => return 0,
                Under::Default => &sets[0],
                Under::Added(index) => &sets[1 + index],
            };
            set.blocks().keys().filter(|&&block| all || block != last || row.logits).count()
        };
        rows.iter().map(blocks).sum()
    };
    let name = &model.shape().architecture;
    assert!(checked == expected(false) || checked == expected(true), "{name}: {checked}, {rows:?}");
}

/// A row depends on its own profile alone: whatever the others of its batch are under, it has the bits that it
/// has where the whole batch is under that profile, and without one those of an uncapped context.
#[test]
fn a_row_under_a_profile_does_not_depend_on_the_profiles_of_others() {
    for architecture in ARCHITECTURES {
        let model = load(architecture);
        for (seed, ubatch, route) in
            [(1, 64, RouteChoice::Auto), (2, 8, RouteChoice::Auto), (3, 8, RouteChoice::Views)]
        {
            let mut random = Random(seed);
            let mut mixed = Mixed::new(&model, ubatch, route);
            let mut uniform = ALL.map(|under| {
                let mut context = Mixed::new(&model, ubatch, route);
                (0..SEQUENCES).for_each(|sequence| context.put(sequence, under));
                (under, context)
            });
            let plain = ContextOptions { sequences: SEQUENCES as u32, ubatch, ctx: Some(256), ..options() };
            let mut plain = Context::uncapped(&model, &plain).expect("a context");
            let under: [Under; SEQUENCES] = std::array::from_fn(|_| ALL[random.below(4)]);
            (0..SEQUENCES).for_each(|sequence| mixed.put(sequence, under[sequence]));
            let mut next = [0; SEQUENCES];
            for _ in 0..4 {
                let rows = batch(&mut random, &mut next);
                let found = mixed.decode(&rows);
                check_rows(&found, &rows, &under, &mixed.sets, &model);
                for (profile, context) in &mut uniform {
                    let expected = context.decode(&rows);
                    for sequence in (0..SEQUENCES).filter(|&sequence| under[sequence] == *profile) {
                        let own = |(index, _): &(usize, &BatchRow)| rows[*index].sequence == sequence as i32;
                        for (index, row) in rows.iter().enumerate().filter(own) {
                            let same = found.logits[index] == expected.logits[index];
                            assert!(same, "{architecture}: {profile:?} {row:?} of {rows:?}");
                        }
                        let [found, expected] =
                            [&found.trace, &expected.trace].map(|trace| of_sequence(trace, sequence as i32));
                        assert_eq!(found, expected, "{architecture}: {profile:?}");
                    }
                }
                plain.decode(&rows).expect("a batch");
                for (index, row) in rows.iter().enumerate() {
                    if under[row.sequence as usize] == Under::None {
                        let same = found.logits[index] == plain.logits(index).map(bits);
                        assert!(same, "{architecture}: uncapped {row:?} of {rows:?}");
                    }
                }
            }
        }
    }
}

/// Sequences change their profiles between decodes, while another thread adds profiles and removes them.
#[test]
fn profiles_change_between_decodes_and_come_and_go_meanwhile() {
    for architecture in ["llama", "jamba"] {
        let model = load(architecture);
        let mut mixed = Mixed::new(&model, 8, RouteChoice::Auto);
        let mut quiet = Mixed::new(&model, 8, RouteChoice::Auto);
        let session = mixed.context.session().expect("hooked").clone();
        let set = caps(&model, 8);
        let done = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    let id = session.add_profile("passing", &set).expect("it fits");
                    std::thread::yield_now();
                    session.remove_profile(id).expect("it was added");
                }
            });
            let mut random = Random(11);
            let mut next = [0; SEQUENCES];
            for _ in 0..12 {
                let under: [Under; SEQUENCES] = std::array::from_fn(|_| ALL[random.below(4)]);
                for context in [&mut mixed, &mut quiet] {
                    (0..SEQUENCES).for_each(|sequence| context.put(sequence, under[sequence]));
                }
                let rows = batch(&mut random, &mut next);
                let (found, expected) = (mixed.decode(&rows), quiet.decode(&rows));
                assert!(found.logits == expected.logits, "{architecture}: {rows:?}");
                check_rows(&found, &rows, &under, &mixed.sets, &model);
            }
            done.store(true, std::sync::atomic::Ordering::Relaxed);
        });
    }
}

#[test]
fn statistics_are_kept_per_profile_and_leave_out_skipped_rows() {
    let model = load("llama");
    let mut mixed = Mixed::new(&model, 64, RouteChoice::Auto);
    for (sequence, under) in ALL.into_iter().enumerate() {
        mixed.put(sequence, under);
    }
    let row = |sequence, position| BatchRow { token: Token(5), position, sequence, logits: true };
    let rows: Vec<_> =
        (0..4).flat_map(|sequence| (0..5).map(move |position| row(sequence, position))).collect();
    mixed.decode(&rows);
    let session = mixed.context.session().expect("hooked");
    let counts = |id| {
        let stats = session.profile_stats(id).expect("a profile");
        stats.iter().map(|stats| (stats.rows, stats.skipped)).collect::<Vec<_>>()
    };
    assert_eq!(counts(ProfileId::DEFAULT), vec![(4, 1); mixed.sets[0].caps().len()]);
    assert_eq!(counts(mixed.added[0]), vec![(5, 0); mixed.sets[1].caps().len()]);
    assert_eq!(counts(mixed.added[1]), vec![(2, 3); mixed.sets[2].caps().len()]);
    assert_eq!(session.stats(), session.profile_stats(ProfileId::DEFAULT).expect("it is there"));
    session.remove_profile(mixed.added[0]).expect("it was added");
    assert_eq!(session.profile_stats(mixed.added[0]), None);
    // A row under it now fails the decode, and the others go on.
    let error = mixed.context.decode(&[row(2, 5)]).unwrap_err();
    assert!(matches!(error, Error::Hook(HookError::NoProfile { .. })), "{error}");
    assert_eq!(mixed.context.position(2), 5);
    mixed.decode(&[row(3, 5), row(0, 5)]);
    mixed.put(2, Under::None);
    mixed.decode(&[row(2, 5)]);
}

#[test]
fn wrong_names_and_profiles_are_refused() {
    let model = load("llama");
    let mut mixed = Mixed::new(&model, 64, RouteChoice::Auto);
    let session = mixed.context.session().expect("hooked").clone();
    for name in ["added 1", "default", ""] {
        let error = session.add_profile(name, &mixed.sets[1]).unwrap_err();
        assert!(matches!(error, HookError::ProfileName { .. }), "{error}");
    }
    let wide = Cap::new(Axis::from_direction(&[1.0, 2.0]).expect("an axis"), Bound::NONE);
    let wide = CapSet::new([BlockCap { block: 0, cap: wide }]).expect("a set");
    let error = session.add_profile("wide", &wide).unwrap_err();
    assert!(matches!(error, HookError::Caps(_)), "{error}");
    let names: Vec<_> = session.profiles().iter().map(|profile| profile.name.clone()).collect();
    assert_eq!(names, ["default", "added 1", "added 2"]);
    session.remove_profile(mixed.added[0]).expect("it was added");
    let error = mixed.context.set_profile(0, Some(mixed.added[0])).unwrap_err();
    assert!(matches!(error, Error::Hook(HookError::NoProfile { .. })), "{error}");
    assert!(matches!(session.remove_profile(mixed.added[0]), Err(HookError::NoProfile { .. })));
    let error = mixed.context.set_profile(SEQUENCES as i32, None).unwrap_err();
    assert!(matches!(error, Error::Sequence { .. }), "{error}");
    // The ids of removed profiles stay theirs.
    let id = session.add_profile("added 1", &mixed.sets[1]).expect("the name is free");
    assert!(!mixed.added.contains(&id));
}

/// A text under one profile takes nothing from what was computed under another.
#[test]
fn generated_text_reuses_rows_of_the_same_caps_only() {
    for architecture in ["llama", "gemma3", "mamba2", "jamba"] {
        let model = load(architecture);
        let prompt: Vec<Token> = (0..20).map(|i| Token((i * 7) % 90 + 3)).collect();
        // One row a pass, so that reuse does not change how rows are batched.
        let fresh = ALL.map(|under| {
            let mut mixed = Mixed::new(&model, 1, RouteChoice::Auto);
            mixed.put(0, under);
            generate(&mut mixed.context, &prompt, &greedy(6), |_| ControlFlow::Continue(())).expect("a text")
        });
        let stateful = model.llama().is_recurrent() || model.llama().is_hybrid();
        let mut mixed = Mixed::new(&model, 1, RouteChoice::Auto);
        let mut last = None;
        for index in [0, 1, 1, 2, 3, 3, 0, 2, 2] {
            mixed.put(0, ALL[index]);
            let written = generate(&mut mixed.context, &prompt, &greedy(6), |_| ControlFlow::Continue(()))
                .expect("a text");
            assert_eq!(written.tokens, fresh[index].tokens, "{architecture}: {:?}", ALL[index]);
            let expected = match last {
                Some(last) if last == index && !stateful => prompt.len() - 1,
                // Positions that the profiles skip are computed alike under all of them.
                Some(last) if !stateful => match (last, index) {
                    (0, 1) | (1, 0) | (1, 3) => 1,
                    (0, 3) | (3, 0) => 3,
                    _ => 0,
                },
                _ => 0,
            };
            assert_eq!(written.timings.reused, expected, "{architecture}: {last:?} then {index}");
            last = Some(index);
        }
        // Another bound is another profile, and the old one again is not the old rows.
        let session = mixed.context.session().expect("hooked").clone();
        mixed.put(0, Under::Added(0));
        let again = |mixed: &mut Mixed<'_>| {
            let text = generate(&mut mixed.context, &prompt, &greedy(6), |_| ControlFlow::Continue(()));
            text.expect("a text").timings.reused
        };
        again(&mut mixed);
        session.change_cap(mixed.added[0], 0, |cap| cap.with_strength(0.25)).expect("a cap");
        assert_eq!(again(&mut mixed), 0, "{architecture}");
        assert_eq!(again(&mut mixed) > 0, !stateful, "{architecture}");
    }
}

#[test]
fn a_saved_sequence_is_restored_under_its_own_caps_alone() {
    for architecture in ARCHITECTURES {
        let model = load(architecture);
        let row = |position: i32| BatchRow {
            token: Token(position * 7 % 90 + 3),
            position,
            sequence: 1,
            logits: true,
        };
        let mut mixed = Mixed::new(&model, 64, RouteChoice::Auto);
        mixed.put(1, Under::Added(1));
        mixed.decode(&(0..9).map(row).collect::<Vec<_>>());
        let saved = mixed.context.save_sequence(1).expect("known rows");
        assert_eq!((saved.tokens().len(), saved.caps().iter().flatten().count()), (9, 6));
        let expected = mixed.decode(&[row(9)]).logits;

        let mut other = Mixed::new(&model, 64, RouteChoice::Auto);
        for under in [Under::None, Under::Default, Under::Added(0)] {
            other.put(2, under);
            let error = other.context.restore_sequence(&saved, 2).unwrap_err();
            assert!(matches!(error, Error::Saved { sequence: 2, .. }), "{error}");
        }
        other.put(2, Under::Added(1));
        other.context.restore_sequence(&saved, 2).unwrap_or_else(|error| panic!("{architecture}: {error}"));
        let found = other.decode(&[BatchRow { sequence: 2, ..row(9) }]).logits;
        assert!(found == expected, "{architecture}");

        let session = mixed.context.session().expect("hooked").clone();
        session.change_cap(mixed.added[1], 0, |cap| Ok(cap.with_bound(Bound::NONE))).expect("a cap");
        let error = mixed.context.restore_sequence(&saved, 1).unwrap_err();
        assert!(error.to_string().contains("computed under other caps"), "{error}");
        let error = mixed.context.save_sequence(1).unwrap_err();
        assert!(error.to_string().contains("have changed since"), "{error}");
    }
    let (one, another) = (load("llama"), load("gemma3"));
    let mut mixed = Mixed::new(&one, 64, RouteChoice::Auto);
    let saved = mixed.context.save_sequence(0).expect("no rows");
    let error = Mixed::new(&another, 64, RouteChoice::Auto).context.restore_sequence(&saved, 0).unwrap_err();
    assert!(error.to_string().contains("another model"), "{error}");
    mixed.context.restore_sequence(&saved, 0).expect("the same model");
}
