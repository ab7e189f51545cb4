//! Sets of launches: a covering array over all properties of a launch, or all launches.

use axiscap::cuda::Limits;
use axiscap::cuda::raw::KernelPath;
use axiscap::{Dtype, Operation};

use crate::case::{Case, Profiles};
use crate::numbers::Random;

// The factors of a launch. A combination is one level of each factor, in this order.
const OPERATION: usize = 0;
const DTYPE: usize = 1;
const WIDTH: usize = 2;
const ROWS: usize = 3;
const PATH: usize = 4;
const GAP: usize = 5;
const OFFSET: usize = 6;
const CAPS: usize = 7;
const PROFILES: usize = 8;
const ALIASED: usize = 9;
const SCHEDULE: usize = 10;
const FACTORS: usize = 11;

const PATHS: [Option<KernelPath>; 7] = [
    None,
    Some(KernelPath::Cluster),
    Some(KernelPath::Single),
    Some(KernelPath::Direct),
    Some(KernelPath::Pairs),
    Some(KernelPath::Staged),
    Some(KernelPath::General),
];
const GAPS: [usize; 3] = [0, 1, 16];
const OFFSETS: [usize; 2] = [0, 1];
// The direct kernels hold fewer than 7 in registers.
const NUMBERS_OF_CAPS: [usize; 4] = [1, 2, 5, 7];
const ALL_PROFILES: [Profiles; 3] = [Profiles::One, Profiles::Several, Profiles::SomeMissing];
/// Orders in which blocks and threads run: `Schedule` in kernels/emulate/machine.hpp.
const SCHEDULES: usize = 4;

/// A level of each factor.
type Levels = [usize; FACTORS];

/// The shapes of a sweep. The other factors always have all their levels.
#[derive(Debug, Clone, Copy)]
pub struct Space {
    /// Widths of the rows.
    pub widths: &'static [usize],
    /// Numbers of rows.
    pub rows: &'static [usize],
    /// Limits of the device.
    pub limits: Limits,
}

impl Space {
    /// Shapes at the edges of the kernels, on a device so small that each block has several rows.
    pub const ODD: Self = Self {
        widths: &[1, 3, 111, 576, 1000, 1023, 3072, 3584, 4096, 5120, 8191, 8192, 16384],
        rows: &[1, 19, 129],
        limits: Limits { multiprocessors: 2, ..Limits::HOPPER },
    };
    /// A few small shapes that reach every kernel, for tools that slow a launch down a hundredfold. Two
    /// blocks share all rows, so each has several here as well.
    pub const SMALL: Self = Self {
        widths: &[111, 576, 1024],
        rows: &[1, 19],
        limits: Limits { multiprocessors: 1, blocks_per_multiprocessor: 2, ..Limits::HOPPER },
    };
    /// Rows longer than a block can hold in registers.
    pub const LONG: Self = Self { widths: &[16385, 16392, 40000], rows: &[2], ..Self::ODD };

    fn levels(&self, factor: usize) -> usize {
        match factor {
            OPERATION => Operation::ALL.len(),
            DTYPE => Dtype::ALL.len(),
            WIDTH => self.widths.len(),
            ROWS => self.rows.len(),
            PATH => PATHS.len(),
            GAP => GAPS.len(),
            OFFSET => OFFSETS.len(),
            CAPS => NUMBERS_OF_CAPS.len(),
            PROFILES => ALL_PROFILES.len(),
            ALIASED => 2,
            SCHEDULE => SCHEDULES,
            _ => unreachable!("there are {FACTORS} factors"),
        }
    }

    /// Whether a launch with these levels exists. Only a sum has a summand to alias.
    fn exists(&self, levels: &Levels) -> bool {
        let aliases = levels[ALIASED] == 0 || Operation::ALL[levels[OPERATION]].adds();
        aliases && self.case(levels, 0).is_for_its_path()
    }

    fn case(&self, levels: &Levels, seed: u64) -> Case {
        Case {
            operation: Operation::ALL[levels[OPERATION]],
            dtype: Dtype::ALL[levels[DTYPE]],
            rows: self.rows[levels[ROWS]],
            width: self.widths[levels[WIDTH]],
            caps: NUMBERS_OF_CAPS[levels[CAPS]],
            gap: GAPS[levels[GAP]],
            offset: OFFSETS[levels[OFFSET]],
            profiles: ALL_PROFILES[levels[PROFILES]],
            aliased: levels[ALIASED] == 1,
            path: PATHS[levels[PATH]],
            limits: self.limits,
            schedule: levels[SCHEDULE] as u32,
            seed,
        }
    }

    /// Returns all combinations of levels of the first `free` factors, with the others at `at`.
    fn product(&self, free: usize, at: Levels) -> Vec<Levels> {
        let mut all = vec![at];
        for factor in 0..free {
            let more = all.iter().flat_map(|&levels| {
                (0..self.levels(factor)).map(move |level| {
                    let mut levels = levels;
                    levels[factor] = level;
                    levels
                })
            });
            all = more.collect();
        }
        all
    }

