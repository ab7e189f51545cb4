//! The sign is decided by <default - roles, vector>, centred, and never by a raw projection.

use axiscap::file::gguf::Value;
use axiscap::import::{Evidence, PointsTo, Request, Source, Warning};

use crate::support::{P, Tensor, config, dict, f32s, stacked, text, torch};
use crate::{assert_contains, open, target};

/// A common offset of all activations, far larger than their differences.
const OFFSET: [f32; 3] = [1000.0, -2000.0, 500.0];

fn with_offset(rows: [[f32; 3]; 4]) -> Source {
    open(stacked(&rows.map(|row| std::array::from_fn(|index| row[index] + OFFSET[index]))))
}

/// Evidence whose difference is `rows`: a default vector, and two roles on both sides of their mean.
fn evidence(rows: [[f32; 3]; 4]) -> Evidence {
    let role = |x: f32| with_offset([[x, 0.0, -x]; 4]);
    Evidence::new(&with_offset(rows), &[role(4.0), role(-4.0)]).unwrap()
}

/// Points from the Assistant to roles, as the vectors of `config` do.
const STORED: [[f32; 3]; 4] = [[0.0, -4.0, 3.0], [0.0, -5.0, 3.0], [0.0, -6.0, 3.0], [0.0, -7.0, 3.0]];

fn negated(rows: [[f32; 3]; 4]) -> [[f32; 3]; 4] {
    rows.map(|row| row.map(|value| -value))
}

#[test]
fn evidence_confirms_the_released_convention() {
    let evidence = evidence(negated(STORED));
    let request =
        Request { experiment: Some("layers_1:3-p0.25"), evidence: Some(&evidence), ..Request::default() };
    let imported = open(config()).caps(&target(), &request).unwrap();
    assert_eq!(imported.warnings, []);
    assert!(imported.file.caps.caps().iter().all(|entry| entry.cap.bound().hi() == f32::INFINITY));
    let origin = &imported.file.origin;
    let Some(Value::String(by)) = origin.get("import.orientation_by") else { panic!() };
    assert!(by.starts_with("evidence"), "{by}");
    assert_eq!(origin.get("import.evidence_cosines"), Some(&vec![-1f32, -1.0].into()));
    assert_eq!(origin.get("import.vectors_negated"), Some(&vec![true, true].into()));
}

#[test]
fn evidence_overrules_the_convention_and_says_so() {
    let evidence = evidence(STORED);
    let request =
        Request { experiment: Some("layers_1:3-p0.25"), evidence: Some(&evidence), ..Request::default() };
    let imported = open(config()).caps(&target(), &request).unwrap();
    assert!(imported.warnings.contains(&Warning::AgainstConvention { blocks: vec![1, 2] }));
    assert!(imported.warnings.contains(&Warning::Ceiling { blocks: vec![1, 2] }));
    let caps = imported.file.caps.caps();
    assert_eq!((caps[0].cap.bound().lo(), caps[0].cap.bound().hi()), (f32::NEG_INFINITY, -2.5));
    assert!(caps[0].cap.axis().values()[1] < 0.0);
    // The id's percentile is not on the Assistant's side then.
    assert_eq!(imported.file.origin.get("import.percentile_from_role_end"), None);
}

/// The raw projection of the default vector on this axis is negative, and of all roles more so.
#[test]
fn raw_projections_do_not_decide() {
    let axis = [[0.0, 1.0, 0.0]; 4];
    let evidence = evidence(axis);
    for (rows, sign) in [(axis, 1f32), (negated(axis), -1.0)] {
        let request = Request { evidence: Some(&evidence), ..Request::default() };
        let imported = open(stacked(&rows)).caps(&target(), &request).unwrap();
        for entry in imported.file.caps.caps() {
            assert_eq!(entry.cap.axis().values()[1], 1.0, "always to the Assistant");
        }
        assert_eq!(imported.file.origin.get("import.evidence_cosines"), Some(&vec![sign; 4].into()));
    }
}

#[test]
fn each_block_is_turned_by_its_own_evidence() {
    let mut rows = [[0.0, 1.0, 0.5]; 4];
    let evidence = evidence(rows);
    rows[2] = rows[2].map(|value| -value);
    let request = Request { evidence: Some(&evidence), ..Request::default() };
    let imported = open(stacked(&rows)).caps(&target(), &request).unwrap();
    assert!(imported.warnings.contains(&Warning::MixedDirections { from_assistant: vec![2] }));
    assert!(imported.file.caps.caps().iter().all(|entry| entry.cap.axis().values()[1] > 0.0));
}

