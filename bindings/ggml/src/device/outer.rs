//! When a capped graph becomes one CUDA graph, and when that one may be replayed.
//!
//! A pure state machine: it sees what is known of each graph before it runs and what became of the last step, and
//! says what to do next. It never touches a GPU.
//!
//! ```text
//! begin ---- never seen, long ago, not to be captured, no room ------------> Eager
//!       ---- seen before ----> BeginCapture -> ended -> Instantiate | Update -> made -> Replay
//!       ---- captured -------> Replay
//! ```
//!
//! A graph counts as the same where the content of its nodes and our launches are ([`content`](super::content)).
//! llama.cpp builds a graph anew when the batch has another size than the last, when the padded size of the KV cache
//! has grown (every 256 tokens), and after a context shift: a new uid each time, but the same content where batch and
//! padded size come back. So several executable graphs are kept, one for each of the last few: decoding one sequence
//! and then two in turn, or a prompt in between, costs no capture once both were seen.
//!
//! Anything that fails ends in running eagerly for good, and says why.

use std::collections::VecDeque;

use super::GraphCounts;
use super::obstacle::Obstacle;

/// Executable graphs kept at a time. Each holds the parameters of some thousand launches.
const MOST: usize = 8;

/// Graphs remembered that ran eagerly.
const REMEMBERED: usize = 32;

/// A full house gives up the graph that was not run for longest, if that many others ran meanwhile; until then the
/// next graph stays eager. More than are remembered: of more graphs that take turns than fit, each would be thrown
/// out right before it is due.
const STALE: u64 = 2 * REMEMBERED as u64;

/// What is known of a graph before it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Facts {
    /// A digest of ggml's nodes; `None` where the graph cannot be known again.
    pub(super) content: Option<u64>,
    /// A digest of our launches: blocks, addresses, rows, norms, figures.
    pub(super) launches: u64,
    /// Why the graph must not be captured.
    pub(super) obstacle: Option<Obstacle>,
}

/// What to do next. The number is that of an executable graph, below [`MOST`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    /// Run views and launches one by one.
    Eager,
    /// Begin a capture, run views and launches into it, end it, and tell [`Outer::ended`].
    BeginCapture,
    /// Make this executable graph of what was captured, and tell [`Outer::made`].
    Instantiate(usize),
    /// Fit this executable graph to what was captured, and tell [`Outer::made`].
    Update(usize),
    /// Launch this executable graph.
    Replay(usize),
}

/// What identifies a graph: its content and our launches.
type Identity = (u64, u64);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Ready,
    /// Between `BeginCapture` and `ended`.
    Capturing(Identity, usize),
    /// Between `Instantiate` or `Update` and `made`.
    Making {
        identity: Identity,
        slot: usize,
        update: bool,
    },
    /// Eager for good.
    Broken,
}

/// An executable graph.
#[derive(Debug, Clone, Copy)]
struct Held {
    /// The graph it launches; `None` where it was given up for one that could not be captured.
    identity: Option<Identity>,
    /// When it was launched last.
    used: u64,
}

/// The machine. One per backend.
#[derive(Debug)]
pub(super) struct Outer {
    state: State,
    held: Vec<Held>,
    /// The last graphs that ran eagerly and could be captured, the latest at the end.
    seen: VecDeque<Identity>,
    /// Graphs so far: the time.
    now: u64,
    /// Why it is eager for good.
    broken: Option<String>,
    counters: GraphCounts,
}

impl Outer {
    pub(super) fn new() -> Self {
        Self {
            state: State::Ready,
            held: Vec::new(),
            seen: VecDeque::new(),
            now: 0,
            broken: None,
            counters: GraphCounts::default(),
        }
    }

    /// A graph is about to run.
    pub(super) fn begin(&mut self, facts: &Facts) -> Action {
        self.now += 1;
        let content = facts.content.filter(|_| facts.obstacle.is_none() && self.state != State::Broken);
        if let Some(content) = content {
            let identity = (content, facts.launches);
            if let Some(slot) = self.held.iter().position(|held| held.identity == Some(identity)) {
                return self.replay(slot);
            }
            let seen = self.seen.iter().position(|&seen| seen == identity);
            if let Some(at) = seen {
                self.seen.remove(at);
                if let Some(slot) = self.room() {
                    tracing::debug!(slot, "capturing");
                    self.state = State::Capturing(identity, slot);
                    return Action::BeginCapture;
                }
            }
            if self.seen.len() == REMEMBERED {
                self.seen.pop_front();
            }
            self.seen.push_back(identity);
        }
        tracing::trace!(obstacle = facts.obstacle.map(|obstacle| obstacle.reason), "running eagerly");
        self.eager()
    }

