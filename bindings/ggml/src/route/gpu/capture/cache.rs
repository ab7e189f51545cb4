//! When a capped graph is captured as one CUDA graph, and when that one is replayed.
//!
//! A pure state machine. It sees what is known of each graph before it runs and how the last step ended, and returns the
//! next step. It does not touch a GPU.
//!
//! ```text
//! begin ---- never seen, long ago, not to be captured, cache full --------> Eager
//!       ---- seen before ----> BeginCapture -> capture_ended -> Instantiate | Update -> instantiated -> Replay
//!       ---- captured -------> Replay
//! ```
//!
//! Two graphs are the same if the content of their nodes and our launches are ([`digest`](super::digest)). llama.cpp
//! rebuilds a graph when the batch has another size than the last, when the padded size of the KV cache grows (every 256
//! tokens), and after a context shift. The rebuilt graph has a new uid, but the same content if batch and padded size are
//! those of an earlier one. Therefore the executable graphs of the last few are kept. Decoding one sequence and two in
//! turn, or a prompt in between, needs no capture once both were seen.
//!
//! A failed step makes all further graphs eager, and is logged with its reason.

use std::collections::VecDeque;

use super::blocker::CaptureBlocker;
use crate::report::GraphCounts;

/// Executable graphs kept at a time. Each holds the parameters of some thousand launches.
const MAX_GRAPHS: usize = 8;

/// Graphs remembered that ran eagerly.
const MAX_SEEN: usize = 32;

/// When the cache is full, its least recently used graph is evicted, but only after this many graphs ran without it.
/// Otherwise a cycle of `MAX_GRAPHS + 1` graphs would evict each one just before its reuse. It is larger than
/// [`MAX_SEEN`] for the same reason.
const STALE: u64 = 2 * MAX_SEEN as u64;

/// What identifies a graph, and whether it may be captured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct GraphKey {
    /// A digest of ggml's nodes, or `None` where the graph cannot be recognised.
    pub(crate) content: Option<u64>,
    /// A digest of our launches: blocks, addresses, rows, norms, statistics.
    pub(crate) launches: u64,
    /// Why the graph must not be captured.
    pub(crate) blocker: Option<CaptureBlocker>,
}

/// The next step. The number is the slot of an executable graph, below [`MAX_GRAPHS`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    /// Run views and launches one by one.
    Eager,
    /// Begin a capture, run views and launches into it, end it, and call [`GraphCache::capture_ended`].
    BeginCapture,
    /// Make this executable graph from the capture, and call [`GraphCache::instantiated`].
    Instantiate(usize),
    /// Update this executable graph to the capture, and call [`GraphCache::instantiated`].
    Update(usize),
    /// Launch this executable graph.
    Replay(usize),
}

/// Content and launches of a graph.
type Identity = (u64, u64);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum State {
    #[default]
    Ready,
    /// Between `BeginCapture` and `capture_ended`.
    Capturing(Identity, usize),
    /// Between `Instantiate` or `Update` and `instantiated`.
    Instantiating { identity: Identity, slot: usize, update: bool },
    /// Eager for good.
    Broken,
}

/// An executable graph.
#[derive(Debug, Clone, Copy)]
struct CachedGraph {
    /// The graph that it launches. `None` once it was given up for a graph that could not be captured.
    identity: Option<Identity>,
    /// Time of its last launch.
    used: u64,
}

/// The executable graphs of one backend, and the state of making another.
#[derive(Debug, Default)]
pub(crate) struct GraphCache {
    state: State,
    graphs: Vec<CachedGraph>,
    /// The last graphs that ran eagerly and could be captured, the latest at the end.
    seen: VecDeque<Identity>,
    /// Graphs run so far. Serves as the time.
    now: u64,
    /// Why all graphs are eager.
    broken: Option<String>,
    counts: GraphCounts,
}

impl GraphCache {
    /// A graph is about to run.
    pub(crate) fn begin(&mut self, key: &GraphKey) -> Action {
        self.now += 1;
        let content = key.content.filter(|_| key.blocker.is_none() && self.state != State::Broken);
        if let Some(content) = content {
            let identity = (content, key.launches);
            if let Some(slot) = self.graphs.iter().position(|graph| graph.identity == Some(identity)) {
                return self.replay(slot);
            }
            let seen = self.seen.iter().position(|&seen| seen == identity);
            if let Some(at) = seen {
                self.seen.remove(at);
                if let Some(slot) = self.free_slot() {
                    tracing::debug!(slot, "capturing");
                    self.state = State::Capturing(identity, slot);
                    return Action::BeginCapture;
                }
            }
            if self.seen.len() == MAX_SEEN {
                self.seen.pop_front();
            }
            self.seen.push_back(identity);
        }
        tracing::trace!(blocker = key.blocker.map(|blocker| blocker.reason), "running eagerly");
        self.eager()
    }

