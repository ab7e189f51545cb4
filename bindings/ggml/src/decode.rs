//! The decode in progress: which rows each graph computes, and under which profiles.
//!
//! llama.cpp computes a batch in micro-batches, each by one or more graphs in order. The output of a block
//! comes once per micro-batch, so the number of times that it came so far says which micro-batch a graph
//! belongs to. Tokens and positions of the graphs are compared with those of the micro-batch where they are
//! in host memory: a batch that llama.cpp splits in another way fails the decode.
//!
//! Of the decodes of a program that does not know of the hook, only the graphs are seen. There a decode is
//! one micro-batch, and its rows are those that its graphs show.

use std::sync::Arc;

use crate::config::Config;
use crate::error::HookError;
use crate::profile::{DecodeBatch, DecodeRow, MicroBatch, ProfileId, RowProfiles, is_skipped};

/// A decode in progress.
#[derive(Debug)]
pub(crate) struct Decode {
    pub(crate) config: Arc<Config>,
    /// Tokens of the batch; `None` where only the graphs tell.
    pub(crate) rows: Option<usize>,
    order: Order,
    /// By block, the times that its output came.
    passes: Vec<usize>,
}

/// What is known of the order of the rows.
#[derive(Debug)]
enum Order {
    /// Every row has these profiles, in whatever order they come.
    Any(RowProfiles),
    Known {
        micro_batches: Vec<Planned>,
        /// The micro-batch whose tokens came last.
        at: Option<usize>,
    },
    /// One micro-batch, as its graphs show it.
    Shown {
        number: u64,
        /// Whether rows are under profiles of their sequences.
        by_sequence: bool,
        /// The tokens that a graph was given.
        tokens: Option<Vec<i32>>,
        /// What its graphs were given.
        given: Option<Given>,
        /// Its rows, where their positions matter.
        rows: Option<Arc<MicroBatch>>,
    },
}

/// What a micro-batch was given.
#[derive(Debug)]
pub(crate) struct Given {
    /// Number of rows, if an input tells it.
    pub(crate) rows: Option<usize>,
    /// One per row, repeated by sections where a model has several kinds of positions. `None` where it has none.
    pub(crate) positions: Option<Vec<i32>>,
    /// Indices of the rows with outputs. `None` stands for all.
    pub(crate) output_ids: Option<Vec<i32>>,
    /// One per row, where rows are under profiles of their sequences.
    pub(crate) profiles: Option<Vec<Option<ProfileId>>>,
}

/// A micro-batch that is to come.
#[derive(Debug)]
struct Planned {
    tokens: Vec<i32>,
    positions: Vec<i32>,
    /// Number of rows with logits.
    outputs: usize,
    profiles: RowProfiles,
}

impl Decode {
    /// A decode of so many rows, all of them under the default profile.
    ///
    /// # Errors
    /// [`HookError::PositionsUnknown`].
    pub(crate) fn of_any(config: Arc<Config>, rows: usize) -> Result<Self, HookError> {
        let order = Order::Any(config.any_rows()?);
        Ok(Self { passes: vec![0; config.wanted_blocks().len()], config, rows: Some(rows), order })
    }

    /// One micro-batch of which only the graphs are seen. All rows are under the default profile, or under those of
    /// their sequences.
    pub(crate) fn shown(number: u64, config: Arc<Config>, by_sequence: bool) -> Self {
        let order = Order::Shown { number, by_sequence, tokens: None, given: None, rows: None };
        Self { passes: vec![0; config.wanted_blocks().len()], config, rows: None, order }
    }

    /// Whether only the graphs of this decode are seen.
    pub(crate) fn is_shown(&self) -> bool {
        matches!(self.order, Order::Shown { .. })
    }

    /// Whether it matters what its graphs are given, and none has been given it yet.
    pub(crate) fn needs_given(&self) -> bool {
        let Order::Shown { by_sequence, given: None, .. } = self.order else { return false };
        by_sequence || self.config.any_rows().is_err()
    }

    /// Notes the tokens that a graph was given.
    pub(crate) fn give_tokens(&mut self, found: Vec<i32>) {
        if let Order::Shown { tokens, .. } = &mut self.order {
            tokens.get_or_insert(found);
        }
    }

    /// Returns the tokens that a graph was given.
    pub(crate) fn tokens(&self) -> Option<&[i32]> {
        if let Order::Shown { tokens, .. } = &self.order { tokens.as_deref() } else { None }
    }