    /// The capture ended, or failed and why.
    pub(super) fn ended(&mut self, outcome: Result<(), String>) -> Action {
        match (self.state, outcome) {
            (State::Capturing(identity, slot), Ok(())) => {
                self.counters.captures += 1;
                // What is there is fitted to the new graph: from now on it is not the old one, whatever happens.
                let update = self.held.get_mut(slot).is_some_and(|held| {
                    held.identity = None;
                    true
                });
                self.state = State::Making { identity, slot, update };
                if update { Action::Update(slot) } else { Action::Instantiate(slot) }
            }
            (_, Err(reason)) => self.give_up(reason),
            (_, Ok(())) => self.give_up("a capture ended that was not begun".into()),
        }
    }

    /// The executable graph is there, or could not be made and why. One that cannot be fitted is made anew.
    pub(super) fn made(&mut self, outcome: Result<(), String>) -> Action {
        match (self.state, outcome) {
            (State::Making { identity, slot, update }, Ok(())) => {
                self.counters.updates += u64::from(update);
                self.state = State::Ready;
                let held = Held { identity: Some(identity), used: self.now };
                match self.held.get_mut(slot) {
                    Some(place) => *place = held,
                    None => self.held.push(held),
                }
                self.replay(slot)
            }
            (State::Making { identity, slot, update: true }, Err(reason)) => {
                tracing::debug!(reason, "the graph changed too much to be updated");
                self.state = State::Making { identity, slot, update: false };
                Action::Instantiate(slot)
            }
            (_, Err(reason)) => self.give_up(reason),
            (_, Ok(())) => self.give_up("a graph was made that was not captured".into()),
        }
    }

    /// Something that the executable graphs use is about to go away. Returns whether there are any to throw away.
    pub(super) fn reset(&mut self, reason: &'static str) -> bool {
        if self.state != State::Broken {
            self.state = State::Ready;
        }
        self.seen.clear();
        let held = std::mem::take(&mut self.held).len();
        if held > 0 {
            tracing::debug!(reason, held, "the captured graphs are thrown away");
            self.counters.resets += 1;
        }
        held > 0
    }

    /// Where the next executable graph goes: next to the others, or in the place of one that seems to be of no use
    /// any more.
    fn room(&self) -> Option<usize> {
        if self.held.len() < MOST {
            return Some(self.held.len());
        }
        let oldest = (0..MOST).min_by_key(|&slot| self.held[slot].used)?;
        (self.now - self.held[oldest].used > STALE).then_some(oldest)
    }

    fn replay(&mut self, slot: usize) -> Action {
        self.held[slot].used = self.now;
        self.counters.replays += 1;
        Action::Replay(slot)
    }

    fn eager(&mut self) -> Action {
        self.counters.eager += 1;
        Action::Eager
    }

    /// From now on eager; the graph at hand too, which has not run yet.
    fn give_up(&mut self, reason: String) -> Action {
        tracing::warn!(reason, "capped graphs are not captured any more, they run eagerly");
        self.state = State::Broken;
        self.broken = Some(reason);
        self.eager()
    }

    pub(super) fn counters(&self) -> GraphCounts {
        self.counters
    }

    /// Why it is eager for good.
    pub(super) fn broken(&self) -> Option<&str> {
        self.broken.as_deref()
    }
}

#[cfg(test)]
mod tests {
    use super::super::obstacle::passing;
    use super::*;

    fn facts(content: u64) -> Facts {
        Facts { content: Some(content), launches: 1, obstacle: None }
    }

    /// Runs a graph where the GPU does all it is asked. Returns the steps.
    fn run(outer: &mut Outer, facts: &Facts, updates: bool) -> Vec<Action> {
        let mut steps = vec![outer.begin(facts)];
        loop {
            let next = match steps[steps.len() - 1] {
                Action::Eager | Action::Replay(_) => return steps,
                Action::BeginCapture => outer.ended(Ok(())),
                Action::Instantiate(_) => outer.made(Ok(())),
                Action::Update(_) => outer.made(if updates { Ok(()) } else { Err("topology".into()) }),
            };
            steps.push(next);
        }
    }

    fn capture(slot: usize) -> [Action; 3] {
        [Action::BeginCapture, Action::Instantiate(slot), Action::Replay(slot)]
    }

    fn update(slot: usize) -> [Action; 3] {
        [Action::BeginCapture, Action::Update(slot), Action::Replay(slot)]
    }

