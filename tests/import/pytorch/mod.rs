//! Files written by real PyTorch, safetensors and gguf: imported to the bit, or refused. Exports read by them.
//!
//! `scripts/setup-torch` puts these in place. `AXISCAP_TEST_TORCH` names the Python that it prints.

use std::path::{Path, PathBuf};
use std::process::Command;

use axiscap::file::{CapFile, ModelInfo};
use axiscap::import::{Evidence, Format, PointsTo, Request, Source, Target, Warning, export};
use axiscap::{Axis, Bound};

const LAYERS: usize = 6;
const WIDTH: usize = 24;

fn python(arguments: &[&Path]) -> Option<String> {
    let Some(python) = std::env::var_os("AXISCAP_TEST_TORCH") else {
        eprintln!("left out: AXISCAP_TEST_TORCH names no Python with PyTorch");
        return None;
    };
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/import/pytorch/files.py");
    let output = Command::new(python).arg(script).args(arguments).output().expect("Python starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Some(String::from_utf8(output.stdout).unwrap())
}

fn target() -> Target {
    Target { model: ModelInfo::new("llama", LAYERS), width: WIDTH }
}

fn to_assistant() -> Request<'static> {
    Request { points_to: Some(PointsTo::Assistant), ..Request::default() }
}

/// The rows that PyTorch reads in a file.
fn rows(path: &Path) -> Vec<Vec<f32>> {
    let bytes = std::fs::read(path).unwrap();
    let values: Vec<f32> = bytes.as_chunks::<4>().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect();
    values.chunks(WIDTH).map(<[f32]>::to_vec).collect()
}

fn beside(path: &Path, extension: &str) -> PathBuf {
    PathBuf::from(format!("{}.{extension}", path.display()))
}

fn axes(file: &CapFile) -> Vec<(usize, Axis)> {
    file.caps.caps().iter().map(|entry| (entry.block, entry.cap.axis().clone())).collect()
}

/// The axes of PyTorch's rows, the first of them on block `first`.
fn expected(rows: &[Vec<f32>], first: usize) -> Vec<(usize, Axis)> {
    let axis = |row: &Vec<f32>| Axis::from_direction(row).unwrap();
    rows.iter().enumerate().map(|(index, row)| (first + index, axis(row))).collect()
}

#[test]
fn files_of_pytorch_are_imported_to_the_bit_or_refused() {
    let folder = tempfile::tempdir().unwrap();
    if python(&["write".as_ref(), folder.path()]).is_none() {
        return;
    }
    vectors(folder.path());
    evidence_and_configuration(folder.path());
    control_vectors(folder.path());
    refused(folder.path());
}

fn vectors(folder: &Path) {
    let mut names: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    names.retain(|path| {
        let name = path.file_name().unwrap().to_string_lossy();
        (name.starts_with("axis") || name.starts_with("layers")) && !name.ends_with(".bits")
    });
    assert_eq!(names.len(), 20, "{names:?}");
    for path in names {
        let source = Source::open(&path).unwrap();
        let imported = source.caps(&target(), &to_assistant()).unwrap();
        let rows = rows(&beside(&path, "bits"));
        assert_eq!(axes(&imported.file), expected(&rows, 0), "{}", path.display());
        assert_eq!(imported.warnings, []);
        // The norm of raw values, so that no scale is lost.
        for (line, row) in source.describe().unwrap().vectors.iter().zip(&rows) {
            let norm = row.iter().map(|&value| f64::from(value).powi(2)).sum::<f64>().sqrt();
            assert!((line.norm / norm - 1.0).abs() < 1e-7, "{}", path.display());
        }
    }
}

