//! The result for a row depends on that row alone: not on its neighbours, its position, the memory around it,
//! the number of threads, or the variant.

use axiscap::cpu::{Element, Isa, Job, Rows, RowsMut, split_rows};
use axiscap::{Axis, Bound, Cap, CapTable, Epsilon, RowStat};
use axiscap_testing::numbers::Random;
use bytemuck::Pod;

use crate::support::{assert_same_bytes, cap, cap_rows, row};

const MAX_CAPS: usize = 3;

/// Makes a table with the profiles 0 (empty), 1 (one cap), 2 (none) and 3 (three caps).
fn profiled(random: &mut Random, width: usize) -> CapTable {
    let caps: Vec<Cap> = (0..4).map(|_| cap(random, width)).collect();
    CapTable::with_profiles(&[&[&caps[0]], &[], &[&caps[1], &caps[2], &caps[3]]]).unwrap()
}

/// Returns profiles of which some are equal in fours, so that some rows go together and some alone.
fn profiles(rows: usize) -> Vec<u32> {
    (0..rows).map(|row| [3, 3, 3, 3, 1, 0, 1, 1, 1, 1, 2, 3, 0][row % 13]).collect()
}

fn rows_stand_alone<E: Element + Pod>(isa: Isa) {
    for width in [1, 100, 576, 1024, 2100] {
        let mut random = Random(width as u64);
        let table = profiled(&mut random, width);
        let count = 31;
        let original: Vec<E> = row(&mut random, count * width, 1.0);
        let profiles = profiles(count);
        let mut batch = original.clone();
        let mut stats = vec![RowStat { flags: 77, ..RowStat::default() }; count * MAX_CAPS];
        let rows = RowsMut::from_slice(&mut batch, width).unwrap();
        Job::cap(rows).row_profiles(&profiles).stats(&mut stats).run_on(isa, &table).unwrap();
        for r in 0..count {
            let at = r * width..(r + 1) * width;
            let mut alone = original[at.clone()].to_vec();
            let mut own = [RowStat { flags: 77, ..RowStat::default() }; MAX_CAPS];
            let rows = RowsMut::from_slice(&mut alone, width).unwrap();
            let job = Job::cap(rows).row_profiles(&profiles[r..=r]).stats(&mut own);
            job.run_on(isa, &table).unwrap();
            assert_same_bytes(&batch[at.clone()], &alone, &format!("{isa}, width {width}, row {r}"));
            assert_eq!(own, stats[r * MAX_CAPS..(r + 1) * MAX_CAPS], "row {r}");
            let caps = table.profile(profiles[r]).unwrap().len();
            assert!(own[caps..].iter().all(|stat| *stat == RowStat::default()));
            if caps == 0 {
                assert_same_bytes(&batch[at.clone()], &original[at], "a row without caps");
            }
        }
        assert!(stats.iter().any(RowStat::engaged));
    }
}

fn threads_do_not_matter<E: Element + Pod>(isa: Isa) {
    let (width, count) = (if isa == Isa::Portable { 1300 } else { 2600 }, 300);
    let mut random = Random(3);
    let table = profiled(&mut random, width);
    let original: Vec<E> = row(&mut random, count * width, 1.0);
    let profiles = profiles(count);
    let mut expected = original.clone();
    let mut expected_stats = vec![RowStat::default(); count * MAX_CAPS];
    let rows = RowsMut::from_slice(&mut expected, width).unwrap();
    let job = Job::cap(rows).row_profiles(&profiles).stats(&mut expected_stats);
    job.run_on(isa, &table).unwrap();

    for threads in [1, 2, 3, 5] {
        let (mut found, mut stats) = (original.clone(), vec![RowStat::default(); count * MAX_CAPS]);
        let at = found.as_mut_ptr() as usize;
        let mut rest = stats.as_mut_slice();
        std::thread::scope(|scope| {
            for ith in 0..threads {
                let part = split_rows(count, ith, threads);
                let own_stats = rest.split_off_mut(..part.len() * MAX_CAPS).unwrap();
                let (table, profiles) = (&table, &profiles);
                scope.spawn(move || {
                    // SAFETY: the part is inside `found`, which outlives the scope, and parts do not overlap.
                    let rows = unsafe {
                        let start = (at as *mut E).add(part.start * width);
                        RowsMut::from_raw(start, part.len(), width, width).unwrap()
                    };
                    let job = Job::cap(rows).row_profiles(&profiles[part]).stats(own_stats);
                    job.run_on(isa, table).unwrap();
                });
            }
        });
        assert_same_bytes(&found, &expected, &format!("{isa}, {threads} threads"));
        assert_eq!(stats, expected_stats);
    }
}