    #[test]
    fn a_long_generation() {
        let mut outer = Outer::new();
        assert_eq!(run(&mut outer, &facts(1), true), [Action::Eager], "prefill");
        // The padded KV size grows every 256 tokens.
        for token in 0..12 * 256_u64 {
            let era = token / 256;
            let slot = (era % 8) as usize;
            let steps = run(&mut outer, &facts(2 + era), true);
            match (era, token % 256) {
                (_, 0) => assert_eq!(steps, [Action::Eager], "{token}"),
                (..8, 1) => assert_eq!(steps, capture(slot), "{token}"),
                (_, 1) => assert_eq!(steps, update(slot), "{token}"),
                _ => assert_eq!(steps, [Action::Replay(slot)], "{token}"),
            }
        }
        let expected = GraphCounts { captures: 12, updates: 4, replays: 12 * 255, eager: 13, resets: 0 };
        assert_eq!(outer.counters(), expected);
    }

    #[test]
    fn graphs_that_never_come_back_or_cannot_be_known_are_eager() {
        let mut outer = Outer::new();
        for content in 1..200 {
            assert_eq!(run(&mut outer, &facts(content), true), [Action::Eager]);
        }
        let unknown = Facts { content: None, ..facts(0) };
        for _ in 0..10 {
            assert_eq!(run(&mut outer, &unknown, true), [Action::Eager]);
        }
        assert_eq!(outer.counters(), GraphCounts { eager: 209, ..GraphCounts::default() });
    }

    #[test]
    fn batch_sizes_in_turn_and_prompts_in_between() {
        let mut outer = Outer::new();
        let (one, two) = (facts(1), facts(2));
        for graph in [&one, &two] {
            assert_eq!(run(&mut outer, graph, true), [Action::Eager]);
        }
        assert_eq!(run(&mut outer, &one, true), capture(0));
        assert_eq!(run(&mut outer, &two, true), capture(1));
        for prompt in 0..10 {
            assert_eq!(run(&mut outer, &one, true), [Action::Replay(0)]);
            assert_eq!(run(&mut outer, &facts(100 + prompt), true), [Action::Eager]);
            assert_eq!(run(&mut outer, &two, true), [Action::Replay(1)]);
        }
    }

    #[test]
    fn parts_of_one_graph_take_turns_and_no_more_of_them_are_captured_than_fit() {
        for parts in [2, 8, 9, 20, 32, 33, 200] {
            let mut outer = Outer::new();
            for token in 0..50 {
                for part in 0..parts {
                    let steps = run(&mut outer, &facts(part), true);
                    // Of more than are remembered none is ever known again.
                    let held = part < 8 && parts <= 32;
                    match token {
                        1 if held => assert_eq!(steps, capture(part as usize)),
                        2.. if held => assert_eq!(steps, [Action::Replay(part as usize)]),
                        _ => assert_eq!(steps, [Action::Eager], "{parts} {token} {part}"),
                    }
                }
            }
        }
    }

    #[test]
    fn what_was_not_run_for_longest_makes_room() {
        let mut outer = Outer::new();
        for content in 0..8 {
            run(&mut outer, &facts(content), true);
            assert_eq!(run(&mut outer, &facts(content), true), capture(content as usize));
        }
        // All but 3 are run again.
        for turn in 0..70 {
            let content = [0, 1, 2, 4, 5, 6, 7][turn % 7];
            assert_eq!(run(&mut outer, &facts(content), true), [Action::Replay(content as usize)]);
        }
        assert_eq!(run(&mut outer, &facts(50), true), [Action::Eager]);
        let anew = [Action::BeginCapture, Action::Update(3), Action::Instantiate(3), Action::Replay(3)];
        assert_eq!(run(&mut outer, &facts(50), false), anew);
        assert_eq!(run(&mut outer, &facts(3), true), [Action::Eager], "it is gone");
        assert_eq!(run(&mut outer, &facts(3), true), [Action::Eager], "and there is no room");
    }

    #[test]
    fn other_launches_under_the_same_content_are_another_graph() {
        let mut outer = Outer::new();
        let silent = Facts { launches: 2, ..facts(1) };
        for _ in 0..2 {
            run(&mut outer, &facts(1), true);
        }
        assert_eq!(run(&mut outer, &silent, true), [Action::Eager]);
        assert_eq!(run(&mut outer, &silent, true), capture(1));
        assert_eq!(run(&mut outer, &facts(1), true), [Action::Replay(0)]);
    }