    /// Returns every launch of one operation and type, on each path. Only the schedules take turns, because
    /// no result depends on them.
    #[must_use]
    pub fn all(&self, operation: Operation, dtype: Dtype) -> Vec<Case> {
        let wanted = |levels: &Levels| {
            Operation::ALL[levels[OPERATION]] == operation
                && Dtype::ALL[levels[DTYPE]] == dtype
                && PATHS[levels[PATH]].is_some()
        };
        let mut all = self.product(SCHEDULE, [0; FACTORS]);
        all.retain(|levels| wanted(levels) && self.exists(levels));
        all.iter_mut().enumerate().for_each(|(turn, levels)| levels[SCHEDULE] = turn % SCHEDULES);
        all.iter().enumerate().map(|(seed, levels)| self.case(levels, seed as u64)).collect()
    }

    /// Returns every operation with every type, width, number of rows and path. The other factors are chosen
    /// such that of **any three factors** every possible combination of levels occurs.
    ///
    /// # Panics
    /// If a combination is left over, which would be a mistake in this function.
    #[must_use]
    pub fn covering(&self) -> Vec<Case> {
        let mut random = Random(1);
        let mut open = Triples::new(self, &mut random);
        let mut chosen = Vec::new();
        for base in self.product(GAP, [0; FACTORS]) {
            if let Some(best) = self.best_completion(&base, GAP, &open, &mut random) {
                open.close(&best);
                chosen.push(best);
            }
        }
        // Combinations that are left over, each with other factors that happen to go with it.
        while let Some(example) = open.any() {
            open.close(&example);
            chosen.push(example);
        }
        assert_eq!(open.left, 0);
        chosen.iter().enumerate().map(|(seed, levels)| self.case(levels, seed as u64)).collect()
    }

    /// Returns, of some random levels of the factors from `free` on, those that cover most open combinations.
    fn best_completion(
        &self,
        base: &Levels,
        free: usize,
        open: &Triples,
        random: &mut Random,
    ) -> Option<Levels> {
        let tries = (0..60).map(|_| {
            let mut levels = *base;
            (free..FACTORS).for_each(|factor| levels[factor] = random.below(self.levels(factor)));
            levels
        });
        tries.filter(|levels| self.exists(levels)).max_by_key(|levels| open.covered_by(levels))
    }
}

/// Combinations of levels of three factors that have not occurred yet.
struct Triples {
    groups: Vec<Group>,
    left: usize,
}

/// The combinations of three given factors.
struct Group {
    factors: [usize; 3],
    /// Distances between the indices of successive levels.
    steps: [usize; 3],
    /// A launch for each combination that is still open.
    open: Vec<Option<Levels>>,
}

impl Group {
    fn index(&self, levels: &Levels) -> usize {
        (0..3).map(|i| levels[self.factors[i]] * self.steps[i]).sum()
    }
}

impl Triples {
    /// Collects the combinations that some launch has.
    fn new(space: &Space, random: &mut Random) -> Self {
        let mut groups = Vec::new();
        for a in 0..FACTORS {
            for b in a + 1..FACTORS {
                for c in b + 1..FACTORS {
                    let factors = [a, b, c];
                    let [of_a, of_b, of_c] = factors.map(|factor| space.levels(factor));
                    let open = (0..of_a * of_b * of_c)
                        .map(|index| {
                            let at = [index / of_c / of_b, index / of_c % of_b, index % of_c];
                            example(space, factors, at, random)
                        })
                        .collect();
                    groups.push(Group { factors, steps: [of_b * of_c, of_c, 1], open });
                }
            }
        }
        let left = groups.iter().map(|group| group.open.iter().flatten().count()).sum();
        Self { groups, left }
    }

    fn covered_by(&self, levels: &Levels) -> usize {
        self.groups.iter().filter(|group| group.open[group.index(levels)].is_some()).count()
    }

    fn close(&mut self, levels: &Levels) {
        for group in &mut self.groups {
            let index = group.index(levels);
            self.left -= usize::from(group.open[index].take().is_some());
        }
    }

    /// Returns a launch with a combination that is still open.
    fn any(&self) -> Option<Levels> {
        self.groups.iter().flat_map(|group| group.open.iter().flatten()).next().copied()
    }
}

/// Returns some launch with these levels of three factors, if one exists. The factors that `exists` depends
/// on are searched, the others are random.
fn example(space: &Space, factors: [usize; 3], at: [usize; 3], random: &mut Random) -> Option<Levels> {
    let mut levels: Levels = std::array::from_fn(|factor| random.below(space.levels(factor)));
    (0..3).for_each(|i| levels[factors[i]] = at[i]);
    let asked = [OPERATION, DTYPE, WIDTH, PATH, OFFSET, CAPS, PROFILES, ALIASED];
    let counts = asked.map(|factor| if factors.contains(&factor) { 1 } else { space.levels(factor) });
    (0..counts.iter().product()).find_map(|index: usize| {
        let (mut found, mut rest) = (levels, index);
        for (factor, count) in asked.into_iter().zip(counts) {
            if count > 1 {
                // Start at the random level, which makes examples differ.
                found[factor] = (levels[factor] + rest % count) % count;
                rest /= count;
            }
        }
        space.exists(&found).then_some(found)
    })
}
