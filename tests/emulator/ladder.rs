//! The steps of kernels/ladder compute the operation, the last one bit for bit.

use axiscap::cpu::oracle::UNIT_ROUNDOFF;
use axiscap::cuda::raw::{KernelPath, Plan};
use axiscap_testing::case::{Case, Setup};

use crate::emulate::TableImage;
use crate::machine;
use crate::one_cap;

#[test]
fn every_step_of_the_ladder_computes_the_operation() {
    let mut acted = 0;
    for (seed, width) in (5..).step_by(5).zip([4, 576, 1000, 4096, 8192]) {
        let case = Case { schedule: 1, seed, ..one_cap(19, width, Some(KernelPath::General)) };
        let warps = width.div_ceil(512) as u32;
        let steps = [
            ("axiscap_ladder_1_thread_per_row", 1, 32),
            ("axiscap_ladder_2_warp_per_row", 19, 32),
            ("axiscap_ladder_3_block_per_row", 19, 128),
            ("axiscap_ladder_4_row_in_registers", 19, 32 * warps),
        ];
        for (step, (name, blocks, threads)) in steps.into_iter().enumerate() {
            let mut setup = Setup::<f32>::new(&case);
            let mut expected = setup.clone();
            expected.define(&case);
            let mut image = TableImage::new(&setup.table);
            let view = image.view();
            let plan = Plan::on_path(&setup.job(&case), &view, &case.limits, case.path)
                .expect("a plan")
                .expect("rows");
            let launch = machine::Launch { blocks, threads, groups: 1, shared_bytes: 256, cluster: 1 };
            // SAFETY: every buffer outlives the call, and only this test uses it.
            unsafe { machine::run_named(name, plan.args(), &launch, case.schedule) }.expect("no fault");
            for row in 0..case.rows {
                let (found, right) = (setup.h.row(row), expected.h.row(row));
                // Any order of additions is within `width` roundings of the exact sum, and so is the
                // definition's.
                let norm = right.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
                let slack = 2.0 * (width as f64 + 3.0) * UNIT_ROUNDOFF * norm;
                for (a, b) in found.iter().zip(right) {
                    let near = if step == 3 {
                        a.to_bits() == b.to_bits()
                    } else {
                        f64::from((a - b).abs()) <= slack
                    };
                    assert!(
                        near || (a.is_nan() && b.is_nan()) || a == b,
                        "{name}, width {width}, row {row}: {a} {b}"
                    );
                }
                acted += usize::from(expected.stats[row].engaged());
            }
        }
    }
    assert!(acted > 50, "only {acted} rows were capped");
}
