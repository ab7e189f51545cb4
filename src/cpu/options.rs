//! What may vary from call to call.

use crate::cpu::isa::Isa;
use crate::stats::RowStat;

/// Options of a call. The default: profile 1 for every row, no statistics, the fastest instructions, on the
/// calling thread.
#[derive(Debug, Default)]
pub struct Options<'a> {
    /// The profile of each row, one entry per row; 0 leaves the row uncapped. Without it every row has profile 1.
    pub profiles: Option<&'a [u32]>,
    /// Where to put statistics: `[rows][table.deepest_profile()]`, row after row. Entries beyond the caps of a
    /// row's profile become [`RowStat::default`].
    pub stats: Option<&'a mut [RowStat]>,
    /// Shares the rows out over the threads of the current rayon pool. The bits are the same. Leave it off inside
    /// threads that another program schedules.
    pub parallel: bool,
    /// Forces an instruction set, for tests and benchmarks. The bits are the same.
    pub isa: Option<Isa>,
}

impl<'a> Options<'a> {
    /// The default.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets [`Options::profiles`].
    #[must_use]
    pub fn profiles(self, profiles: &'a [u32]) -> Self {
        Self { profiles: Some(profiles), ..self }
    }

    /// Sets [`Options::stats`].
    #[must_use]
    pub fn stats(self, stats: &'a mut [RowStat]) -> Self {
        Self { stats: Some(stats), ..self }
    }

    /// Sets [`Options::parallel`].
    #[must_use]
    pub fn parallel(self, parallel: bool) -> Self {
        Self { parallel, ..self }
    }

    /// Sets [`Options::isa`].
    #[must_use]
    pub fn isa(self, isa: Isa) -> Self {
        Self { isa: Some(isa), ..self }
    }
}
