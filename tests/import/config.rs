//! `capping_config.pt`: sign, bound, blocks and order of an experiment.

use axiscap::file::gguf::Value;
use axiscap::import::{Format, PointsTo, Request, Warning};
use axiscap::{Bound, UNIT_TOLERANCE};

use crate::support::{P, Tensor, bf16s, config, config_storages, config_value, dict, text, torch};
use crate::{assert_contains, open, refused, target};

fn request(experiment: &str) -> Request<'_> {
    Request { experiment: Some(experiment), ..Request::default() }
}

#[test]
fn an_upper_bound_on_a_role_axis_is_a_floor_on_the_assistant_axis() {
    let imported = open(config()).caps(&target(), &request("layers_1:3-p0.25")).unwrap();
    let file = imported.file;
    let caps = file.caps.caps();
    assert_eq!(caps.iter().map(|entry| entry.block).collect::<Vec<_>>(), [1, 2]);
    let bounds: Vec<_> = caps.iter().map(|entry| entry.cap.bound()).collect();
    assert_eq!(bounds, [Bound::floor(2.5).unwrap(), Bound::floor(-1.25).unwrap()]);
    for (entry, layer) in caps.iter().zip([1.0f64, 2.0]) {
        let norm = (4.0 + layer).hypot(3.0);
        let expected = [-0.0, ((4.0 + layer) / norm) as f32, (-3.0 / norm) as f32];
        assert_eq!(entry.cap.axis().values(), expected);
        assert_eq!(entry.cap.axis().norm(), Some(norm as f32));
        assert_eq!((entry.cap.name(), entry.cap.strength()), (Some("assistant"), 1.0));
    }
    assert_eq!(file.orientation.as_deref(), Some("more Assistant"));
    assert!(
        matches!(imported.warnings.as_slice(), [Warning::ByConvention { .. }]),
        "{:?}",
        imported.warnings
    );
    assert!(imported.warnings[0].to_string().contains("by convention"));

    let origin = |key: &str| file.origin.get(key).unwrap_or_else(|| panic!("{key}"));
    assert_eq!(origin("import.experiment_layers"), &Value::from("1:3, half open: blocks 1 to 2"));
    assert_eq!(origin("import.percentile_on_stored_vectors"), &Value::from(25f32));
    assert_eq!(origin("import.percentile_from_role_end"), &Value::from(75f32));
    assert_eq!(origin("import.blocks"), &Value::from("1-2"));
    assert_eq!(origin("import.element_types"), &Value::from(vec!["bfloat16".to_owned()]));
    let Value::String(by) = origin("import.orientation_by") else { panic!() };
    assert!(by.starts_with("convention: "), "{by}");
    let Value::String(bounds) = origin("import.bounds") else { panic!() };
    assert!(bounds.contains("here floors on the Assistant axis"), "{bounds}");

    // The whole file can be written and read.
    let again = axiscap::file::CapFile::from_bytes(&file.to_bytes().unwrap()).unwrap();
    assert_eq!(again, file);
}

/// The definition of the reference, `h -= max(<h, w> - cap, 0) w` for the file's unit vector w, on both signs.
#[test]
fn the_operation_is_the_references_whatever_the_sign_is_taken_to_be() {
    let source = open(config());
    let stored = |layer: f64| {
        let norm = (4.0 + layer).hypot(3.0);
        [0.0, (-4.0 - layer) / norm, 3.0 / norm]
    };
    for points_to in [None, Some(PointsTo::Roles), Some(PointsTo::Assistant)] {
        let request = Request { points_to, ..request("layers_1:3-p0.25") };
        let imported = source.caps(&target(), &request).unwrap();
        for (entry, (layer, cap)) in imported.file.caps.caps().iter().zip([(1.0, -2.5), (2.0, 1.25)]) {
            for h in [[1.0, 2.0, 3.0], [0.5, -7.0, 2.0], [9.0, 0.25, -1.0f64]] {
                let dot = |a: [f64; 3], b: [f64; 3]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
                let w = stored(layer);
                let excess = (dot(h, w) - cap).max(0.0);
                let v: Vec<f64> = entry.cap.axis().values().iter().map(|&v| v.into()).collect();
                let v = [v[0], v[1], v[2]];
                let (p, bound) = (dot(h, v), entry.cap.bound());
                let moved = p.clamp(bound.lo().into(), bound.hi().into()) - p;
                for index in 0..3 {
                    let (reference, ours) = (h[index] - excess * w[index], h[index] + moved * v[index]);
                    assert!((reference - ours).abs() < UNIT_TOLERANCE * 1e-3, "{reference} {ours}");
                }
            }
        }
        let ceilings = imported.warnings.iter().any(|warning| matches!(warning, Warning::Ceiling { .. }));
        assert_eq!(ceilings, points_to == Some(PointsTo::Assistant));
    }
}