    /// The capture ended, or failed for a reason.
    pub(crate) fn capture_ended(&mut self, outcome: Result<(), String>) -> Action {
        match (self.state, outcome) {
            (State::Capturing(identity, slot), Ok(())) => {
                self.counts.captures += 1;
                // From now on the executable graph in the slot is no longer the old one, even if the update fails.
                let update = self.graphs.get_mut(slot).is_some_and(|graph| {
                    graph.identity = None;
                    true
                });
                self.state = State::Instantiating { identity, slot, update };
                if update { Action::Update(slot) } else { Action::Instantiate(slot) }
            }
            (_, Err(reason)) => self.give_up(reason),
            (_, Ok(())) => self.give_up("a capture ended that was not begun".into()),
        }
    }

    /// The executable graph was made, or could not be for a reason. A failed update is followed by an instantiation.
    pub(crate) fn instantiated(&mut self, outcome: Result<(), String>) -> Action {
        match (self.state, outcome) {
            (State::Instantiating { identity, slot, update }, Ok(())) => {
                self.counts.updates += u64::from(update);
                self.state = State::Ready;
                let graph = CachedGraph { identity: Some(identity), used: self.now };
                match self.graphs.get_mut(slot) {
                    Some(place) => *place = graph,
                    None => self.graphs.push(graph),
                }
                self.replay(slot)
            }
            (State::Instantiating { identity, slot, update: true }, Err(reason)) => {
                tracing::debug!(reason, "the graph changed too much to be updated");
                self.state = State::Instantiating { identity, slot, update: false };
                Action::Instantiate(slot)
            }
            (_, Err(reason)) => self.give_up(reason),
            (_, Ok(())) => self.give_up("a graph was made that was not captured".into()),
        }
    }

    /// Memory that the executable graphs use is about to be freed. Returns whether there are any to discard.
    pub(super) fn reset(&mut self, reason: &'static str) -> bool {
        if self.state != State::Broken {
            self.state = State::Ready;
        }
        self.seen.clear();
        let graphs = std::mem::take(&mut self.graphs).len();
        if graphs > 0 {
            tracing::debug!(reason, graphs, "the captured graphs are discarded");
            self.counts.resets += 1;
        }
        graphs > 0
    }

    /// Returns the slot for the next executable graph: an empty one, or that of a stale graph.
    fn free_slot(&self) -> Option<usize> {
        if self.graphs.len() < MAX_GRAPHS {
            return Some(self.graphs.len());
        }
        let oldest = (0..MAX_GRAPHS).min_by_key(|&slot| self.graphs[slot].used)?;
        (self.now - self.graphs[oldest].used > STALE).then_some(oldest)
    }

    fn replay(&mut self, slot: usize) -> Action {
        self.graphs[slot].used = self.now;
        self.counts.replays += 1;
        Action::Replay(slot)
    }

    fn eager(&mut self) -> Action {
        self.counts.eager += 1;
        Action::Eager
    }

    /// Makes all graphs eager, including the one at hand, which has not run yet.
    fn give_up(&mut self, reason: String) -> Action {
        tracing::warn!(reason, "capped graphs are not captured any more, they run eagerly");
        self.state = State::Broken;
        self.broken = Some(reason);
        self.eager()
    }

    pub(super) fn counts(&self) -> GraphCounts {
        self.counts
    }

    /// Why all graphs are eager, if they are.
    pub(super) fn broken(&self) -> Option<&str> {
        self.broken.as_deref()
    }
}

#[cfg(test)]
mod tests {
    use super::super::blocker::temporary;
    use super::*;

    fn key(content: u64) -> GraphKey {
        GraphKey { content: Some(content), launches: 1, blocker: None }
    }