    /// Notes what a graph was given.
    pub(crate) fn give(&mut self, found: Given) {
        if let Order::Shown { given, .. } = &mut self.order {
            given.get_or_insert(found);
        }
    }

    /// A decode of these rows. With `indexed` each row has an index in any case, so that launches look alike
    /// from decode to decode.
    ///
    /// # Errors
    /// [`HookError::NoProfile`], [`HookError::RowOrder`].
    pub(crate) fn of(
        number: u64,
        config: Arc<Config>,
        batch: DecodeBatch<'_>,
        indexed: bool,
    ) -> Result<Self, HookError> {
        let mut left = vec![true; batch.rows.len()];
        let mut micro_batches = Vec::with_capacity(batch.micro_batches.len());
        for indices in batch.micro_batches {
            let mut rows = Vec::with_capacity(indices.len());
            for &index in indices {
                match left.get_mut(index).map(std::mem::take) {
                    Some(true) => rows.push((index, batch.rows[index])),
                    _ => {
                        return Err(HookError::row_order(
                            "the micro-batches hold a row twice, or one that is none",
                        ));
                    }
                }
            }
            micro_batches.push(Planned::new(number, &config, &rows, indexed)?);
        }
        if left.contains(&true) {
            return Err(HookError::row_order("the micro-batches leave out a row"));
        }
        let order = Order::Known { micro_batches, at: None };
        let rows = Some(batch.rows.len());
        Ok(Self { passes: vec![0; config.wanted_blocks().len()], config, rows, order })
    }

    /// Returns the profiles of the rows of a graph, and counts its block outputs, given as block and number of
    /// rows.
    ///
    /// # Errors
    /// [`HookError::RowOrder`], [`HookError::PositionsUnknown`].
    pub(crate) fn profiles_of(&mut self, outputs: &[(usize, usize)]) -> Result<RowProfiles, HookError> {
        let micro_batches = match &mut self.order {
            Order::Any(profiles) => return Ok(profiles.clone()),
            Order::Known { micro_batches, .. } => &*micro_batches,
            Order::Shown { number, by_sequence, given, rows, .. } => {
                let any = if *by_sequence { None } else { Some(self.config.any_rows()) };
                return shown_rows(any, &self.config, *number, given.as_ref(), rows, outputs);
            }
        };
        let Some(&(first, _)) = outputs.first() else { return Ok(RowProfiles::None) };
        let pass = self.passes[first];
        for &(block, rows) in outputs {
            if self.passes[block] != pass {
                let what = format!("a graph has block {first} and block {block} of different micro-batches");
                return Err(HookError::RowOrder { what });
            }
            self.passes[block] += 1;
            let planned = micro_batches.get(pass);
            if !planned.is_some_and(|planned| [planned.tokens.len(), planned.outputs].contains(&rows)) {
                let expected = planned.map_or(0, |planned| planned.tokens.len());
                let what =
                    format!("block {block} has {rows} rows in micro-batch {pass}, {expected} were expected");
                return Err(HookError::RowOrder { what });
            }
        }
        Ok(micro_batches[pass].profiles.clone())
    }

    /// Compares the tokens and positions that a graph is given with those of the micro-batches to come.
    /// Positions may be repeated by sections, of which the first counts.
    ///
    /// # Errors
    /// [`HookError::RowOrder`].
    pub(crate) fn identify(&mut self, tokens: &[i32], positions: Option<&[i32]>) -> Result<(), HookError> {
        let Order::Known { micro_batches, at } = &mut self.order else { return Ok(()) };
        let is = |index: usize| {
            micro_batches.get(index).is_some_and(|planned| {
                planned.tokens == tokens
                    && positions.is_none_or(|found| found.get(..tokens.len()) == Some(&planned.positions))
            })
        };
        // A micro-batch may need its tokens in several graphs.
        let next = at.map_or(0, |at| at + 1);
        if is(next) {
            *at = Some(next);
            return Ok(());
        }
        if at.is_some_and(is) {
            return Ok(());
        }
        let what = format!("micro-batch {next} of {} has other tokens or positions", micro_batches.len());
        Err(HookError::RowOrder { what })
    }

    /// Whether the order of the rows is known, and can be compared.
    pub(crate) fn has_order(&self) -> bool {
        matches!(self.order, Order::Known { .. })
    }
}