/// Rows with gaps, at any alignment, give the same bits, and the gaps keep their values.
fn strides_and_alignment_do_not_matter<E: Element + Pod>(isa: Isa) {
    for width in [1, 15, 16, 111, 512, 576, 1023] {
        let mut random = Random(width as u64);
        let table = CapTable::new(&[cap(&mut random, width), cap(&mut random, width)]).unwrap();
        let count = 6;
        let original: Vec<E> = row(&mut random, count * width, 1.0);
        let mut expected = original.clone();
        cap_rows(isa, &table, &mut expected);
        let guard = E::from_f32(-777.0);
        for gap in [1, 3, 16] {
            for start in 0..18 {
                let stride = width + gap;
                let mut memory = vec![guard; start + count * stride + 1];
                for r in 0..count {
                    memory[start + r * stride..][..width].copy_from_slice(&original[r * width..][..width]);
                }
                let mut guarded = memory.clone();
                for r in 0..count {
                    guarded[start + r * stride..][..width].copy_from_slice(&expected[r * width..][..width]);
                }
                let rows = RowsMut::with_stride(&mut memory[start..], count, width, stride).unwrap();
                Job::cap(rows).run_on(isa, &table).unwrap();
                assert_same_bytes(&memory, &guarded, &format!("{isa}, {width} + {gap} from {start}"));
            }
        }
    }
}

/// Checks the equalities of docs/operation.md: for f32 fused and unfused everywhere, for f16 and bf16 the
/// residual rows.
fn fused_is_unfused<E: Element + Pod>(isa: Isa) {
    for width in [1, 130, 576, 2048] {
        let mut random = Random(width as u64);
        let count = 9;
        let table = CapTable::new(&[cap(&mut random, width), cap(&mut random, width)]).unwrap();
        let x: Vec<E> = row(&mut random, count * width, 1.0);
        let residual: Vec<E> = row(&mut random, count * width, 1.0);
        let weight: Vec<f32> = row(&mut random, width, 1.0);
        let epsilon = Epsilon::new(1e-6).unwrap();
        let uncapped = vec![0; count];
        let read = |values| Rows::from_slice(values, width).unwrap();
        let empty = || vec![E::default(); count * width];

        let (mut sum, mut normed) = (empty(), empty());
        let (x_rows, residual_rows) = (read(&x), read(&residual));
        Job::add_cap_into(x_rows, residual_rows, write_to(&mut sum, width))
            .norm(&weight, epsilon, write_to(&mut normed, width))
            .run_on(isa, &table)
            .unwrap();

        let mut added = empty();
        Job::add_cap_into(x_rows, residual_rows, write_to(&mut added, width)).run_on(isa, &table).unwrap();
        assert_same_bytes(&added, &sum, "add + cap is the first half of add + cap + norm");

        let (mut in_place, mut in_place_norm) = (residual.clone(), residual.clone());
        Job::add_cap(x_rows, write_to(&mut in_place, width)).run_on(isa, &table).unwrap();
        assert_same_bytes(&in_place, &sum, "add + cap over the residual");
        let mut other = empty();
        let (to, out) = (write_to(&mut in_place_norm, width), write_to(&mut other, width));
        Job::add_cap(x_rows, to).norm(&weight, epsilon, out).run_on(isa, &table).unwrap();
        assert_same_bytes(&in_place_norm, &sum, "add + cap + norm over the residual: rows");
        assert_same_bytes(&other, &normed, "add + cap + norm over the residual: normed");

        let (mut capped, mut fused) = (x.clone(), x.clone());
        cap_rows(isa, &table, &mut capped);
        let (to, out) = (write_to(&mut fused, width), write_to(&mut other, width));
        Job::cap(to).norm(&weight, epsilon, out).run_on(isa, &table).unwrap();
        assert_same_bytes(&fused, &capped, "cap is the first half of cap + norm");

        if E::VECTOR == 4 {
            let mut separate = empty();
            let (rows, out) = (write_to(&mut capped, width), write_to(&mut separate, width));
            let job = Job::cap(rows).norm(&weight, epsilon, out).row_profiles(&uncapped);
            job.run_on(isa, &table).unwrap();
            assert_same_bytes(&separate, &other, "cap, then norm");

            let job = Job::add_cap_into(x_rows, residual_rows, write_to(&mut added, width));
            job.row_profiles(&uncapped).run_on(isa, &table).unwrap();
            cap_rows(isa, &table, &mut added);
            assert_same_bytes(&added, &sum, "add, then cap");
        }
    }
}

