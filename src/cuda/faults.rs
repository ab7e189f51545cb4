//! Rows whose profile does not exist. Other kernels may write profile indices in device memory, so only the
//! capping kernel can check them.

use std::fmt;

/// Rows with a profile index beyond the table's profiles. They went **uncapped**, so treat them as an error.
///
/// Every table counts its own rows, over all launches since it was uploaded or
/// [cleared](crate::cuda::DeviceTable::clear_faults). Read the record with
/// [`DeviceTable::faults`](crate::cuda::DeviceTable::faults), or copy its bytes in stream order and give them
/// to [`ProfileFaults::from_bytes`]. The statistics of such a row hold
/// [`RowStat::BAD_PROFILE`](crate::RowStat::BAD_PROFILE).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProfileFaults {
    /// Number of rows.
    pub rows: u64,
    /// The lowest row, as an index into the rows of its launch.
    pub row: u32,
    /// The profile index of that row. If several launches had a wrong one on it, the lowest.
    pub profile: u32,
}

impl ProfileFaults {
    /// Size of the record in device memory, in bytes.
    pub const BYTES: usize = 16;

    /// Decodes a record (`Faults` in kernels/args.cuh). `None` if every row had a profile.
    #[must_use]
    pub fn from_bytes(record: &[u8; Self::BYTES]) -> Option<Self> {
        let [first, rows] = bytemuck::pod_read_unaligned::<[u64; 2]>(record);
        // Zero is the record of a table without faults. It is no complement of a key, because no row has the
        // index 2^32 - 1.
        let key = !first;
        (first != 0).then_some(Self { rows, row: (key >> 32) as u32, profile: key as u32 })
    }
}

impl fmt::Display for ProfileFaults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} rows went uncapped: their profile is not in the table (row {} asked for profile {}); write only indices below the table's number of profiles",
            self.rows, self.row, self.profile
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_holds_the_number_of_rows_and_the_lowest_one() {
        let record = |first: u64, rows: u64| {
            let words = [first, rows];
            let bytes: &[u8] = bytemuck::cast_slice(&words);
            ProfileFaults::from_bytes(bytes.try_into().expect("16 bytes"))
        };
        assert_eq!(record(0, 0), None);
        let key = |row: u64, profile: u64| !(row << 32 | profile);
        // The kernels keep the maximum, which is the lowest row with its lowest profile.
        let first = key(7, u64::from(u32::MAX)).max(key(3, 9)).max(key(3, 10)).max(key((1 << 31) - 1, 5));
        let faults = record(first, 4).expect("a fault");
        assert_eq!(faults, ProfileFaults { rows: 4, row: 3, profile: 9 });
        assert!(faults.to_string().contains("row 3 asked for profile 9"));
        assert_eq!(record(key(0, u64::from(u32::MAX)), 1).map(|f| (f.row, f.profile)), Some((0, u32::MAX)));
    }
}
