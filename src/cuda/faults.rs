//! What only a kernel could notice: rows whose profile does not exist. Profile indices in device memory are written
//! by others, and no host sees them before the launch.

use std::fmt;

/// Rows that asked for a profile which the table does not have. They went **uncapped**: treat it as an error.
///
/// Every table counts its own, over all launches since it was uploaded or
/// [cleared](super::DeviceTable::clear_faults). Ask with [`DeviceTable::faults`](super::DeviceTable::faults), or copy
/// [`TableView::faults`](super::TableView::faults) in stream order and hand the bytes to [`ProfileFaults::from_bytes`].
/// The statistics of such a row, where they are asked for, say so too
/// ([`RowStat::BAD_PROFILE`](crate::RowStat::BAD_PROFILE)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProfileFaults {
    /// How many rows.
    pub rows: u64,
    /// The lowest of them, as an index into its launch's rows.
    pub row: u32,
    /// The profile that row asked for; the lowest, where several launches had a bad one on it.
    pub profile: u32,
}

impl ProfileFaults {
    /// Bytes of the record in device memory.
    pub const BYTES: usize = 16;

    /// What a record says (`Faults` in kernels/args.cuh); `None` when no row was at fault.
    #[must_use]
    pub fn from_bytes(record: &[u8; Self::BYTES]) -> Option<Self> {
        let [first, rows] = bytemuck::pod_read_unaligned::<[u64; 2]>(record);
        // Zero is the record of a table without faults. No row has the index 2^32 - 1, so that its complement is
        // never taken for one.
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
    fn records_say_how_many_and_which() {
        let record = |first: u64, rows: u64| {
            let words = [first, rows];
            let bytes: &[u8] = bytemuck::cast_slice(&words);
            ProfileFaults::from_bytes(bytes.try_into().expect("16 bytes"))
        };
        assert_eq!(record(0, 0), None);
        let key = |row: u64, profile: u64| !(row << 32 | profile);
        // What the kernels' maximum keeps is the lowest row, and the lowest profile of that row.
        let first = key(7, u64::from(u32::MAX)).max(key(3, 9)).max(key(3, 10)).max(key((1 << 31) - 1, 5));
        let faults = record(first, 4).expect("a fault");
        assert_eq!(faults, ProfileFaults { rows: 4, row: 3, profile: 9 });
        assert!(faults.to_string().contains("row 3 asked for profile 9"));
        assert_eq!(record(key(0, u64::from(u32::MAX)), 1).map(|f| (f.row, f.profile)), Some((0, u32::MAX)));
    }
}
