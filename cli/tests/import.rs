//! `axiscap import` and `export`: caps and axes of other tools, on the real model.

mod support;
/// Writes files of PyTorch byte by byte.
#[path = "../../tests/import/support.rs"]
#[allow(dead_code, unreachable_pub)]
mod torch;

use std::fs;
use std::path::Path;

use axiscap::Bound;
use axiscap::file::CapFile;
use axiscap_testing::numbers::Random;
use support::{arg, caps, fail, folder, json, misuse, model, notes, program, succeed};
use torch::{P, Tensor, dict, f32s, text};

const WIDTH: usize = 576;
const BLOCKS: usize = 30;

fn directions(seed: u64, count: usize) -> Vec<f32> {
    let mut random = Random(seed);
    (0..count * WIDTH).map(|_| random.signed()).collect()
}

/// Writes a configuration as the method's authors release it: a cap on the blocks 21 and 22, in two experiments.
fn config(path: &Path) {
    let values = directions(5, 2);
    let name = |index: usize| text(&format!("layer_{}/contrast_role_pos3_default1", 21 + index));
    let keys = ["0", "1"];
    let vector = |index: usize| {
        let tensor = P::Tensor(Tensor::whole("FloatStorage", keys[index], &[WIDTH as i32]));
        (name(index), dict([("vector", tensor), ("layer", P::Int(21 + index as i32))]))
    };
    let cap = |index, cap| dict([("vector", name(index)), ("cap", P::Float(cap))]);
    let experiment = |id: &str, bound: f64| {
        dict([("id", text(id)), ("interventions", P::List(vec![cap(0, bound), cap(1, bound)]))])
    };
    let value = dict([
        ("vectors", P::Dict(vec![vector(0), vector(1)])),
        (
            "experiments",
            P::List(vec![experiment("layers_21:23-p0.25", -2.0), experiment("layers_21:23-p0.5", -9.0)]),
        ),
    ]);
    let (first, second) = values.split_at(WIDTH);
    fs::write(path, torch::torch(&value, &[("0", f32s(first)), ("1", f32s(second))])).unwrap();
}

/// Writes one vector per block, as assistant_axis.pt, default_vector.pt and role vectors are.
fn stacked(path: &Path, values: &[f32]) {
    let tensor = P::Tensor(Tensor::whole("FloatStorage", "0", &[BLOCKS as i32, WIDTH as i32]));
    fs::write(path, torch::torch(&tensor, &[("0", f32s(values))])).unwrap();
}

#[test]
fn a_released_configuration_is_listed_imported_and_holds() {
    let folder = folder();
    let at = |name: &str| folder.path().join(name);
    let (pt, out) = (at("capping_config.pt"), at("c.gguf"));
    config(&pt);
    let table = succeed(program(&["import", arg(&pt), "--list"], ""));
    for part in ["capping_config.pt", "layers_21:23-p0.25", "21-22", "float32", "contrast_role_pos3"] {
        assert!(table.contains(part), "{part}: {table}");
    }
    let listed = json(program(&["import", arg(&pt), "--list", "--json"], ""));
    assert_eq!(listed["experiments"][1]["upper_bounds"], serde_json::json!([-9.0, -9.0]));

    let import = |more: &[&str]| {
        program(&[&["import", arg(&pt), "--model", arg(&model()), "--out", arg(&out)], more].concat(), "")
    };
    fail(import(&[]), &["experiment", "2 of them", "--list"]);
    fail(import(&["--experiment", "p0.1"]), &["p0.1", "capping_config.pt"]);
    assert!(!out.exists());
    let done = import(&["--experiment", "layers_21:23-p0.25", "--json"]);
    assert!(notes(&done).contains("by convention"), "{}", notes(&done));
    let report = json(done);
    assert_eq!(report["caps"][0]["floor"], 2.0);
    assert_eq!((&report["caps"][0]["block"], &report["has_bounds"]), (&21.into(), &true.into()));
    assert!(report["model"]["norm_digest"].is_string(), "{report}");
    let run = json(program(
        &[
            "run",
            "--model",
            arg(&model()),
            "--caps",
            arg(&out),
            "-p",
            "Hi",
            "-n",
            "8",
            "--temp",
            "0",
            "--json",
        ],
        "",
    ));
    for cap in run["caps"].as_array().unwrap() {
        assert!(cap["min_after"].as_f64().unwrap() > 2.0 - 1e-2, "{cap}");
    }
    let shown = succeed(program(&["inspect", arg(&out)], ""));
    assert!(shown.contains("layers_21:23-p0.25") && shown.contains("half open"), "{shown}");
    let one = json(import(&["--experiment", "layers_21:23-p0.5", "--layers", "22", "--json"]));
    assert_eq!((one["caps"].as_array().unwrap().len(), &one["caps"][0]["floor"]), (1, &9.0.into()));
}