/// Returns the profiles of the rows of a graph, of which only the graphs are seen. `any` are those of rows of
/// which nothing is known, if they are not under profiles of their sequences.
fn shown_rows(
    any: Option<Result<RowProfiles, HookError>>,
    config: &Config,
    number: u64,
    given: Option<&Given>,
    rows: &mut Option<Arc<MicroBatch>>,
    outputs: &[(usize, usize)],
) -> Result<RowProfiles, HookError> {
    if outputs.is_empty() {
        return Ok(RowProfiles::None);
    }
    if let Some(plain) = any.filter(|any| *any != Err(HookError::PositionsUnknown)) {
        return plain;
    }
    let micro_batch = match rows {
        Some(rows) => Arc::clone(rows),
        None => {
            let found = given.and_then(|given| given.micro_batch(config, number, outputs));
            let found = Arc::new(found.ok_or(HookError::PositionsUnknown)?);
            Arc::clone(rows.insert(found))
        }
    };
    // Which rows the last block computes, old versions of llama.cpp do not say.
    if outputs.iter().any(|&(_, rows)| micro_batch.of(rows).is_none()) {
        return Err(HookError::PositionsUnknown);
    }
    Ok(RowProfiles::Each(micro_batch))
}

impl Given {
    /// Returns the rows with their profiles, `None` if they do not fit the block outputs.
    fn micro_batch(&self, config: &Config, number: u64, outputs: &[(usize, usize)]) -> Option<MicroBatch> {
        let with_outputs = self.output_ids.as_ref().map(Vec::len);
        // The output of the last block may have the rows with outputs alone.
        let most = outputs.iter().map(|&(_, rows)| rows).max().filter(|&rows| Some(rows) != with_outputs);
        let listed = self.profiles.as_ref().map(Vec::len).or(self.positions.as_ref().map(Vec::len));
        let rows = self.rows.or(most).or(listed)?;
        let skips = config.profiles().list().iter().any(|profile| profile.caps.policy().skip_positions > 0);
        let positions = match &self.positions {
            Some(positions) => positions.get(..rows)?.to_vec(),
            None if skips => return None,
            None => vec![0; rows],
        };
        let profiles = match &self.profiles {
            Some(profiles) => profiles.get(..rows)?.to_vec(),
            None => vec![Some(ProfileId::DEFAULT); rows],
        };
        let mut output = vec![self.output_ids.is_none(); rows];
        for &id in self.output_ids.iter().flatten() {
            *output.get_mut(usize::try_from(id).ok()?)? = true;
        }
        let row = |(index, ((position, profile), &output))| {
            // Tokens play no part in the choice of a profile.
            let row = DecodeRow { token: 0, position, profile, output };
            Some((config.profiles().index_of_row(&row).ok()?, index, output))
        };
        let rows = positions.into_iter().zip(profiles).zip(&output).enumerate();
        let rows: Option<Vec<_>> = rows.map(row).collect();
        Some(MicroBatch::new(number, &rows?))
    }
}

impl Planned {
    /// A micro-batch of rows, given with their indices in the batch.
    fn new(
        number: u64,
        config: &Config,
        rows: &[(usize, DecodeRow)],
        indexed: bool,
    ) -> Result<Self, HookError> {
        let mut listed = Vec::with_capacity(rows.len());
        for (index, row) in rows {
            listed.push((config.profiles().index_of_row(row)?, *index, row.output));
        }
        let micro_batch = Arc::new(MicroBatch::new(number, &listed));
        let plain = !indexed && config.has_default() && micro_batch.is_all(1);
        Ok(Self {
            tokens: rows.iter().map(|(_, row)| row.token).collect(),
            positions: rows.iter().map(|(_, row)| row.position).collect(),
            outputs: rows.iter().filter(|(_, row)| row.output).count(),
            profiles: if plain {
                RowProfiles::First(Some(micro_batch))
            } else {
                RowProfiles::Each(micro_batch)
            },
        })
    }
}

impl Config {
    /// Returns the profiles of rows of which nothing is known.
    ///
    /// # Errors
    /// [`HookError::PositionsUnknown`].
    pub(crate) fn any_rows(&self) -> Result<RowProfiles, HookError> {
        match self.profiles().get(ProfileId::DEFAULT) {
            None => Ok(RowProfiles::None),
            Some(profile) if is_skipped(profile.caps.policy(), 0) => Err(HookError::PositionsUnknown),
            Some(_) => Ok(RowProfiles::First(None)),
        }
    }

    fn has_default(&self) -> bool {
        self.profiles().get(ProfileId::DEFAULT).is_some()
    }
}

/// Whether a batch needs an index per row from now on: rows are under other profiles than the default one.
/// Rows at skipped positions come once per sequence, and are not a reason.
pub(crate) fn is_mixed(batch: DecodeBatch<'_>) -> bool {
    batch.rows.iter().any(|row| row.profile != Some(ProfileId::DEFAULT))
}

