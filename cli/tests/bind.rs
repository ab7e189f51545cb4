//! `axiscap bind`: which model a cap file is for, by digests of the model's norm weights.

mod support;

use std::collections::HashMap;
use std::fs::{self, File};
use std::path::Path;
use std::process::Output;

use axiscap::Bound;
use axiscap::file::{CapFile, NormDigest};
use sha2::{Digest, Sha256};
use support::gguf::Source;
use support::{
    BLOCKS, WIDTH, arg, axiscap, caps, caps_for, fail, folder, json, model, notes, program, succeed,
};

/// The model's name in its metadata.
const NAME: &str = "Smollm2 135M 8k Lc100K Mix1 Ep2";

fn bind(args: &[&str]) -> Output {
    axiscap("bind", args)
}

fn bind_to(model: &Path, args: &[&str]) -> Output {
    program(&[&["bind", "--model", arg(model)], args].concat(), "")
}

/// Writes caps that name no model.
fn plain(path: &Path) {
    caps(path, &[(20, 1, Bound::floor(0.5).unwrap(), 1.0), (3, 2, Bound::NONE, 0.25)]);
}

/// A reader of the parts of a GGUF, which is none of this project's.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: u64) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(count as usize);
        self.0 = rest;
        taken
    }

    fn number(&mut self, bytes: u64) -> u64 {
        self.take(bytes).iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte))
    }

    fn text(&mut self) -> String {
        let length = self.number(8);
        String::from_utf8(self.take(length).to_vec()).unwrap()
    }

    fn skip_value(&mut self, kind: u64) {
        match kind {
            0 | 1 | 7 => drop(self.take(1)),
            2 | 3 => drop(self.take(2)),
            4..=6 => drop(self.take(4)),
            8 => drop(self.text()),
            9 => {
                let (kind, count) = (self.number(4), self.number(8));
                (0..count).for_each(|_| self.skip_value(kind));
            }
            _ => drop(self.take(8)),
        }
    }
}

/// Returns the digests of the model's norms, from its bytes.
fn digests() -> Vec<NormDigest> {
    let bytes = fs::read(model()).unwrap();
    let mut reader = Reader(&bytes[8..]);
    let (tensors, values) = (reader.number(8), reader.number(8));
    for _ in 0..values {
        reader.text();
        let kind = reader.number(4);
        reader.skip_value(kind);
    }
    let mut places = HashMap::new();
    for _ in 0..tensors {
        let name = reader.text();
        let dimensions = reader.number(4);
        let extents: Vec<_> = (0..dimensions).map(|_| reader.number(8)).collect();
        places.insert(name, (extents, reader.number(4), reader.number(8) as usize));
    }
    let data = (bytes.len() - reader.0.len()).next_multiple_of(32);
    let digest = |name: String| {
        let (extents, kind, offset) = &places[&name];
        assert_eq!((extents.as_slice(), *kind), (&[WIDTH as u64][..], 0), "a vector of F32: {name}");
        let sha256 = Sha256::digest(&bytes[data + offset..][..4 * WIDTH]).into();
        NormDigest { tensor: name, sha256 }
    };
    let blocks = (0..BLOCKS).map(|block| format!("blk.{block}.attn_norm.weight"));
    std::iter::once("output_norm.weight".to_owned()).chain(blocks).map(digest).collect()
}

