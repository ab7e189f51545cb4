//! The result for a row depends on that row alone: not on its neighbours, its place, the memory around it, the number
//! of threads, or which variant does the work.

use axiscap::cpu::{self, Element, Isa, Norm, Options, Rows, RowsMut, share};
use axiscap::{Axis, Bound, Cap, CapTable, RowStat};
use bytemuck::Pod;

use crate::numbers::Random;
use crate::support::{assert_same_bytes, cap, cap_rows, row};

const DEPTH: usize = 3;

/// Profiles 0 (empty), 1 (one cap), 2 (none), 3 (three caps).
fn profiled(random: &mut Random, width: usize) -> CapTable {
    let caps: Vec<Cap> = (0..4).map(|_| cap(random, width)).collect();
    CapTable::with_profiles(&[&[&caps[0]], &[], &[&caps[1], &caps[2], &caps[3]]]).unwrap()
}

/// Runs of equal profiles, so that some rows go in fours and some alone.
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
        let mut stats = vec![RowStat { flags: 77, ..RowStat::default() }; count * DEPTH];
        let rows = RowsMut::from_slice(&mut batch, width).unwrap();
        cpu::cap_rows(&table, rows, Options::new().isa(isa).profiles(&profiles).stats(&mut stats)).unwrap();
        for r in 0..count {
            let at = r * width..(r + 1) * width;
            let mut alone = original[at.clone()].to_vec();
            let mut own = [RowStat { flags: 77, ..RowStat::default() }; DEPTH];
            let rows = RowsMut::from_slice(&mut alone, width).unwrap();
            let options = Options::new().isa(isa).profiles(&profiles[r..=r]).stats(&mut own);
            cpu::cap_rows(&table, rows, options).unwrap();
            assert_same_bytes(&batch[at.clone()], &alone, &format!("{isa}, width {width}, row {r}"));
            assert_eq!(own, stats[r * DEPTH..(r + 1) * DEPTH], "row {r}");
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
    // Enough bytes that sharing is worth it.
    let (width, count) = (if isa == Isa::Portable { 1300 } else { 2600 }, 300);
    let mut random = Random(3);
    let table = profiled(&mut random, width);
    let original: Vec<E> = row(&mut random, count * width, 1.0);
    let profiles = profiles(count);
    let mut expected = original.clone();
    let mut expected_stats = vec![RowStat::default(); count * DEPTH];
    let rows = RowsMut::from_slice(&mut expected, width).unwrap();
    let options = Options::new().isa(isa).profiles(&profiles).stats(&mut expected_stats);
    cpu::cap_rows(&table, rows, options).unwrap();

    for threads in [1, 2, 3, 5] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let (mut found, mut stats) = (original.clone(), vec![RowStat::default(); count * DEPTH]);
        pool.install(|| {
            let rows = RowsMut::from_slice(&mut found, width).unwrap();
            let options = Options::new().isa(isa).profiles(&profiles).stats(&mut stats).parallel(true);
            cpu::cap_rows(&table, rows, options).unwrap();
        });
        assert_same_bytes(&found, &expected, &format!("{isa}, {threads} threads"));
        assert_eq!(stats, expected_stats);
    }

    // As a host's own threads do it: each its share, through raw pointers.
    let mut found = original.clone();
    let at = found.as_mut_ptr() as usize;
    std::thread::scope(|scope| {
        for ith in 0..3 {
            let (table, profiles) = (&table, &profiles);
            scope.spawn(move || {
                let own = share(count, ith, 3);
                // SAFETY: inside `found`, which outlives the scope; shares do not overlap.
                let rows = unsafe {
                    let start = (at as *mut E).add(own.start * width);
                    RowsMut::from_raw(start, own.len(), width, width).unwrap()
                };
                cpu::cap_rows(table, rows, Options::new().isa(isa).profiles(&profiles[own])).unwrap();
            });
        }
    });
    assert_same_bytes(&found, &expected, "shares");
}

/// Rows apart from each other, starting anywhere: same bits, and nothing between them is touched.
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
                cpu::cap_rows(&table, rows, Options::new().isa(isa)).unwrap();
                assert_same_bytes(&memory, &guarded, &format!("{isa}, {width} + {gap} from {start}"));
            }
        }
    }
}