    /// Runs a graph where the GPU does all it is asked. Returns the steps.
    fn run(cache: &mut GraphCache, key: &GraphKey, updates: bool) -> Vec<Action> {
        let mut steps = vec![cache.begin(key)];
        loop {
            let next = match steps[steps.len() - 1] {
                Action::Eager | Action::Replay(_) => return steps,
                Action::BeginCapture => cache.capture_ended(Ok(())),
                Action::Instantiate(_) => cache.instantiated(Ok(())),
                Action::Update(_) => {
                    cache.instantiated(if updates { Ok(()) } else { Err("topology".into()) })
                }
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
        let mut cache = GraphCache::default();
        assert_eq!(run(&mut cache, &key(1), true), [Action::Eager], "prefill");
        // The padded KV size grows every 256 tokens.
        for token in 0..12 * 256_u64 {
            let era = token / 256;
            let slot = (era % 8) as usize;
            let steps = run(&mut cache, &key(2 + era), true);
            match (era, token % 256) {
                (_, 0) => assert_eq!(steps, [Action::Eager], "{token}"),
                (..8, 1) => assert_eq!(steps, capture(slot), "{token}"),
                (_, 1) => assert_eq!(steps, update(slot), "{token}"),
                _ => assert_eq!(steps, [Action::Replay(slot)], "{token}"),
            }
        }
        let expected = GraphCounts { captures: 12, updates: 4, replays: 12 * 255, eager: 13, resets: 0 };
        assert_eq!(cache.counts(), expected);
    }

    #[test]
    fn graphs_that_never_come_back_or_cannot_be_recognised_are_eager() {
        let mut cache = GraphCache::default();
        for content in 1..200 {
            assert_eq!(run(&mut cache, &key(content), true), [Action::Eager]);
        }
        let unknown = GraphKey { content: None, ..key(0) };
        for _ in 0..10 {
            assert_eq!(run(&mut cache, &unknown, true), [Action::Eager]);
        }
        assert_eq!(cache.counts(), GraphCounts { eager: 209, ..GraphCounts::default() });
    }

    #[test]
    fn batch_sizes_in_turn_and_prompts_in_between() {
        let mut cache = GraphCache::default();
        let (one, two) = (key(1), key(2));
        for graph in [&one, &two] {
            assert_eq!(run(&mut cache, graph, true), [Action::Eager]);
        }
        assert_eq!(run(&mut cache, &one, true), capture(0));
        assert_eq!(run(&mut cache, &two, true), capture(1));
        for prompt in 0..10 {
            assert_eq!(run(&mut cache, &one, true), [Action::Replay(0)]);
            assert_eq!(run(&mut cache, &key(100 + prompt), true), [Action::Eager]);
            assert_eq!(run(&mut cache, &two, true), [Action::Replay(1)]);
        }
    }

    #[test]
    fn parts_of_one_graph_take_turns_and_no_more_of_them_are_captured_than_fit() {
        for parts in [2, 8, 9, 20, 32, 33, 200] {
            let mut cache = GraphCache::default();
            for token in 0..50 {
                for part in 0..parts {
                    let steps = run(&mut cache, &key(part), true);
                    // Of more graphs than are remembered, none is ever recognised.
                    let cached = part < 8 && parts <= 32;
                    match token {
                        1 if cached => assert_eq!(steps, capture(part as usize)),
                        2.. if cached => assert_eq!(steps, [Action::Replay(part as usize)]),
                        _ => assert_eq!(steps, [Action::Eager], "{parts} {token} {part}"),
                    }
                }
            }
        }
    }

    #[test]
    fn the_least_recently_used_graph_is_evicted() {
        let mut cache = GraphCache::default();
        for content in 0..8 {
            run(&mut cache, &key(content), true);
            assert_eq!(run(&mut cache, &key(content), true), capture(content as usize));
        }
        // All but 3 are run again.
        for turn in 0..70 {
            let content = [0, 1, 2, 4, 5, 6, 7][turn % 7];
            assert_eq!(run(&mut cache, &key(content), true), [Action::Replay(content as usize)]);
        }
        assert_eq!(run(&mut cache, &key(50), true), [Action::Eager]);
        let again = [Action::BeginCapture, Action::Update(3), Action::Instantiate(3), Action::Replay(3)];
        assert_eq!(run(&mut cache, &key(50), false), again);
        assert_eq!(run(&mut cache, &key(3), true), [Action::Eager], "it is gone");
        assert_eq!(run(&mut cache, &key(3), true), [Action::Eager], "and the cache is full");
    }

    #[test]
    fn other_launches_under_the_same_content_are_another_graph() {
        let mut cache = GraphCache::default();
        let silent = GraphKey { launches: 2, ..key(1) };
        for _ in 0..2 {
            run(&mut cache, &key(1), true);
        }
        assert_eq!(run(&mut cache, &silent, true), [Action::Eager]);
        assert_eq!(run(&mut cache, &silent, true), capture(1));
        assert_eq!(run(&mut cache, &key(1), true), [Action::Replay(0)]);
    }

    #[test]
    fn a_blocked_graph_stays_eager_and_others_are_captured() {
        let mut cache = GraphCache::default();
        let blocked = GraphKey { blocker: Some(temporary("a tap waits for the rows")), ..key(1) };
        for _ in 0..3 {
            assert_eq!(run(&mut cache, &blocked, true), [Action::Eager]);
        }
        assert_eq!(run(&mut cache, &key(1), true), [Action::Eager], "warming up begins without the blocker");
        assert_eq!(run(&mut cache, &key(1), true), capture(0));
        assert_eq!(run(&mut cache, &blocked, true), [Action::Eager]);
        assert_eq!(run(&mut cache, &key(1), true), [Action::Replay(0)]);
    }

    #[test]
    fn a_reset_warms_up_again_and_makes_new_graphs() {
        let mut cache = GraphCache::default();
        assert!(!cache.reset("the cache is empty"));
        for content in [1, 2] {
            for _ in 0..3 {
                run(&mut cache, &key(content), true);
            }
        }
        assert!(cache.reset("a table moved"));
        assert!(!cache.reset("twice"));
        for (slot, content) in [2, 1].into_iter().enumerate() {
            assert_eq!(run(&mut cache, &key(content), true), [Action::Eager]);
            assert_eq!(run(&mut cache, &key(content), true), capture(slot));
        }
        assert_eq!(cache.counts().resets, 1);
        run(&mut cache, &key(3), true);
        cache.reset("what was seen is forgotten too");
        assert_eq!(run(&mut cache, &key(3), true), [Action::Eager]);
    }

    #[test]
    fn failures_end_in_eager_for_good_with_the_reason() {
        type Fail = fn(&mut GraphCache) -> Action;
        let failures: [(Fail, &str); 3] = [
            (|cache| cache.capture_ended(Err("capture: not permitted".into())), "not permitted"),
            (
                |cache| {
                    assert_eq!(cache.capture_ended(Ok(())), Action::Instantiate(1));
                    cache.instantiated(Err("instantiate: out of memory".into()))
                },
                "out of memory",
            ),
            (|cache| cache.instantiated(Ok(())), "not captured"),
        ];
        for (fail, reason) in failures {
            let mut cache = GraphCache::default();
            for content in [1, 1, 2] {
                run(&mut cache, &key(content), true);
            }
            assert_eq!(cache.begin(&key(2)), Action::BeginCapture);
            assert_eq!(fail(&mut cache), Action::Eager);
            assert!(cache.broken().unwrap().contains(reason));
            for content in [1, 2, 2, 3] {
                assert_eq!(run(&mut cache, &key(content), true), [Action::Eager]);
            }
            cache.reset("a reset does not repair it");
            assert_eq!(run(&mut cache, &key(1), true), [Action::Eager]);
        }
    }

    /// Long random sequences of a few graphs, with resets and every way to fail, compared with a record of the graph that
    /// each executable graph was made from. A graph is replayed only by an executable graph of its own, slots stay in
    /// range, and only existing graphs are updated or launched.
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
            let mut cache = GraphCache::default();
            let (graphs, failure) = (2 + next(12), next(4));
            let mut made_from: Vec<Option<u64>> = vec![None; MAX_GRAPHS];
            for step in 0..1500 {
                if next(400) == 0 {
                    let any = made_from.iter().any(Option::is_some);
                    assert!(cache.reset("the test says so") || !any);
                    made_from.fill(None);
                }
                // Others after a while, so that the first become stale.
                let content = step / 300 * 8 + next(graphs);
                let fails = next(40) == 0;
                let mut action = cache.begin(&key(content));
                loop {
                    action = match action {
                        Action::Eager => break,
                        Action::Replay(slot) => {
                            assert_eq!(made_from[slot], Some(content), "{seed}");
                            break;
                        }
                        Action::BeginCapture if fails && failure == 1 => {
                            cache.capture_ended(Err("end".into()))
                        }
                        Action::BeginCapture => cache.capture_ended(Ok(())),
                        Action::Instantiate(_) if fails && failure == 2 => {
                            cache.instantiated(Err("instantiate".into()))
                        }
                        Action::Update(slot) => {
                            assert!(made_from[slot].is_some(), "{seed}");
                            if failure == 3 && fails {
                                cache.instantiated(Err("update".into()))
                            } else {
                                made_from[slot] = Some(content);
                                cache.instantiated(Ok(()))
                            }
                        }
                        Action::Instantiate(slot) => {
                            made_from[slot] = Some(content);
                            cache.instantiated(Ok(()))
                        }
                    };
                }
            }
            updates += cache.counts().updates;
        }
        assert!(updates > 100, "{updates}");
    }
}