#[test]
fn a_file_is_bound_in_place_or_written_elsewhere_and_its_caps_stay() {
    let folder = folder();
    let (file, out) = (folder.path().join("c.gguf"), folder.path().join("o.gguf"));
    plain(&file);
    let before = CapFile::read(&file).unwrap();
    let report = json(bind(&["--caps", arg(&file), "--out", arg(&out), "--json"]));
    assert_eq!((&report["changed"], &report["out"]), (&true.into(), &arg(&out).into()));
    assert_eq!(report["warnings"], serde_json::json!([]));
    assert_eq!(CapFile::read(&file).unwrap(), before, "with --out the file stays");

    let text = succeed(bind(&["--caps", arg(&file)]));
    assert!(
        text.contains("c.gguf bound to llama") && text.contains("output_norm.weight, and 30 more"),
        "{text}"
    );
    assert_eq!(fs::read(&file).unwrap(), fs::read(&out).unwrap());
    let after = CapFile::read(&file).unwrap();
    assert_eq!(after.caps, before.caps);
    assert_eq!((after.model.name.as_deref(), after.model.file_type), (Some(NAME), Some(3)));
    let expected = digests();
    assert_eq!(expected.len(), 1 + BLOCKS);
    assert_eq!(after.model.norms, expected);

    let digest = expected[0].to_string();
    assert_eq!(report["model"]["norm_digest"], digest.as_str());
    assert_eq!(report["model"]["norms"][30]["tensor"], "blk.29.attn_norm.weight");
    let inspected = json(program(&["inspect", "--json", arg(&file)], ""));
    assert_eq!(inspected["model"], report["model"]);
    assert!(succeed(program(&["inspect", arg(&file)], "")).contains(&digest));

    // A second time changes nothing.
    let (bytes, time) = (fs::read(&file).unwrap(), fs::metadata(&file).unwrap().modified().unwrap());
    let again = json(bind(&["--caps", arg(&file), "--json"]));
    assert_eq!((&again["changed"], &again["model"]), (&false.into(), &report["model"]));
    assert_eq!((fs::read(&file).unwrap(), fs::metadata(&file).unwrap().modified().unwrap()), (bytes, time));
    assert!(succeed(bind(&["--caps", arg(&file)])).contains("was bound already to llama"));
    let again = json(bind(&["--caps", arg(&file), "--out", arg(&out), "--json"]));
    assert_eq!((&again["changed"], fs::read(&out).unwrap()), (&false.into(), fs::read(&file).unwrap()));
}

#[test]
fn a_file_of_axes_is_bound_too() {
    let folder = folder();
    let file = folder.path().join("axes.gguf");
    caps(&file, &[(20, 1, Bound::NONE, 1.0)]);
    succeed(bind(&["--caps", arg(&file)]));
    let axes = CapFile::read(&file).unwrap();
    assert!(axes.is_unbounded() && axes.model.norms.len() == 1 + BLOCKS);
}

#[test]
fn a_split_model_and_one_with_other_metadata_have_the_digests_of_the_whole() {
    let folder = folder();
    let at = |name: &str| folder.path().join(name);
    let (file, other) = (at("c.gguf"), at("other.gguf"));
    plain(&file);
    succeed(bind(&["--caps", arg(&file)]));
    let source = Source::open();
    for part in source.split(folder.path(), "m", &[90, 100]) {
        let report = json(bind_to(&part, &["--caps", arg(&file), "--json"]));
        assert_eq!(
            (&report["changed"], report["model"]["norms"].as_array().unwrap().len()),
            (&false.into(), 31)
        );
    }
    // A quantisation says so in its metadata, and may have another name.
    source.with_metadata(&other, |part| {
        part.set("general.name", &"Another name".into());
        part.set("general.file_type", &15u32.into());
    });
    let output = bind_to(&other, &["--caps", arg(&file), "--out", arg(&at("o.gguf")), "--json"]);
    let errors = notes(&output);
    assert!(
        errors.contains("made for weights of file type 3") && !errors.contains("Another name"),
        "{errors}"
    );
    let report = json(output);
    assert_eq!(report["warnings"].as_array().unwrap().len(), 1, "{report}");
    let bound = CapFile::read(&at("o.gguf")).unwrap();
    assert_eq!(bound.model.norms, digests());
    assert_eq!(bound.model.name.as_deref(), Some("Another name"));
    assert_eq!(bound.model.file_type, Some(3), "the quantisation that the floors were measured on");
}

