//! When a capped graph becomes one CUDA graph, and when that one may be replayed.
//!
//! A pure state machine: it sees what is known of each graph before it runs and what became of the last step, and
//! says what to do next. It never touches a GPU.
//!
//! ```text
//! begin ---- not the graph of last time, or not to be captured ----------> Eager
//!       ---- the same a second time ----> BeginCapture -> ended -> Instantiate | Update -> made -> Replay
//!       ---- the same as was captured --> Replay
//! ```
//!
//! A graph counts as the same where ggml's uid and our launches are: that is what ggml itself goes by. It comes as
//! often as llama.cpp reuses its graph; that ends when the padded size of the KV cache grows (every 256 tokens),
//! with another batch, a context shift, or with `LLAMA_GRAPH_REUSE_DISABLE`, and gives a new uid.
//! Anything that fails ends in running eagerly for good, and says why.

use super::GraphCounts;

/// What is known of a graph before it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Facts {
    /// ggml's; zero where it has none.
    pub(super) uid: u64,
    /// A digest of our launches: blocks, addresses, rows, figures.
    pub(super) launches: u64,
    /// Why the graph must not be captured.
    pub(super) obstacle: Option<&'static str>,
}

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    /// Run views and launches one by one.
    Eager,
    /// Begin a capture, run views and launches into it, end it, and tell [`Outer::ended`].
    BeginCapture,
    /// Make an executable graph of what was captured, and tell [`Outer::made`].
    Instantiate,
    /// Fit the executable graph to what was captured, and tell [`Outer::made`].
    Update,
    /// Launch the executable graph.
    Replay,
}

/// What identifies a graph: its uid and our launches.
type Identity = (u64, u64);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// The last graph ran eagerly; it is captured if it comes again.
    Warm(Option<Identity>),
    /// Between `BeginCapture` and `ended`.
    Capturing(Identity),
    /// Between `Instantiate` or `Update` and `made`.
    Making(Identity, bool),
    /// There is an executable graph for it.
    Captured(Identity),
    /// Eager for good.
    Broken,
}

/// The machine. One per backend.
#[derive(Debug)]
pub(super) struct Outer {
    state: State,
    /// Whether an executable graph exists, which the next capture may be fitted into.
    executable: bool,
    /// Why it is eager for good.
    broken: Option<String>,
    counters: GraphCounts,
}

impl Outer {
    pub(super) fn new() -> Self {
        Self { state: State::Warm(None), executable: false, broken: None, counters: GraphCounts::default() }
    }

    /// A graph is about to run.
    pub(super) fn begin(&mut self, facts: &Facts) -> Action {
        let identity = (facts.uid, facts.launches);
        let known = facts.uid != 0 && facts.obstacle.is_none();
        self.state = match self.state {
            State::Broken => State::Broken,
            State::Captured(captured) if known && captured == identity => {
                self.counters.replays += 1;
                return Action::Replay;
            }
            State::Warm(Some(last)) if known && last == identity => {
                tracing::debug!(uid = facts.uid, "capturing");
                self.state = State::Capturing(identity);
                return Action::BeginCapture;
            }
            _ => State::Warm(known.then_some(identity)),
        };
        tracing::trace!(uid = facts.uid, obstacle = facts.obstacle, "running eagerly");
        self.counters.eager += 1;
        Action::Eager
    }

    /// The capture ended, or failed and why.
    pub(super) fn ended(&mut self, outcome: Result<(), String>) -> Action {
        match (self.state, outcome) {
            (State::Capturing(identity), Ok(())) => {
                self.counters.captures += 1;
                self.state = State::Making(identity, self.executable);
                if self.executable { Action::Update } else { Action::Instantiate }
            }
            (_, Err(reason)) => self.give_up(reason),
            (_, Ok(())) => self.give_up("a capture ended that was not begun".into()),
        }
    }

    /// The executable graph is there, or could not be made and why. One that cannot be fitted is made anew.
    pub(super) fn made(&mut self, outcome: Result<(), String>) -> Action {
        match (self.state, outcome) {
            (State::Making(identity, updated), Ok(())) => {
                self.executable = true;
                self.counters.updates += u64::from(updated);
                self.counters.replays += 1;
                self.state = State::Captured(identity);
                Action::Replay
            }
            (State::Making(identity, true), Err(reason)) => {
                tracing::debug!(reason, "the graph changed too much to be updated");
                self.executable = false;
                self.state = State::Making(identity, false);
                Action::Instantiate
            }
            (_, Err(reason)) => self.give_up(reason),
            (_, Ok(())) => self.give_up("a graph was made that was not captured".into()),
        }
    }

