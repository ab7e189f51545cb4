//! Rows that name profiles of one cap at most: each row gets what it gets alone, on every instruction set.

use axiscap::cpu::{Isa, Job, RowsMut};
use axiscap::{Axis, Bound, Cap, CapTable, RowStat};
use axiscap_testing::numbers::Random;

/// Neighbours of one profile, changes in both directions, and rows without caps at the beginning, within and at
/// the end. Short rows, and long ones, which have a kernel of their own.
#[test]
fn each_row_is_capped_as_if_it_were_alone() {
    let names = [0, 1, 1, 0, 3, 2, 2, 3, 1, 0, 0, 2, 1, 3, 3, 3, 3, 0];
    for width in [600, 2048, 4099] {
        let mut random = Random(width as u64);
        let caps: Vec<Cap> = [-0.1, 0.2, 0.0]
            .map(|bound| {
                let direction: Vec<f32> = (0..width).map(|_| random.value()).collect();
                let axis = Axis::from_direction(&direction).expect("an axis");
                Cap::new(axis, Bound::floor(bound).expect("a bound"))
            })
            .into();
        let profiles = [[&caps[0]], [&caps[1]], [&caps[2]]];
        let table = CapTable::with_profiles(&profiles.each_ref().map(|caps| &caps[..])).expect("a table");
        let values: Vec<f32> = (0..names.len() * width).map(|_| random.value()).collect();

        let (mut alone, mut expected, mut acted) = (values.clone(), Vec::new(), 0);
        for (row, &name) in alone.chunks_mut(width).zip(&names) {
            let mut stat = [RowStat::default()];
            if name > 0 {
                let table = CapTable::new(&caps[name - 1..name]).expect("a table");
                let job = Job::cap(RowsMut::from_slice(row, width).expect("a row"));
                job.stats(&mut stat).run_on(Isa::Portable, &table).expect("one row");
            }
            acted += usize::from(stat[0].engaged());
            expected.extend(stat);
        }
        assert!((3..names.len() - 5).contains(&acted), "{acted} rows are capped");

        let names: Vec<u32> = names.iter().map(|&name| name as u32).collect();
        for isa in Isa::ALL.into_iter().filter(|isa| isa.available()) {
            let old = RowStat { before: 7.0, after: 7.0, flags: 7 };
            let (mut rows, mut stats) = (values.clone(), vec![old; names.len()]);
            let job = Job::cap(RowsMut::from_slice(&mut rows, width).expect("whole rows"));
            job.row_profiles(&names).stats(&mut stats).run_on(isa, &table).expect("rows");
            assert_eq!(stats, expected, "{isa}, width {width}");
            assert!(rows == alone, "{isa}, width {width}");
            // Without statistics.
            let mut rows = values.clone();
            let job = Job::cap(RowsMut::from_slice(&mut rows, width).expect("whole rows"));
            job.row_profiles(&names).run_on(isa, &table).expect("rows");
            assert!(rows == alone, "{isa}, width {width}, without statistics");
        }
    }
}