fn evidence_and_configuration(folder: &Path) {
    let open = |name: &str| Source::open(&folder.join(name)).unwrap();
    let roles: Vec<_> = (0..5).map(|index| open(&format!("role{index}.pt"))).collect();
    let evidence = Evidence::new(&open("default_vector.pt"), &roles).unwrap();
    let computed = evidence.axes(&target(), None).unwrap();
    assert_eq!(axes(&computed.file), expected(&rows(&folder.join("difference.bits")), 0));

    let path = folder.join("capping_config.pt");
    let source = Source::open(&path).unwrap();
    assert_eq!(source.format(), Format::CappingConfig);
    let caps = std::fs::read(beside(&path, "caps")).unwrap();
    let caps: Vec<f64> = caps.as_chunks::<8>().0.iter().map(|&bytes| f64::from_le_bytes(bytes)).collect();
    assert_eq!(source.describe().unwrap().experiments[0].upper_bounds, caps);
    let stored = rows(&beside(&path, "bits"));
    for evidence in [None, Some(&evidence)] {
        let request = Request { experiment: Some("layers_2:5-p0.25"), evidence, ..Request::default() };
        let imported = source.caps(&target(), &request).unwrap();
        let negated: Vec<Vec<f32>> =
            stored[2..5].iter().map(|row| row.iter().map(|value| -value).collect()).collect();
        assert_eq!(axes(&imported.file), expected(&negated, 2));
        let bounds: Vec<_> = imported.file.caps.caps().iter().map(|entry| entry.cap.bound()).collect();
        let floors: Vec<_> = caps.iter().map(|&cap| Bound::floor(-(cap as f32)).unwrap()).collect();
        assert_eq!(bounds, floors);
        let by_convention =
            imported.warnings.iter().any(|warning| matches!(warning, Warning::ByConvention { .. }));
        assert_eq!(
            (by_convention, imported.warnings.len()),
            (evidence.is_none(), usize::from(evidence.is_none()))
        );
    }
}

fn control_vectors(folder: &Path) {
    for (name, first) in [("repeng.gguf", 0), ("generator.gguf", 1)] {
        let path = folder.join(name);
        let source = Source::open(&path).unwrap();
        assert_eq!(source.format(), Format::ControlVector);
        let imported = source.caps(&target(), &to_assistant()).unwrap();
        assert_eq!(axes(&imported.file), expected(&rows(&beside(&path, "bits")), first), "{name}");
        assert_eq!(imported.warnings.contains(&Warning::Generator), first == 1);
    }
}

fn refused(folder: &Path) {
    for (name, words) in [
        ("legacy", "before version 1.6"),
        ("script", "TorchScript"),
        ("module", "Linear"),
        ("executes", "io.open"),
        ("integers", "int64"),
        ("expanded", "several times"),
        ("numpy", "numpy"),
        ("sparse", "_rebuild_sparse_tensor"),
        ("quantised", "torch"),
    ] {
        let error = Source::open(&folder.join(format!("refused-{name}.pt"))).unwrap_err().to_string();
        assert!(error.contains(words), "{name}: {error}");
    }
    assert!(!folder.join("executed").exists());
}

#[test]
fn exports_are_read_by_pytorch_and_gguf() {
    let folder = tempfile::tempdir().unwrap();
    let rows: Vec<Vec<f32>> =
        (0..3).map(|i| (0..WIDTH).map(|j| (i as f32 + 1.5) * (j as f32 - 7.25)).collect()).collect();
    let caps = expected(&rows, 1).into_iter().map(|(block, axis)| {
        let cap = axiscap::Cap::new(axis, Bound::floor(block as f32 + 0.1).unwrap());
        axiscap::BlockCap { block, cap }
    });
    let file = CapFile::new(axiscap::CapSet::new(caps).unwrap(), ModelInfo::new("llama", LAYERS));
    let hex = |bytes: Vec<u8>| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let floats = |values: &mut dyn Iterator<Item = f32>| hex(values.flat_map(f32::to_le_bytes).collect());
    let all = file.caps.caps();

    let path = folder.path().join("caps.safetensors");
    std::fs::write(&path, export::safetensors(&file).unwrap()).unwrap();
    let Some(read) = python(&["read".as_ref(), &path]) else { return };
    let lines: Vec<&str> = read.lines().collect();
    let axes = floats(&mut all.iter().flat_map(|entry| entry.cap.axis().values().to_vec()));
    let floor = floats(&mut all.iter().map(|entry| entry.cap.bound().lo()));
    let block = hex(all.iter().flat_map(|entry| (entry.block as i64).to_le_bytes()).collect());
    assert!(lines.contains(&&*format!("axis float32 3x{WIDTH} {axes}")), "{read}");
    assert!(lines.contains(&&*format!("floor float32 3 {floor}")), "{read}");
    assert!(lines.contains(&&*format!("block int64 3 {block}")), "{read}");

    let path = folder.path().join("caps.gguf");
    std::fs::write(&path, export::control_vector(&file).unwrap()).unwrap();
    let read = python(&["read".as_ref(), &path]).unwrap();
    let mut expected = vec![format!("hint llama {LAYERS}")];
    for entry in all {
        let values = floats(&mut entry.cap.axis().values().iter().copied());
        expected.push(format!("direction.{} float32 {WIDTH} {values}", entry.block));
    }
    assert_eq!(read.lines().collect::<Vec<_>>(), expected);
}