#[test]
fn caps_of_another_model_are_bound_only_with_force_and_warned_of_when_they_run() {
    let folder = folder();
    let file = folder.path().join("c.gguf");
    plain(&file);
    succeed(bind(&["--caps", arg(&file)]));
    let bound = CapFile::read(&file).unwrap();
    let refused = |change: &dyn Fn(&mut Vec<NormDigest>)| {
        let mut other = bound.clone();
        change(&mut other.model.norms);
        other.write(&file).unwrap();
        let bytes = fs::read(&file).unwrap();
        fail(bind(&["--caps", arg(&file)]), &["c.gguf", NAME, "other norm weights", "--force"]);
        assert_eq!(fs::read(&file).unwrap(), bytes);
    };
    refused(&|norms| norms[7].sha256[31] ^= 1);
    let args = ["--prompt", "Hello", "--temp", "0", "-n", "1", "-c", "64", "--caps", arg(&file)];
    let errors = notes(&axiscap("run", &args));
    assert!(
        errors.contains("c.gguf: made for a model with other norm weights (blk.6.attn_norm.weight"),
        "{errors}"
    );
    // Not one tensor in common: nothing says that it is the same model.
    refused(&|norms| norms.iter_mut().for_each(|norm| norm.tensor.insert(0, 'x')));

    let output = bind(&["--caps", arg(&file), "--force", "--json"]);
    assert_eq!(json(output)["changed"], true);
    assert_eq!(CapFile::read(&file).unwrap(), bound);
    assert!(!notes(&axiscap("run", &args)).contains("norm"));
}

#[test]
fn what_cannot_be_bound_is_refused_and_stays() {
    let folder = folder();
    let at = |name: &str| folder.path().join(name);
    let (file, out) = (at("c.gguf"), at("o.gguf"));
    let refuse = |parts: &[&str]| fail(bind(&["--caps", arg(&file), "--out", arg(&out)]), parts);
    refuse(&["c.gguf", "check the path"]);
    caps_for(&file, &[(3, 1, Bound::NONE, 1.0)], WIDTH * 2, BLOCKS);
    refuse(&["c.gguf", "width", "1152", "576"]);
    caps_for(&file, &[(3, 1, Bound::NONE, 1.0)], WIDTH, BLOCKS + 1);
    refuse(&["c.gguf", "31", "30"]);
    fs::write(&file, "not a cap file").unwrap();
    refuse(&["c.gguf", "GGUF"]);
    plain(&file);
    fail(bind_to(&at("no-model.gguf"), &["--caps", arg(&file)]), &["no-model.gguf", "No such file"]);
    fail(bind_to(&out, &["--caps", arg(&file)]), &["o.gguf", "No such file"]);
    fs::copy(&file, at("copy.gguf")).unwrap();
    fail(bind_to(&at("copy.gguf"), &["--caps", arg(&file)]), &["copy.gguf", "controlvector"]);
    fail(bind_to(&file, &["--caps", arg(&file)]), &["--caps and --model are one file"]);
    fail(bind(&["--caps", arg(&file), "--out", arg(&file)]), &["--out and --caps are one file"]);
    // Cut within the weights.
    let source = Source::open();
    let whole = at("whole.gguf");
    source.with_metadata(&whole, |_| {});
    let length = fs::metadata(&whole).unwrap().len();
    File::options().write(true).open(&whole).unwrap().set_len(length - 64).unwrap();
    fail(bind_to(&whole, &["--caps", arg(&file)]), &["whole.gguf", "incomplete"]);
    assert!(!out.exists());
    assert!(CapFile::read(&file).unwrap().model.norms.is_empty(), "the caps are as they were");
}

#[cfg(target_os = "linux")]
#[test]
fn an_output_that_cannot_be_written_is_refused() {
    let folder = folder();
    let file = folder.path().join("c.gguf");
    plain(&file);
    let bytes = fs::read(&file).unwrap();
    fail(bind(&["--caps", arg(&file), "--out", "/dev/full"]), &["/dev/full", "space"]);
    fail(bind(&["--caps", arg(&file), "--out", "/proc/c.gguf"]), &["--out", "/proc/c.gguf"]);
    fail(bind(&["--caps", arg(&file), "--out", "/nowhere/c.gguf"]), &["/nowhere/c.gguf", "no folder"]);
    fail(bind(&["--caps", arg(&file), "--out", arg(folder.path())]), &["--out", "name a file"]);
    assert_eq!(fs::read(&file).unwrap(), bytes);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is half written");
}

/// The shipped caps carry the digests of their model.
#[test]
fn the_shipped_caps_are_bound() {
    let shipped = concat!(env!("CARGO_MANIFEST_DIR"), "/../lab/assets/smollm2-135m-instruct.caps.gguf");
    assert_eq!(CapFile::read(Path::new(shipped)).unwrap().model.norms, digests());
}