/// What docs/operation.md makes equal: for f32, fused and unfused everywhere; for f16 and bf16, the residual rows.
fn fused_is_unfused<E: Element + Pod>(isa: Isa) {
    for width in [1, 130, 576, 2048] {
        let mut random = Random(width as u64);
        let count = 9;
        let table = CapTable::new(&[cap(&mut random, width), cap(&mut random, width)]).unwrap();
        let x: Vec<E> = row(&mut random, count * width, 1.0);
        let residual: Vec<E> = row(&mut random, count * width, 1.0);
        let weight: Vec<f32> = row(&mut random, width, 1.0);
        let norm = Norm::new(&weight, 1e-6).unwrap();
        let uncapped = vec![0; count];
        let options = || Options::new().isa(isa);
        let read = |values| Rows::from_slice(values, width).unwrap();
        let empty = || vec![E::default(); count * width];

        let (mut sum, mut normed) = (empty(), empty());
        let (x_rows, residual_rows) = (read(&x), read(&residual));
        cpu::add_cap_norm_rows(
            &table,
            x_rows,
            residual_rows,
            write_to(&mut sum, width),
            norm,
            write_to(&mut normed, width),
            options(),
        )
        .unwrap();

        let mut added = empty();
        cpu::add_cap_rows(&table, x_rows, residual_rows, write_to(&mut added, width), options()).unwrap();
        assert_same_bytes(&added, &sum, "add + cap is the first half of add + cap + norm");

        let (mut in_place, mut in_place_norm) = (residual.clone(), residual.clone());
        cpu::add_cap_rows_in_place(&table, x_rows, write_to(&mut in_place, width), options()).unwrap();
        assert_same_bytes(&in_place, &sum, "add + cap over the residual");
        let mut other = empty();
        let (to, out) = (write_to(&mut in_place_norm, width), write_to(&mut other, width));
        cpu::add_cap_norm_rows_in_place(&table, x_rows, to, norm, out, options()).unwrap();
        assert_same_bytes(&in_place_norm, &sum, "add + cap + norm over the residual: rows");
        assert_same_bytes(&other, &normed, "add + cap + norm over the residual: normed");

        let (mut capped, mut fused) = (x.clone(), x.clone());
        cap_rows(isa, &table, &mut capped);
        let (to, out) = (write_to(&mut fused, width), write_to(&mut other, width));
        cpu::cap_norm_rows(&table, to, norm, out, options()).unwrap();
        assert_same_bytes(&fused, &capped, "cap is the first half of cap + norm");

        if E::VECTOR == 4 {
            let mut separate = empty();
            let uncapped_options = options().profiles(&uncapped);
            let (rows, out) = (write_to(&mut capped, width), write_to(&mut separate, width));
            cpu::cap_norm_rows(&table, rows, norm, out, uncapped_options).unwrap();
            assert_same_bytes(&separate, &other, "cap, then norm");

            let uncapped_options = options().profiles(&uncapped);
            let to = write_to(&mut added, width);
            cpu::add_cap_rows(&table, x_rows, residual_rows, to, uncapped_options).unwrap();
            cap_rows(isa, &table, &mut added);
            assert_same_bytes(&added, &sum, "add, then cap");
        }
    }
}

fn write_to<E: Element>(values: &mut [E], width: usize) -> RowsMut<'_, E> {
    RowsMut::from_slice(values, width).unwrap()
}

/// Every kind of rows of a call, each with gaps of its own, shared out over threads.
fn threads_do_not_matter_to_fused_forms<E: Element + Pod>(isa: Isa) {
    // Enough bytes for several shares.
    let (width, count) = (if isa == Isa::Portable { 1300 } else { 2600 }, 300);
    let mut random = Random(8);
    let table = profiled(&mut random, width);
    let profiles = profiles(count);
    let strides = [width + 3, width + 1, width + 7, width];
    let [x, residual] = [strides[0], strides[1]].map(|stride| row::<E>(&mut random, count * stride, 1.0));
    let weight: Vec<f32> = row(&mut random, width, 1.0);
    let norm = Norm::new(&weight, 1e-6).unwrap();
    let run = |parallel| {
        let [mut sum, mut out] =
            [strides[2], strides[3]].map(|stride| vec![E::from_f32(-7.0); count * stride]);
        let mut stats = vec![RowStat { flags: 77, ..RowStat::default() }; count * DEPTH];
        cpu::add_cap_norm_rows(
            &table,
            Rows::with_stride(&x, count, width, strides[0]).unwrap(),
            Rows::with_stride(&residual, count, width, strides[1]).unwrap(),
            RowsMut::with_stride(&mut sum, count, width, strides[2]).unwrap(),
            norm,
            RowsMut::with_stride(&mut out, count, width, strides[3]).unwrap(),
            Options::new().isa(isa).profiles(&profiles).stats(&mut stats).parallel(parallel),
        )
        .unwrap();
        (sum, out, stats)
    };
    let (sum, out, stats) = run(false);
    for threads in [2, 3] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let (found_sum, found_out, found_stats) = pool.install(|| run(true));
        assert_same_bytes(&found_sum, &sum, &format!("{isa}, {threads} threads: rows"));
        assert_same_bytes(&found_out, &out, &format!("{isa}, {threads} threads: normed"));
        assert_eq!(found_stats, stats);
    }
}