#[cfg(test)]
mod tests {
    use axiscap::{Axis, BlockCap, Bound, Cap, CapSet, Policy};

    use super::*;
    use crate::host::architecture::ModelShape;

    fn given(rows: Option<usize>, positions: &[i32], output_ids: Option<&[i32]>) -> Given {
        let (positions, output_ids) = (Some(positions.to_vec()), output_ids.map(<[i32]>::to_vec));
        Given { rows, positions, output_ids, profiles: None }
    }

    #[test]
    fn a_policy_finds_its_rows_by_the_positions_that_graphs_are_given() {
        let config = Arc::new(config(Policy::default().with_skip_positions(2)));
        let start = || Decode::shown(1, Arc::clone(&config), false);
        assert!(start().needs_given());
        assert_eq!(start().profiles_of(&[(0, 3)]), Err(HookError::PositionsUnknown));
        assert_eq!(start().profiles_of(&[]), Ok(RowProfiles::None));
        let mut decode = start();
        // Two sequences, and positions of three kinds.
        decode.give(given(Some(3), &[0, 1, 7, 0, 0, 0, 0, 0, 0], Some(&[2])));
        assert!(!decode.needs_given());
        decode.give(given(Some(3), &[9; 9], None));
        let profiles = |found: &RowProfiles, rows| -> Vec<u32> {
            (0..rows).map(|row| found.profile(rows, row)).collect()
        };
        let all = decode.profiles_of(&[(0, 3), (1, 3)]).unwrap();
        assert_eq!(profiles(&all, 3), [2, 2, 1]);
        let last = decode.profiles_of(&[(2, 1)]).unwrap();
        assert_eq!(profiles(&last, 1), [1]);
        // The last block alone, without an input that tells the number of rows.
        let mut decode = start();
        decode.give(given(None, &[7, 0, 8, 1], Some(&[1, 2])));
        let last = decode.profiles_of(&[(2, 2)]).unwrap();
        assert_eq!(profiles(&last, 2), [2, 1]);
        let mut decode = start();
        decode.give(given(Some(3), &[0, 1, 7], None));
        assert_eq!(decode.profiles_of(&[(0, 3), (2, 1)]), Err(HookError::PositionsUnknown), "which one?");
        for wrong in [given(Some(5), &[1, 2], None), given(None, &[1, 2], Some(&[2]))] {
            let mut decode = start();
            decode.give(wrong);
            assert_eq!(decode.profiles_of(&[(0, 2)]), Err(HookError::PositionsUnknown));
        }
    }

    #[test]
    fn without_a_policy_positions_do_not_matter() {
        let mut decode = Decode::shown(1, Arc::new(config(Policy::default())), false);
        assert!(!decode.needs_given());
        assert_eq!(decode.profiles_of(&[(0, 3), (1, 1)]), Ok(RowProfiles::First(None)));
    }

    fn config(policy: Policy) -> Config {
        let model = ModelShape { architecture: "llama".into(), blocks: 3, width: 2 };
        let axis = Axis::from_direction(&[1.0, 2.0]).unwrap();
        let cap = |block| BlockCap { block, cap: Cap::new(axis.clone(), Bound::NONE) };
        let set = CapSet::new([cap(0), cap(2)]).unwrap();
        let mut config = Config::new(3);
        config.set_caps(Some(&set.with_policy(policy)), &model).unwrap();
        config.add_profile("other", &CapSet::new([cap(1)]).unwrap(), &model).unwrap();
        config
    }

    fn rows(profiles: &[Option<ProfileId>]) -> Vec<DecodeRow> {
        let row = |(i, &profile): (usize, &Option<ProfileId>)| {
            let i = i as i32;
            DecodeRow { token: 100 + i, position: i, profile, output: i % 2 == 1 }
        };
        profiles.iter().enumerate().map(row).collect()
    }

    fn decode(
        config: &Config,
        rows: &[DecodeRow],
        micro_batches: &[Vec<usize>],
    ) -> Result<Decode, HookError> {
        Decode::of(1, Arc::new(config.clone()), DecodeBatch { rows, micro_batches }, false)
    }

    const DEFAULT: Option<ProfileId> = Some(ProfileId::DEFAULT);
    const OTHER: Option<ProfileId> = Some(ProfileId(1));