#[test]
fn the_callers_word_is_taken_without_evidence_and_compared_with_it() {
    let source = open(stacked(&STORED));
    let said = |points_to| Request { points_to: Some(points_to), ..Request::default() };
    let roles = source.caps(&target(), &said(PointsTo::Roles)).unwrap();
    assert_eq!(roles.warnings, []);
    assert!(roles.file.caps.caps().iter().all(|entry| entry.cap.axis().values()[1] > 0.0));
    assert_eq!(roles.file.origin.get("import.orientation_by"), Some(&"the caller's word".into()));
    let assistant = source.caps(&target(), &said(PointsTo::Assistant)).unwrap();
    assert!(assistant.file.caps.caps().iter().all(|entry| entry.cap.axis().values()[1] < 0.0));

    let evidence = evidence(negated(STORED));
    let agreed = Request { evidence: Some(&evidence), ..said(PointsTo::Roles) };
    assert_eq!(source.caps(&target(), &agreed).unwrap().warnings, []);
    let contradicted = Request { evidence: Some(&evidence), ..said(PointsTo::Assistant) };
    let error = source.caps(&target(), &contradicted).unwrap_err().to_string();
    assert_contains(&error, &["orientation", "point to the Assistant, as was said", "blocks 0-3"]);
}

#[test]
fn evidence_that_does_not_decide_is_refused() {
    let evidence = evidence([[1.0, 0.0, 0.0]; 4]);
    let request = Request { evidence: Some(&evidence), ..Request::default() };
    let error = open(stacked(&[[0.05, 1.0, 0.0]; 4])).caps(&target(), &request).unwrap_err().to_string();
    assert_contains(&error, &["default and role vectors, block 0", "cosine of at least 0.1", "0.050"]);
    let same = Evidence::new(&with_offset(STORED), &[with_offset(STORED)]).unwrap();
    let request = Request { evidence: Some(&same), ..Request::default() };
    let error = open(stacked(&STORED)).caps(&target(), &request).unwrap_err().to_string();
    assert_contains(&error, &["block 0", "cosine"]);
}

#[test]
fn a_configuration_with_other_names_needs_evidence_or_the_callers_word() {
    let vector = P::Tensor(Tensor::whole("FloatStorage", "0", &[3]));
    let value = dict([
        ("vectors", dict([("mine", dict([("vector", vector), ("layer", P::Int(1))]))])),
        (
            "experiments",
            P::List(vec![dict([
                ("id", text("e")),
                ("interventions", P::List(vec![dict([("vector", text("mine")), ("cap", P::Float(2.0))])])),
            ])]),
        ),
    ]);
    let source = open(torch(&value, &[("0", f32s(&STORED[1]))]));
    let error = source.caps(&target(), &Request::default()).unwrap_err().to_string();
    assert_contains(&error, &["orientation", "\"mine\"", "default vector and role vectors"]);
    let evidence = evidence(negated(STORED));
    for request in [
        Request { evidence: Some(&evidence), ..Request::default() },
        Request { points_to: Some(PointsTo::Roles), ..Request::default() },
    ] {
        let imported = source.caps(&target(), &request).unwrap();
        assert_eq!(imported.file.caps.caps()[0].cap.bound().lo(), -2.0);
    }
}

#[test]
fn an_axis_can_be_computed_from_default_and_roles() {
    let evidence = evidence([[0.0, 3.0, 4.0]; 4]);
    let imported = evidence.axes(&target(), None).unwrap();
    assert_eq!(imported.file.caps.caps().len(), 4);
    let axis = imported.file.caps.caps()[3].cap.axis();
    assert_eq!((axis.values(), axis.norm()), (&[0.0f32, 0.6, 0.8][..], Some(5.0)));
    assert_eq!(imported.file.origin.get("import.roles"), Some(&2u64.into()));
    let part = evidence.axes(&target(), Some(1..3)).unwrap();
    assert_eq!(part.file.caps.blocks().into_keys().collect::<Vec<_>>(), [1, 2]);
    assert_contains(&evidence.axes(&target(), Some(9..10)).unwrap_err().to_string(), &["blocks", "9 to 9"]);
    let mut other = target();
    other.model.blocks = 5;
    assert_contains(
        &evidence.axes(&other, None).unwrap_err().to_string(),
        &["number of layers", "expected 5"],
    );
}

#[test]
fn files_of_other_models_are_no_evidence() {
    let good = with_offset(STORED);
    let none = Evidence::new(&good, &[]).unwrap_err().to_string();
    assert_contains(&none, &["role vectors", "none"]);
    let narrow =
        open(torch(&P::Tensor(Tensor::whole("FloatStorage", "0", &[4, 2])), &[("0", f32s(&[1.0; 8]))]));
    assert_contains(
        &Evidence::new(&good, &[narrow]).unwrap_err().to_string(),
        &["4 layers of width 3", "width 2"],
    );
    let short =
        open(torch(&P::Tensor(Tensor::whole("FloatStorage", "0", &[2, 3])), &[("0", f32s(&[1.0; 6]))]));
    assert_contains(&Evidence::new(&good, &[short]).unwrap_err().to_string(), &["found 2 layers"]);
    let mut rows = STORED;
    rows[1][2] = f32::INFINITY;
    let error = Evidence::new(&open(stacked(&rows)), &[good]).unwrap_err().to_string();
    assert_contains(&error, &["layer 1", "inf at index 2 of 3"]);
    let single = open(torch(&P::Tensor(Tensor::whole("FloatStorage", "0", &[3])), &[("0", f32s(&[1.0; 3]))]));
    assert_contains(&Evidence::new(&single, &[]).unwrap_err().to_string(), &["a single vector"]);
    assert_contains(&Evidence::new(&open(config()), &[]).unwrap_err().to_string(), &["capping_config.pt"]);
}
