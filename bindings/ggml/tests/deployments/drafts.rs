//! A draft model beside its target in one process.

use axiscap_testing::llama::Row;

use crate::capped::{Capped, PINNED, bands, bits, check_pinned, rows};
use crate::script::{in_eights, run};
use crate::subjects::{attention, real};
use crate::support;

/// A target that verifies drafted tokens, and rolls back those that it rejects.
#[test]
fn drafted_tokens_are_verified_and_rejected() {
    run(real(), in_eights, |run| {
        run.decode(&rows(0, 0, 8, |i| i == 7));
        for round in 0..3 {
            let from = 8 + 2 * round;
            run.decode(&rows(0, from, 4, |_| true));
            assert!(run.context().remove(0, from as i32 + 2, -1));
        }
    });
}

/// The caps of the target do not reach the draft, and the other way round.
#[test]
fn the_draft_stays_as_it_is() {
    let (draft, target) = (attention(), real());
    let decode_all = |context: &mut axiscap_testing::llama::TestContext<'_>| {
        let batch = rows(0, 0, 12, |i| i == 11);
        assert_eq!(context.decode(&batch), 0);
        context.logits(11)
    };
    let alone = decode_all(&mut draft.model.context(|_| {}).unwrap());
    let hook = support::install();
    let mut capped = Capped::new(&hook, &target.model, target.architecture, |_| {}).unwrap();
    capped.set(&bands(0..target.model.blocks(), target.model.width(), PINNED, PINNED)).unwrap();
    let mut free = draft.model.context(|_| {}).unwrap();
    for step in 0..3 {
        let batch: Vec<Row> = rows(0, 4 * step, 4, |i| i == 3);
        let drafted = free.decode(&batch);
        assert_eq!(drafted, 0);
        let trace = capped.decode(&batch).unwrap();
        let blocks: Vec<_> = (0..target.model.blocks()).collect();
        check_pinned(&trace, &blocks, &target.model, &batch).unwrap();
    }
    free.clear();
    assert!(bits(&[decode_all(&mut free)]) == bits(&[alone]), "the draft is capped");
}