    #[test]
    fn rows_have_the_index_of_their_profile_and_position() {
        let config = config(Policy::default().with_skip_positions(2));
        // Indices: default 1, default but left alone 2, other 3.
        let rows = rows(&[DEFAULT, DEFAULT, OTHER, None, DEFAULT]);
        let mut decode = decode(&config, &rows, &[vec![0, 1, 2], vec![4, 3]]).unwrap();
        let first = decode.profiles_of(&[(0, 3), (1, 3)]).unwrap();
        assert_eq!((0..3).map(|row| first.profile(3, row)).collect::<Vec<_>>(), [2, 2, 3]);
        assert_eq!(first.profile(1, 0), 2, "the row with logits");
        let last = decode.profiles_of(&[(2, 1)]).unwrap();
        assert_eq!(last.profile(1, 0), 2);
        let second = decode.profiles_of(&[(0, 2), (1, 2), (2, 1)]).unwrap();
        assert_eq!((0..2).map(|row| second.profile(2, row)).collect::<Vec<_>>(), [1, 0]);
        assert_eq!((0..2).map(|row| second.batch_row(2, row)).collect::<Vec<_>>(), [Some(4), Some(3)]);
        assert_eq!(second.batch_row(1, 0), Some(3));
    }

    #[test]
    fn rows_under_the_default_profile_alone_need_no_index() {
        let config = config(Policy::default().with_skip_positions(1));
        let rows = rows(&[DEFAULT; 4]);
        let mut decode = decode(&config, &rows, &[vec![0, 1], vec![2, 3]]).unwrap();
        assert!(matches!(decode.profiles_of(&[(0, 2)]).unwrap(), RowProfiles::Each(_)));
        assert!(matches!(decode.profiles_of(&[(0, 2)]).unwrap(), RowProfiles::First(Some(_))));
        let batch = DecodeBatch { rows: &rows, micro_batches: &[vec![0, 1, 2, 3]] };
        let mut indexed = Decode::of(1, Arc::new(config.clone()), batch, true).unwrap();
        assert!(matches!(indexed.profiles_of(&[(0, 4)]).unwrap(), RowProfiles::Each(_)));
        assert!(!is_mixed(batch));
        assert!(is_mixed(DecodeBatch { rows: &self::rows(&[DEFAULT, None]), micro_batches: &[] }));
        assert!(matches!(config.any_rows(), Err(HookError::PositionsUnknown)));
    }

    #[test]
    fn what_does_not_fit_the_batch_is_an_error() {
        let config = config(Policy::default());
        let refused = |rows: &[Option<ProfileId>], micro_batches: &[Vec<usize>]| {
            decode(&config, &self::rows(rows), micro_batches).unwrap_err()
        };
        assert!(matches!(refused(&[Some(ProfileId(7))], &[vec![0]]), HookError::NoProfile { .. }));
        for wrong in [vec![vec![0, 0], vec![1]], vec![vec![0]], vec![vec![0, 2], vec![1]]] {
            assert!(matches!(refused(&[DEFAULT; 2], &wrong), HookError::RowOrder { .. }), "{wrong:?}");
        }
        let micro_batches = [vec![0, 1, 2], vec![3]];
        let start = || decode(&config, &rows(&[OTHER; 4]), &micro_batches).unwrap();
        assert!(start().profiles_of(&[(0, 4)]).is_err(), "one micro-batch more than there are rows");
        assert!(start().profiles_of(&[(0, 2)]).is_err());
        let mut decode = start();
        decode.profiles_of(&[(0, 3)]).unwrap();
        assert!(decode.profiles_of(&[(0, 1), (1, 3)]).is_err(), "blocks of two micro-batches");
    }

    #[test]
    fn tokens_and_positions_must_be_those_of_the_micro_batch() {
        let config = config(Policy::default());
        let start = || decode(&config, &rows(&[OTHER; 4]), &[vec![0, 1, 2], vec![3]]).unwrap();
        let mut decode = start();
        decode.identify(&[100, 101, 102], None).unwrap();
        decode.identify(&[100, 101, 102], Some(&[0, 1, 2, 0, 0, 0])).unwrap();
        decode.identify(&[103], Some(&[3])).unwrap();
        assert!(decode.identify(&[100, 101, 102], None).is_err(), "an earlier micro-batch");
        assert!(start().identify(&[103], None).is_err(), "a later one");
        assert!(start().identify(&[100, 102, 101], None).is_err());
        assert!(start().identify(&[100, 101, 102], Some(&[0, 2, 1])).is_err());
        assert!(start().identify(&[100, 101, 102], Some(&[0, 1])).is_err());
        Decode::of_any(Arc::new(config), 4).unwrap().identify(&[1], None).unwrap();
    }
}