fn write_to<E: Element>(values: &mut [E], width: usize) -> RowsMut<'_, E> {
    RowsMut::from_slice(values, width).unwrap()
}

/// The batches of a call have different strides, and threads share their rows.
fn threads_do_not_matter_to_fused_forms<E: Element + Pod>(isa: Isa) {
    let (width, count) = (if isa == Isa::Portable { 1300 } else { 2600 }, 300);
    let mut random = Random(8);
    let table = profiled(&mut random, width);
    let profiles = profiles(count);
    let strides = [width + 3, width + 1, width + 7, width];
    let [x, residual] = [strides[0], strides[1]].map(|stride| row::<E>(&mut random, count * stride, 1.0));
    let weight: Vec<f32> = row(&mut random, width, 1.0);
    let epsilon = Epsilon::new(1e-6).unwrap();
    let run = |threads| {
        let [mut sum, mut out] =
            [strides[2], strides[3]].map(|stride| vec![E::from_f32(-7.0); count * stride]);
        let mut stats = vec![RowStat { flags: 77, ..RowStat::default() }; count * MAX_CAPS];
        let mut rest = stats.as_mut_slice();
        let [sum_at, out_at] = [&mut sum, &mut out].map(|rows| rows.as_mut_ptr() as usize);
        std::thread::scope(|scope| {
            for ith in 0..threads {
                let part = split_rows(count, ith, threads);
                let own_stats = rest.split_off_mut(..part.len() * MAX_CAPS).unwrap();
                let (table, profiles, weight, x, residual) = (&table, &profiles, &weight, &x, &residual);
                scope.spawn(move || {
                    let read = |values, stride| {
                        Rows::with_stride(values, count, width, stride).unwrap().range(part.clone()).unwrap()
                    };
                    let write = |at: usize, stride: usize| {
                        let start = (at as *mut E).wrapping_add(part.start * stride);
                        // SAFETY: the part is inside its buffer, which outlives the scope, and parts do not
                        // overlap.
                        unsafe { RowsMut::from_raw(start, part.len(), width, stride) }.unwrap()
                    };
                    let (x, residual) = (read(x, strides[0]), read(residual, strides[1]));
                    Job::add_cap_into(x, residual, write(sum_at, strides[2]))
                        .norm(weight, epsilon, write(out_at, strides[3]))
                        .row_profiles(&profiles[part.clone()])
                        .stats(own_stats)
                        .run_on(isa, table)
                        .unwrap();
                });
            }
        });
        (sum, out, stats)
    };
    let (sum, out, stats) = run(1);
    for threads in [2, 3] {
        let (found_sum, found_out, found_stats) = run(threads);
        assert_same_bytes(&found_sum, &sum, &format!("{isa}, {threads} threads: rows"));
        assert_same_bytes(&found_out, &out, &format!("{isa}, {threads} threads: normed"));
        assert_eq!(found_stats, stats);
    }
}