#[test]
fn interventions_keep_their_order_and_those_without_a_cap_are_left_out() {
    let source = open(config());
    let twice = source.caps(&target(), &request("twice")).unwrap();
    let bounds: Vec<_> =
        twice.file.caps.caps().iter().map(|entry| (entry.block, entry.cap.bound().lo())).collect();
    assert_eq!(bounds, [(3, -1.0), (3, -0.5)]);
    assert_eq!(twice.file.origin.get("import.percentile_from_role_end"), None);

    let without = source.caps(&target(), &request("layers_1:3-p0.5")).unwrap();
    assert_eq!(without.file.caps.caps().len(), 2);
    assert!(without.warnings.contains(&Warning::WithoutCap { count: 1 }));
}

#[test]
fn a_part_of_the_blocks_can_be_taken() {
    let request = Request { blocks: Some(2..9), ..request("layers_1:3-p0.25") };
    let imported = open(config()).caps(&target(), &request).unwrap();
    assert_eq!(imported.file.caps.blocks().into_keys().collect::<Vec<_>>(), [2]);
    let request = Request { blocks: Some(3..4), ..request };
    let error = open(config()).caps(&target(), &request).unwrap_err().to_string();
    assert_contains(&error, &["blocks", "3 to 3"]);
}

#[test]
fn the_list_shows_experiments_and_vectors() {
    let description = open(config()).describe().unwrap();
    assert_eq!(description.format, Format::CappingConfig);
    let experiments: Vec<_> = description.experiments.iter().map(|line| (&*line.id, &*line.layers)).collect();
    assert_eq!(
        experiments,
        [("layers_1:3-p0.25", &[1, 2][..]), ("layers_1:3-p0.5", &[1, 2]), ("twice", &[3, 3])]
    );
    assert_eq!(description.experiments[0].upper_bounds, [-2.5, 1.25]);
    let vector = &description.vectors[2];
    assert_eq!((vector.layer, vector.width, vector.element_type), (Some(2), 3, "bfloat16"));
    assert_eq!(vector.name.as_deref(), Some("layer_2/contrast_role_pos3_default1"));
    assert_eq!(vector.norm, 6f64.hypot(3.0));
}

#[test]
fn requests_that_the_file_cannot_serve_are_refused() {
    let source = open(config());
    let error = |request: &Request<'_>| source.caps(&target(), request).unwrap_err().to_string();
    assert_contains(&error(&Request::default()), &["experiments", "3 of them", "by its id"]);
    assert_contains(&error(&request("layers_1:3-p0.75")), &["layers_1:3-p0.75", "3 others"]);
    let mut other = target();
    other.width = 4;
    let error = source.caps(&other, &request("twice")).unwrap_err().to_string();
    assert_contains(&error, &["block 0", "width 3, not 4"]);
    // Whichever experiment is taken.
    other.width = 3;
    other.model.blocks = 3;
    let error = source.caps(&other, &request("layers_1:3-p0.25")).unwrap_err().to_string();
    assert_contains(&error, &["a block of the model, from 0 to 2", "found 3"]);
    other.model.blocks = 5;
    let imported = source.caps(&other, &request("twice")).unwrap();
    assert!(imported.warnings.contains(&Warning::FewerLayers { file: 4, model: 5 }));
}

/// Changes a value of the good file's dict.
fn changed(change: impl FnOnce(&mut Vec<(P, P)>)) -> Vec<u8> {
    let P::Dict(mut entries) = config_value() else { unreachable!() };
    change(&mut entries);
    torch(&P::Dict(entries), &config_storages())
}