    /// Something that the executable graph uses is about to go away. Returns whether there is one to throw away.
    pub(super) fn reset(&mut self, reason: &'static str) -> bool {
        if self.state != State::Broken {
            self.state = State::Warm(None);
        }
        let executable = std::mem::take(&mut self.executable);
        if executable {
            tracing::debug!(reason, "the captured graph is thrown away");
            self.counters.resets += 1;
        }
        executable
    }

    /// From now on eager; the graph at hand too, which has not run yet.
    fn give_up(&mut self, reason: String) -> Action {
        tracing::warn!(reason, "capped graphs are not captured any more, they run eagerly");
        self.state = State::Broken;
        self.broken = Some(reason);
        self.counters.eager += 1;
        Action::Eager
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
    use super::*;

    fn facts(uid: u64) -> Facts {
        Facts { uid, launches: 1, obstacle: None }
    }

    /// Runs a graph where the GPU does all it is asked. Returns the steps.
    fn run(outer: &mut Outer, facts: &Facts, updates: bool) -> Vec<Action> {
        let mut steps = vec![outer.begin(facts)];
        loop {
            let next = match steps[steps.len() - 1] {
                Action::Eager | Action::Replay => return steps,
                Action::BeginCapture => outer.ended(Ok(())),
                Action::Instantiate => outer.made(Ok(())),
                Action::Update => outer.made(if updates { Ok(()) } else { Err("topology".into()) }),
            };
            steps.push(next);
        }
    }

    const CAPTURE: [Action; 3] = [Action::BeginCapture, Action::Instantiate, Action::Replay];
    const UPDATE: [Action; 3] = [Action::BeginCapture, Action::Update, Action::Replay];

    #[test]
    fn a_long_generation_with_graph_reuse() {
        let mut outer = Outer::new();
        assert_eq!(run(&mut outer, &facts(1), true), [Action::Eager], "prefill");
        // llama.cpp builds a new graph whenever the padded KV size grows.
        for token in 0..1024_u64 {
            let steps = run(&mut outer, &facts(2 + token / 256), true);
            match (token, token % 256) {
                (_, 0) => assert_eq!(steps, [Action::Eager], "{token}"),
                (1, _) => assert_eq!(steps, CAPTURE),
                (_, 1) => assert_eq!(steps, UPDATE, "{token}"),
                _ => assert_eq!(steps, [Action::Replay], "{token}"),
            }
        }
        let expected = GraphCounts { captures: 4, updates: 3, replays: 1020, eager: 5, resets: 0 };
        assert_eq!(outer.counters(), expected);
    }

    #[test]
    fn without_graph_reuse_or_without_uids_everything_is_eager() {
        let mut outer = Outer::new();
        for uid in 1..100 {
            assert_eq!(run(&mut outer, &facts(uid), true), [Action::Eager]);
        }
        for _ in 0..10 {
            assert_eq!(run(&mut outer, &facts(0), true), [Action::Eager]);
        }
        assert_eq!(outer.counters(), GraphCounts { eager: 109, ..GraphCounts::default() });
    }

    #[test]
    fn another_batch_size_or_a_context_shift_between_tokens() {
        let mut outer = Outer::new();
        for _ in 0..3 {
            run(&mut outer, &facts(1), true);
        }
        // A prompt of another request, then decoding goes on with a new graph of the old topology.
        assert_eq!(run(&mut outer, &facts(2), true), [Action::Eager]);
        assert_eq!(run(&mut outer, &facts(3), true), [Action::Eager]);
        assert_eq!(run(&mut outer, &facts(3), true), UPDATE);
        // A batch of two: what was captured cannot be fitted.
        assert_eq!(run(&mut outer, &facts(4), true), [Action::Eager]);
        let anew = [Action::BeginCapture, Action::Update, Action::Instantiate, Action::Replay];
        assert_eq!(run(&mut outer, &facts(4), false), anew);
        assert_eq!(run(&mut outer, &facts(4), true), [Action::Replay]);
        assert_eq!(
            outer.counters(),
            GraphCounts { captures: 3, updates: 1, replays: 5, eager: 4, resets: 0 }
        );
    }

    #[test]
    fn other_launches_under_the_same_uid_are_another_graph() {
        let mut outer = Outer::new();
        let silent = Facts { launches: 2, ..facts(1) };
        for _ in 0..2 {
            run(&mut outer, &facts(1), true);
        }
        assert_eq!(run(&mut outer, &silent, true), [Action::Eager]);
        assert_eq!(run(&mut outer, &silent, true), UPDATE);
        assert_eq!(run(&mut outer, &facts(1), true), [Action::Eager]);
    }

    #[test]
    fn an_obstacle_keeps_a_graph_eager_and_others_capturable() {
        let mut outer = Outer::new();
        let obstacle = Facts { obstacle: Some("a tap waits for the rows"), ..facts(1) };
        for _ in 0..3 {
            assert_eq!(run(&mut outer, &obstacle, true), [Action::Eager]);
        }
        assert_eq!(
            run(&mut outer, &facts(1), true),
            [Action::Eager],
            "warming up begins without the obstacle"
        );
        assert_eq!(run(&mut outer, &facts(1), true), CAPTURE);
        assert_eq!(run(&mut outer, &obstacle, true), [Action::Eager]);
    }

    #[test]
    fn a_reset_warms_up_again_and_makes_a_new_graph() {
        let mut outer = Outer::new();
        assert!(!outer.reset("nothing there yet"));
        for _ in 0..3 {
            run(&mut outer, &facts(1), true);
        }
        assert!(outer.reset("a table moved"));
        assert!(!outer.reset("twice"));
        assert_eq!(run(&mut outer, &facts(1), true), [Action::Eager]);
        assert_eq!(run(&mut outer, &facts(1), true), CAPTURE);
        assert_eq!(outer.counters().resets, 1);
    }

    #[test]
    fn failures_end_in_eager_for_good_with_the_reason() {
        type Fail = fn(&mut Outer) -> Action;
        let failures: [(Fail, &str); 3] = [
            (|outer| outer.ended(Err("capture: not permitted".into())), "not permitted"),
            (
                |outer| {
                    assert_eq!(outer.ended(Ok(())), Action::Instantiate);
                    outer.made(Err("instantiate: out of memory".into()))
                },
                "out of memory",
            ),
            (|outer| outer.made(Ok(())), "not captured"),
        ];
        for (fail, reason) in failures {
            let mut outer = Outer::new();
            run(&mut outer, &facts(1), true);
            assert_eq!(outer.begin(&facts(1)), Action::BeginCapture);
            assert_eq!(fail(&mut outer), Action::Eager);
            assert!(outer.broken().unwrap().contains(reason));
            for _ in 0..5 {
                assert_eq!(run(&mut outer, &facts(1), true), [Action::Eager]);
            }
            outer.reset("nothing comes back by itself");
            assert_eq!(run(&mut outer, &facts(1), true), [Action::Eager]);
        }
    }

    #[test]
    fn two_graphs_in_turn_are_never_captured() {
        let mut outer = Outer::new();
        for _ in 0..10 {
            assert_eq!(run(&mut outer, &facts(1), true), [Action::Eager]);
            assert_eq!(run(&mut outer, &facts(2), true), [Action::Eager]);
        }
    }

    /// Every sequence of four graphs out of three, with every way to fail: whatever happens, a graph is replayed
    /// only where the last thing captured was this very graph.
    #[test]
    fn replays_are_only_of_what_was_captured_last() {
        for code in 0..3_u32.pow(6) * 4 {
            let (mut outer, mut rest) = (Outer::new(), code);
            let mut next = |n| {
                let digit = rest % n;
                rest /= n;
                digit
            };
            let failure = next(4);
            let mut captured = None;
            for _ in 0..6 {
                let uid = u64::from(next(3));
                let mut action = outer.begin(&facts(uid));
                let was = action;
                loop {
                    action = match action {
                        Action::Eager => break,
                        Action::Replay => {
                            assert_eq!(captured, Some(uid), "{code}");
                            break;
                        }
                        Action::BeginCapture if failure == 1 => outer.ended(Err("end".into())),
                        Action::BeginCapture => outer.ended(Ok(())),
                        Action::Instantiate if failure == 2 => outer.made(Err("instantiate".into())),
                        Action::Update if failure == 3 => outer.made(Err("update".into())),
                        Action::Instantiate | Action::Update => {
                            captured = Some(uid);
                            outer.made(Ok(()))
                        }
                    };
                }
                assert!(uid != 0 || was == Action::Eager);
            }
        }
    }
}
