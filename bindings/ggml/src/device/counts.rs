//! How graphs were run on GPUs.

use std::ops::AddAssign;

/// How often a session's graphs were captured, replayed or run eagerly on GPUs under
/// [`Engine::DeviceGraph`](crate::Engine::DeviceGraph).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct GraphCounts {
    /// Graphs captured.
    pub captures: u64,
    /// Of those, how many an executable graph that was of no more use could be fitted to.
    pub updates: u64,
    /// Graphs launched as one, the first time included.
    pub replays: u64,
    /// Graphs run view by view.
    pub eager: u64,
    /// How often the executable graphs were thrown away because something they use went away.
    pub resets: u64,
}

impl AddAssign for GraphCounts {
    fn add_assign(&mut self, other: Self) {
        self.captures += other.captures;
        self.updates += other.updates;
        self.replays += other.replays;
        self.eager += other.eager;
        self.resets += other.resets;
    }
}