fn vector(name: &str, layer: P, vector: P) -> P {
    dict([(name, dict([("vector", vector), ("layer", layer)]))])
}

#[test]
fn a_wrong_field_is_named() {
    let tensor = || P::Tensor(Tensor::whole("BFloat16Storage", "0", &[3]));
    let vectors = |value: P| changed(|entries| entries[0].1 = value);
    assert_contains(&refused(vectors(P::None)), &["vectors", "expected a dict, found None"]);
    assert_contains(&refused(vectors(vector("v", text("1"), tensor()))), &["vectors[\"v\"].layer"]);
    assert_contains(&refused(vectors(vector("v", P::Int(-1), tensor()))), &["vectors[\"v\"].layer"]);
    assert_contains(&refused(vectors(vector("v", P::Int(1), text("x")))), &["vectors[\"v\"].vector"]);
    let square = P::Tensor(Tensor {
        size: vec![1, 1, 3],
        stride: vec![3, 3, 1],
        ..Tensor::whole("BFloat16Storage", "0", &[3])
    });
    assert_contains(&refused(vectors(vector("v", P::Int(1), square))), &["shape [width]", "[1, 1, 3]"]);
    assert_contains(&refused(vectors(vector("", P::Int(1), tensor()))), &["1 to 256 bytes"]);

    let experiments = |value: P| changed(|entries| entries[1].1 = value);
    assert_contains(&refused(experiments(P::Int(3))), &["experiments", "a list", "an int"]);
    let one = |id: P, interventions: P| {
        experiments(P::List(vec![dict([("id", id), ("interventions", interventions)])]))
    };
    assert_contains(&refused(one(P::Int(1), P::List(vec![]))), &["experiments[0].id", "an int"]);
    assert_contains(&refused(one(text("a"), P::None)), &["experiments[0].interventions", "None"]);
    let cap =
        |vector: &str, cap: P| one(text("a"), P::List(vec![dict([("vector", text(vector)), ("cap", cap)])]));
    assert_contains(&refused(cap("x", P::Float(1.0))), &["interventions[0].vector", "\"x\""]);
    let known = "layer_0/contrast_role_pos3_default1";
    for bad in [P::Float(f64::NAN), P::Float(f64::INFINITY), text("1"), P::None] {
        assert_contains(
            &refused(cap(known, bad)),
            &["experiments[0].interventions[0].cap", "a finite number"],
        );
    }
    // An int is a number.
    let imported = open(cap(known, P::Int(-3))).caps(&target(), &Request::default()).unwrap();
    assert_eq!(imported.file.caps.caps()[0].cap.bound(), Bound::floor(3.0).unwrap());
    // A number that f32 does not hold is not rounded to an infinity.
    let error =
        open(cap(known, P::Float(-1e300))).caps(&target(), &Request::default()).unwrap_err().to_string();
    assert_contains(&error, &["cap: expected a number that f32 holds"]);
}

#[test]
fn an_id_that_names_other_layers_gives_a_warning() {
    let file = changed(|entries| {
        let P::List(experiments) = &mut entries[1].1 else { unreachable!() };
        let P::Dict(experiment) = &mut experiments[0] else { unreachable!() };
        experiment[0].1 = text("layers_1:4-p0.25");
    });
    let imported = open(file).caps(&target(), &request("layers_1:4-p0.25")).unwrap();
    let expected = Warning::OtherLayers { experiment: "layers_1:4-p0.25".into(), blocks: vec![1, 2] };
    assert!(imported.warnings.contains(&expected), "{:?}", imported.warnings);
    assert!(expected.to_string().contains("caps the blocks 1-2"), "{expected}");
}

#[test]
fn vectors_without_a_direction_are_refused_with_their_layer() {
    for (values, words) in [([0.0; 3], "zeros only"), ([0.0, f32::NAN, 1.0], "NaN at index 1")] {
        let mut storages = config_storages();
        storages[2].1 = bf16s(&values);
        let source = open(torch(&config_value(), &storages));
        let error = source.caps(&target(), &request("layers_1:3-p0.25")).unwrap_err().to_string();
        assert_contains(&error, &["vector of layer 2", words]);
        assert!(source.caps(&target(), &request("twice")).is_ok());
    }
}