    #[test]
    fn an_obstacle_keeps_a_graph_eager_and_others_capturable() {
        let mut outer = Outer::new();
        let obstacle = Facts { obstacle: Some(passing("a tap waits for the rows")), ..facts(1) };
        for _ in 0..3 {
            assert_eq!(run(&mut outer, &obstacle, true), [Action::Eager]);
        }
        assert_eq!(
            run(&mut outer, &facts(1), true),
            [Action::Eager],
            "warming up begins without the obstacle"
        );
        assert_eq!(run(&mut outer, &facts(1), true), capture(0));
        assert_eq!(run(&mut outer, &obstacle, true), [Action::Eager]);
        assert_eq!(run(&mut outer, &facts(1), true), [Action::Replay(0)]);
    }

    #[test]
    fn a_reset_warms_up_again_and_makes_new_graphs() {
        let mut outer = Outer::new();
        assert!(!outer.reset("nothing there yet"));
        for content in [1, 2] {
            for _ in 0..3 {
                run(&mut outer, &facts(content), true);
            }
        }
        assert!(outer.reset("a table moved"));
        assert!(!outer.reset("twice"));
        for (slot, content) in [2, 1].into_iter().enumerate() {
            assert_eq!(run(&mut outer, &facts(content), true), [Action::Eager]);
            assert_eq!(run(&mut outer, &facts(content), true), capture(slot));
        }
        assert_eq!(outer.counters().resets, 1);
        run(&mut outer, &facts(3), true);
        outer.reset("what was seen is forgotten too");
        assert_eq!(run(&mut outer, &facts(3), true), [Action::Eager]);
    }

    #[test]
    fn failures_end_in_eager_for_good_with_the_reason() {
        type Fail = fn(&mut Outer) -> Action;
        let failures: [(Fail, &str); 3] = [
            (|outer| outer.ended(Err("capture: not permitted".into())), "not permitted"),
            (
                |outer| {
                    assert_eq!(outer.ended(Ok(())), Action::Instantiate(1));
                    outer.made(Err("instantiate: out of memory".into()))
                },
                "out of memory",
            ),
            (|outer| outer.made(Ok(())), "not captured"),
        ];
        for (fail, reason) in failures {
            let mut outer = Outer::new();
            for content in [1, 1, 2] {
                run(&mut outer, &facts(content), true);
            }
            assert_eq!(outer.begin(&facts(2)), Action::BeginCapture);
            assert_eq!(fail(&mut outer), Action::Eager);
            assert!(outer.broken().unwrap().contains(reason));
            for content in [1, 2, 2, 3] {
                assert_eq!(run(&mut outer, &facts(content), true), [Action::Eager]);
            }
            outer.reset("nothing comes back by itself");
            assert_eq!(run(&mut outer, &facts(1), true), [Action::Eager]);
        }
    }

    /// Long random sequences of a few graphs with resets and every way to fail, against a plain record of what each
    /// executable graph was made from: a graph is replayed only from one that was made from this very graph, numbers
    /// stay in range, and nothing but an existing graph is updated or launched.
    #[test]
    fn replays_are_only_of_what_the_executable_graph_was_made_from() {
        let mut updates = 0;
        for seed in 1..200_u64 {
            let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let mut next = |n: u64| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                state % n
            };
            let mut outer = Outer::new();
            let (graphs, failure) = (2 + next(12), next(4));
            let mut made_from: Vec<Option<u64>> = vec![None; MOST];
            for step in 0..1500 {
                if next(400) == 0 {
                    let any = made_from.iter().any(Option::is_some);
                    assert!(outer.reset("the test says so") || !any);
                    made_from.fill(None);
                }
                // Others after a while, so that the first become stale.
                let content = step / 300 * 8 + next(graphs);
                let fails = next(40) == 0;
                let mut action = outer.begin(&facts(content));
                loop {
                    action = match action {
                        Action::Eager => break,
                        Action::Replay(slot) => {
                            assert_eq!(made_from[slot], Some(content), "{seed}");
                            break;
                        }
                        Action::BeginCapture if fails && failure == 1 => outer.ended(Err("end".into())),
                        Action::BeginCapture => outer.ended(Ok(())),
                        Action::Instantiate(_) if fails && failure == 2 => {
                            outer.made(Err("instantiate".into()))
                        }
                        Action::Update(slot) => {
                            assert!(made_from[slot].is_some(), "{seed}");
                            if failure == 3 && fails {
                                outer.made(Err("update".into()))
                            } else {
                                made_from[slot] = Some(content);
                                outer.made(Ok(()))
                            }
                        }
                        Action::Instantiate(slot) => {
                            made_from[slot] = Some(content);
                            outer.made(Ok(()))
                        }
                    };
                }
            }
            updates += outer.counters().updates;
        }
        assert!(updates > 100, "{updates}");
    }
}