/// One cap on long rows has a separate kernel. Here the rows have gaps, and so have the statistics, because
/// another profile of the table has more caps.
fn one_cap_on_long_rows_is_as_any<E: Element + Pod>(isa: Isa) {
    let (width, count) = (2100, 6);
    let stride = width + 5;
    let mut random = Random(21);
    let table = profiled(&mut random, width);
    let original: Vec<E> = row(&mut random, count * stride, 1.0);
    let run = |profiles: Option<&[u32]>| {
        let (mut rows, mut stats) =
            (original.clone(), vec![RowStat { flags: 77, ..RowStat::default() }; count * MAX_CAPS]);
        let to = RowsMut::with_stride(&mut rows, count, width, stride).unwrap();
        let job = Job { row_profiles: profiles, ..Job::cap(to).stats(&mut stats) };
        job.run_on(isa, &table).unwrap();
        (rows, stats)
    };
    let (rows, stats) = run(None);
    // Without profiles every row has profile 1.
    let (expected, expected_stats) = run(Some(&vec![1; count]));
    assert_same_bytes(&rows, &expected, &format!("{isa}: rows"));
    assert_eq!(stats, expected_stats);
    let alone = CapTable::new([&only_cap(&table)]).unwrap();
    let mut without = original.clone();
    let to = RowsMut::with_stride(&mut without, count, width, stride).unwrap();
    Job::cap(to).run_on(isa, &alone).unwrap();
    assert_same_bytes(&without, &expected, &format!("{isa}: without statistics"));
    for (r, stats) in stats.chunks(MAX_CAPS).enumerate() {
        let mut own = original[r * stride..][..width].to_vec();
        assert_eq!(cap_rows(isa, &alone, &mut own), stats[..1], "row {r}");
        assert_eq!(stats[1..], [RowStat::default(); MAX_CAPS - 1], "row {r}");
        assert_same_bytes(&rows[r * stride..][..width], &own, &format!("{isa}: row {r}"));
        assert_same_bytes(&rows[r * stride + width..][..5], &original[r * stride + width..][..5], "a gap");
    }
    assert!(stats.iter().any(RowStat::engaged));
}

/// Returns the cap of profile 1 of `profiled`.
fn only_cap(table: &CapTable) -> Cap {
    let params = table.params()[0];
    let axis = Axis::from_unit(table.axis(0), None).unwrap();
    Cap::new(axis, Bound::band(params.lo, params.hi).unwrap())
}

fn no_rows_and_no_caps<E: Element + Pod>(isa: Isa) {
    let mut random = Random(5);
    let table = profiled(&mut random, 64);
    Job::cap(write_to::<E>(&mut [], 64)).run_on(isa, &table).unwrap();
    let mut stats: [RowStat; 0] = [];
    let none = Rows::<E>::from_slice(&[], 64).unwrap();
    let job = Job::add_cap_into(none, none, write_to(&mut [], 64)).row_profiles(&[]).stats(&mut stats);
    job.run_on(isa, &table).unwrap();
    // A profile without caps still adds.
    let x: Vec<E> = row(&mut random, 5 * 64, 1.0);
    let mut sum = vec![E::default(); x.len()];
    let rows = Rows::from_slice(&x, 64).unwrap();
    let job = Job::add_cap_into(rows, rows, write_to(&mut sum, 64)).row_profiles(&[2; 5]);
    job.run_on(isa, &table).unwrap();
    let twice: Vec<E> = x.iter().map(|x| E::from_f32(x.to_f32() + x.to_f32())).collect();
    assert_same_bytes(&sum, &twice, "the sum alone");
}

on_every_isa!(
    rows_stand_alone,
    threads_do_not_matter,
    strides_and_alignment_do_not_matter,
    fused_is_unfused,
    threads_do_not_matter_to_fused_forms,
    one_cap_on_long_rows_is_as_any,
    no_rows_and_no_caps,
);
