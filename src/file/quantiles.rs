//! Quantiles of projections that a calibration found.

use crate::file::cap_file::CapFile;
use crate::file::error::Result;
use crate::file::fields::invalid;
use crate::file::gguf::{Array, Value};

/// Quantiles of the mean projections of the model's own answers, as itself, for each cap of a file.
///
/// `axiscap calibrate` stores them in the origin of a cap file, as `calibrate.quantile_levels` (percentiles,
/// `[levels]`) and `calibrate.default_quantiles` (projections in units of the residual stream,
/// `[caps][levels]`).
///
/// ```no_run
/// use axiscap::file::{CapFile, Quantiles};
///
/// let file = CapFile::read("smollm2-135m-instruct.caps.gguf".as_ref())?;
/// if let Some(quantiles) = Quantiles::of_default_answers(&file)? {
///     println!("1 % of the answers lie below {:?}", quantiles.at(0, 1.0));
/// }
/// # Ok::<(), axiscap::file::FileError>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Quantiles {
    /// Percentiles, ascending.
    levels: Vec<f32>,
    /// `[caps][levels]`
    values: Vec<f32>,
}

const LEVELS: &str = "calibrate.quantile_levels";
const DEFAULT: &str = "calibrate.default_quantiles";
const REMEDY: &str = "calibrate the axes again";

impl Quantiles {
    /// Reads those of a cap file. `None` if it holds none: it was not calibrated by axiscap, or there was no answer of
    /// the model as itself.
    ///
    /// # Errors
    /// [`FileError::Invalid`](super::FileError::Invalid) for tables that do not fit each other or the caps of the
    /// file, or do not ascend.
    pub fn of_default_answers(file: &CapFile) -> Result<Option<Self>> {
        let (Some(levels), Some(values)) = (numbers(file, LEVELS)?, numbers(file, DEFAULT)?) else {
            return Ok(None);
        };
        let is_percentile = |level: &f32| (0.0..=100.0).contains(level);
        if levels.is_empty() || !levels.is_sorted() || !levels.iter().all(is_percentile) {
            let found = format!("{levels:?}");
            return Err(invalid(field(LEVELS), "ascending percentiles from 0 to 100", found, REMEDY));
        }
        let caps = file.caps.caps().len();
        if values.len() != caps * levels.len() {
            let expected = format!(
                "{} numbers, one for each of {caps} caps and {} percentiles",
                caps * levels.len(),
                levels.len()
            );
            return Err(invalid(field(DEFAULT), expected, format!("{} of them", values.len()), REMEDY));
        }
        // Without answers of the model as itself there are no quantiles.
        if values.iter().all(|value| value.is_nan()) {
            return Ok(None);
        }
        let ascends = |row: &[f32]| row.is_sorted() && row.iter().all(|value| value.is_finite());
        if let Some(cap) = values.chunks(levels.len()).position(|row| !ascends(row)) {
            let expected = "finite numbers that ascend with the percentiles";
            return Err(invalid(field(DEFAULT), expected, format!("others for cap {cap}"), REMEDY));
        }
        Ok(Some(Self { levels, values }))
    }

    /// Returns the projection below which `percentile` % of the answers lie, interpolated linearly between the stored
    /// percentiles. `None` for a cap that is not in the file, and outside the stored percentiles.
    #[must_use]
    pub fn at(&self, cap: usize, percentile: f32) -> Option<f32> {
        let row = self.values.chunks(self.levels.len()).nth(cap)?;
        let above = self.levels.iter().position(|&level| level >= percentile)?;
        if self.levels[above] == percentile {
            return Some(row[above]);
        }
        let below = above.checked_sub(1)?;
        let share = (percentile - self.levels[below]) / (self.levels[above] - self.levels[below]);
        Some(row[below] + share * (row[above] - row[below]))
    }
}

fn field(key: &str) -> String {
    format!("axiscap.origin.{key}")
}

/// Returns the numbers under a key of the origin.
fn numbers(file: &CapFile, key: &str) -> Result<Option<Vec<f32>>> {
    match file.origin.get(key) {
        None => Ok(None),
        Some(Value::Array(Array::F32(numbers))) => Ok(Some(numbers.clone())),
        Some(other) => Err(invalid(field(key), "an array of f32", other.type_name(), REMEDY)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::file::{ModelInfo, Origin};
    use crate::{Axis, BlockCap, Bound, Cap, CapSet};

    fn file(levels: impl Into<Value>, values: impl Into<Value>) -> CapFile {
        let cap =
            |block| BlockCap { block, cap: Cap::new(Axis::from_direction(&[1.0]).unwrap(), Bound::NONE) };
        let caps = CapSet::new([cap(1), cap(2)]).unwrap();
        let mut file = CapFile::new(caps, ModelInfo::new("llama", 4));
        file.origin.set(LEVELS, levels).set(DEFAULT, values);
        file
    }

    #[test]
    fn quantiles_are_those_of_a_cap_and_interpolated() {
        let levels = vec![0.0_f32, 10.0, 50.0, 100.0];
        let values = vec![-4.0_f32, -3.0, 1.0, 2.0, 10.0, 20.0, 30.0, 40.0];
        let quantiles = Quantiles::of_default_answers(&file(levels, values)).unwrap().unwrap();
        let at = [0.0, 5.0, 10.0, 30.0, 100.0].map(|percentile| quantiles.at(0, percentile).unwrap());
        assert_eq!(at, [-4.0, -3.5, -3.0, -1.0, 2.0]);
        assert_eq!(quantiles.at(1, 50.0), Some(30.0));
        assert_eq!(
            (quantiles.at(2, 50.0), quantiles.at(0, 101.0), quantiles.at(0, -1.0)),
            (None, None, None)
        );
        let tops = file(vec![5.0_f32, 50.0], vec![1.0_f32, 2.0, 3.0, 4.0]);
        let tops = Quantiles::of_default_answers(&tops).unwrap().unwrap();
        assert_eq!(tops.at(0, 1.0), None, "below the lowest percentile that is stored");
    }

    #[test]
    fn a_file_without_quantiles_has_none_and_a_damaged_one_is_refused() {
        let mut plain = file(0_u32, 0_u32);
        plain.origin = Origin::default();
        assert_eq!(Quantiles::of_default_answers(&plain).unwrap(), None);
        let levels = || vec![1.0_f32, 50.0];
        let nan = file(levels(), vec![f32::NAN; 4]);
        assert_eq!(Quantiles::of_default_answers(&nan).unwrap(), None);
        let refused = [
            file(levels(), vec![1.0_f32, 2.0, 3.0]),
            file(levels(), vec![1.0_f32, 2.0, 4.0, 3.0]),
            file(levels(), vec![1.0_f32, 2.0, f32::NAN, 3.0]),
            file(levels(), vec![1.0_f32, 2.0, 3.0, f32::INFINITY]),
            file(vec![50.0_f32, 1.0], vec![1.0_f32; 4]),
            file(vec![1.0_f32, f32::NAN], vec![1.0_f32; 4]),
            file(vec![1.0_f32, 101.0], vec![1.0_f32; 4]),
            file(Vec::<f32>::new(), Vec::<f32>::new()),
            file(levels(), "four"),
            file(vec![1_u32, 50], vec![1.0_f32; 4]),
        ];
        for file in refused {
            let error = Quantiles::of_default_answers(&file).unwrap_err();
            assert!(
                error.field().is_some_and(|field| field.starts_with("axiscap.origin.calibrate.")),
                "{error}"
            );
        }
    }
}