/// One cap on long rows is code of its own: with gaps between the rows, and in a table whose other profiles are
/// deeper, so that statistics have gaps too.
fn one_cap_on_long_rows_is_as_any<E: Element + Pod>(isa: Isa) {
    let (width, count) = (2100, 6);
    let stride = width + 5;
    let mut random = Random(21);
    let table = profiled(&mut random, width);
    let original: Vec<E> = row(&mut random, count * stride, 1.0);
    let run = |profiles: Option<&[u32]>| {
        let (mut rows, mut stats) =
            (original.clone(), vec![RowStat { flags: 77, ..RowStat::default() }; count * DEPTH]);
        let to = RowsMut::with_stride(&mut rows, count, width, stride).unwrap();
        let options = Options { profiles, ..Options::new().isa(isa).stats(&mut stats) };
        cpu::cap_rows(&table, to, options).unwrap();
        (rows, stats)
    };
    let (rows, stats) = run(None);
    // Profile 1 for every row is what leaving the profiles out means.
    let (expected, expected_stats) = run(Some(&vec![1; count]));
    assert_same_bytes(&rows, &expected, &format!("{isa}: rows"));
    assert_eq!(stats, expected_stats);
    let alone = CapTable::new([&only_cap(&table)]).unwrap();
    let mut without = original.clone();
    let to = RowsMut::with_stride(&mut without, count, width, stride).unwrap();
    cpu::cap_rows(&alone, to, Options::new().isa(isa)).unwrap();
    assert_same_bytes(&without, &expected, &format!("{isa}: without statistics"));
    for (r, stats) in stats.chunks(DEPTH).enumerate() {
        let mut own = original[r * stride..][..width].to_vec();
        assert_eq!(cap_rows(isa, &alone, &mut own), stats[..1], "row {r}");
        assert_eq!(stats[1..], [RowStat::default(); DEPTH - 1], "row {r}");
        assert_same_bytes(&rows[r * stride..][..width], &own, &format!("{isa}: row {r}"));
        assert_same_bytes(&rows[r * stride + width..][..5], &original[r * stride + width..][..5], "a gap");
    }
    assert!(stats.iter().any(RowStat::engaged));
}

/// The cap of profile 1 of `profiled`.
fn only_cap(table: &CapTable) -> Cap {
    let params = table.params()[0];
    let axis = Axis::from_unit(table.axis(0), None).unwrap();
    Cap::new(axis, Bound::band(params.lo, params.hi).unwrap())
}

fn no_rows_and_no_caps<E: Element + Pod>(isa: Isa) {
    let mut random = Random(5);
    let table = profiled(&mut random, 64);
    cpu::cap_rows(&table, write_to::<E>(&mut [], 64), Options::new().isa(isa).parallel(true)).unwrap();
    let mut stats: [RowStat; 0] = [];
    let options = Options::new().isa(isa).profiles(&[]).stats(&mut stats);
    cpu::add_cap_rows::<E>(
        &table,
        Rows::from_slice(&[], 64).unwrap(),
        Rows::from_slice(&[], 64).unwrap(),
        write_to(&mut [], 64),
        options,
    )
    .unwrap();
    // A profile without caps still adds.
    let x: Vec<E> = row(&mut random, 5 * 64, 1.0);
    let mut sum = vec![E::default(); x.len()];
    let rows = Rows::from_slice(&x, 64).unwrap();
    let options = Options::new().isa(isa).profiles(&[2; 5]);
    cpu::add_cap_rows(&table, rows, rows, write_to(&mut sum, 64), options).unwrap();
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