#[test]
fn default_and_role_vectors_decide_what_an_axis_points_to() {
    let folder = folder();
    let at = |name: &str| folder.path().join(name);
    let axis = directions(3, BLOCKS);
    let offset = directions(4, BLOCKS);
    let moved = |by: f32| -> Vec<f32> { offset.iter().zip(&axis).map(|(o, a)| 50.0 * o + by * a).collect() };
    // The axis in the file points to the roles, whatever its name says.
    stacked(&at("assistant_axis.pt"), &axis);
    stacked(&at("default.pt"), &moved(-1.0));
    stacked(&at("pirate.pt"), &moved(2.0));
    stacked(&at("tree.pt"), &moved(1.0));
    let (out, model) = (at("a.gguf"), model());
    let (default, pirate, tree) = (at("default.pt"), at("pirate.pt"), at("tree.pt"));
    let evidence =
        ["--default-vector", arg(&default), "--role-vector", arg(&pirate), "--role-vector", arg(&tree)];
    let target = ["--model", arg(&model), "--out", arg(&out), "--json"];
    let file = at("assistant_axis.pt");
    let import = |more: &[&str]| program(&[&["import"], more, &target].concat(), "");
    let first = |file: &Path| CapFile::read(file).unwrap().caps.caps()[0].cap.axis().values()[0];

    let report = json(import(&[&[arg(&file)][..], &evidence].concat()));
    assert!(report["orientation_by"].as_str().unwrap().contains("evidence"), "{report}");
    assert_eq!(first(&out).is_sign_negative(), axis[0].is_sign_positive());
    assert_eq!((report["caps"].as_array().unwrap().len(), &report["has_bounds"]), (BLOCKS, &false.into()));
    // Without a file the axis is their difference, which is the same one here.
    let turned = CapFile::read(&out).unwrap();
    json(import(&evidence));
    let own = CapFile::read(&out).unwrap();
    for (a, b) in turned.caps.caps().iter().zip(own.caps.caps()) {
        assert!(a.cap.axis().cosine(b.cap.axis()).unwrap() > 0.999_99, "block {}", a.block);
    }
    let done = import(&[arg(&file)]);
    assert!(notes(&done).contains("by convention"));
    json(done);
    assert_eq!(first(&out).is_sign_negative(), axis[0].is_sign_negative());
    fail(import(&[&[arg(&file), "--points-to", "assistant"][..], &evidence].concat()), &["orientation"]);
    // Several files after one option, and a folder.
    let roles = at("roles");
    fs::create_dir(&roles).unwrap();
    let folder_of_roles = ["--default-vector", arg(&default), "--role-vectors", arg(&roles)];
    fail(import(&folder_of_roles), &["roles", ".pt"]);
    for role in ["pirate.pt", "tree.pt"] {
        fs::copy(at(role), roles.join(role)).unwrap();
    }
    let together = ["--default-vector", arg(&default), "--role-vector", arg(&pirate), arg(&tree)];
    for given in [&folder_of_roles[..], &together] {
        json(import(given));
        assert_eq!(CapFile::read(&out).unwrap().caps, own.caps);
    }
    misuse(import(&[arg(&file), "--role-vector", arg(&pirate)]), &["--default-vector"]);
    misuse(import(&[]), &["FILE"]);
}

#[test]
fn caps_are_exported_and_read_again() {
    let folder = folder();
    let at = |name: &str| folder.path().join(name);
    let file = at("c.gguf");
    caps(&file, &[(20, 1, Bound::floor(0.5).unwrap(), 1.0), (21, 2, Bound::NONE, 1.0)]);
    let export =
        |out: &Path, more: &[&str]| program(&[&["export", arg(&file), "--out", arg(out)], more].concat(), "");
    let (tensors, vector) = (at("c.safetensors"), at("v.gguf"));
    succeed(export(&tensors, &[]));
    let done = export(&vector, &[]);
    assert!(notes(&done).contains("no place for bounds"), "{}", notes(&done));
    succeed(done);
    fail(export(&at("c.bin"), &[]), &["--to", "c.bin"]);
    let (axes, model) = (at("a.gguf"), model());
    let original = CapFile::read(&file).unwrap();
    for source in [&tensors, &vector] {
        let import =
            ["import", arg(source), "--model", arg(&model), "--out", arg(&axes), "--points-to", "assistant"];
        succeed(program(&import, ""));
        let read = CapFile::read(&axes).unwrap();
        for (a, b) in read.caps.caps().iter().zip(original.caps.caps()) {
            assert_eq!(
                (a.block, a.cap.axis().values()),
                (b.block, b.cap.axis().values()),
                "{}",
                source.display()
            );
        }
        let table = succeed(program(&["import", arg(source), "--list"], ""));
        assert!(table.contains("576"), "{table}");
    }
}

#[test]
fn what_cannot_be_imported_is_refused_and_nothing_is_written() {
    let folder = folder();
    let at = |name: &str| folder.path().join(name);
    let (out, model) = (at("out.gguf"), model());
    let import =
        |file: &Path| program(&["import", arg(file), "--model", arg(&model), "--out", arg(&out)], "");
    fs::write(at("text.pt"), "no file of torch").unwrap();
    fail(import(&at("text.pt")), &["text.pt", "expected", "found"]);
    fail(import(&at("absent.pt")), &["absent.pt", "No such file"]);
    let tensor = P::Tensor(Tensor::whole("FloatStorage", "0", &[BLOCKS as i32, 4]));
    fs::write(at("narrow.pt"), torch::torch(&tensor, &[("0", f32s(&[1.0; 4 * BLOCKS]))])).unwrap();
    fail(import(&at("narrow.pt")), &["narrow.pt", "576", "4"]);
    let code = [torch::global("os", "system"), b"X\x04\0\0\0true\x85R".to_vec()].concat();
    fs::write(at("code.pt"), torch::torch_of(torch::raw_pickle(&code), &[])).unwrap();
    fail(import(&at("code.pt")), &["code.pt", "os.system"]);
    caps(&at("caps.gguf"), &[(3, 1, Bound::NONE, 1.0)]);
    fail(import(&at("caps.gguf")), &["caps.gguf", "cap file already"]);
    #[cfg(target_os = "linux")]
    fail(import(Path::new("/dev/zero")), &["/dev/zero"]);
    assert!(!out.exists());
    let file = at("caps.gguf");
    let same = ["import", arg(&file), "--model", arg(&model), "--out", arg(&file)];
    fail(program(&same, ""), &["one file"]);
}
