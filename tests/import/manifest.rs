//! Neuronpedia's `persona.yaml` beside its contrast vectors.

use std::path::Path;

use axiscap::file::gguf::Value;
use axiscap::import::{Format, Request, Source, Warning};

use crate::support::stacked;
use crate::{assert_contains, refused, target};

const ROWS: [[f32; 3]; 4] = [[0.0, 3.0, 4.0], [1.0, 2.0, 2.0], [5.0, 0.0, 12.0], [8.0, 6.0, 0.0]];
const GOOD: &str = "# how the fit was made
blank_system_prompt: true
pc_titles:
  - \"- Role-playing / + Assistant-like\"
contrast_vectors: vectors/contrast.pt
pca:
  - layer: 2
    file: pca/roles_layer2-min.pt
";

fn write(folder: &Path, manifest: &str) -> std::path::PathBuf {
    std::fs::create_dir_all(folder.join("vectors")).unwrap();
    std::fs::write(folder.join("vectors/contrast.pt"), stacked(&ROWS)).unwrap();
    let path = folder.join("persona.yaml");
    std::fs::write(&path, manifest).unwrap();
    path
}

#[test]
fn contrast_vectors_are_negated_as_neuronpedia_does() {
    let folder = tempfile::tempdir().unwrap();
    let source = Source::open(&write(folder.path(), GOOD)).unwrap();
    assert_eq!(source.format(), Format::Neuronpedia);
    let imported = source.caps(&target(), &Request::default()).unwrap();
    let file = &imported.file;
    assert_eq!(file.caps.caps()[0].cap.axis().values(), [-0.0, -0.6, -0.8]);
    assert_eq!(file.orientation.as_deref(), Some("more Assistant"));
    assert!(
        matches!(imported.warnings.as_slice(), [Warning::ByConvention { convention }] if convention.contains("Neuronpedia"))
    );
    assert_eq!(file.origin.get("import.blank_system_prompt"), Some(&Value::from(true)));
    assert_eq!(file.origin.get("import.shown_at_layers"), Some(&Value::from(vec![2u32])));
    assert_eq!(file.origin.get("import.file"), Some(&"persona.yaml".into()));
    let titles = vec!["- Role-playing / + Assistant-like".to_owned()];
    assert_eq!(file.origin.get("import.titles"), Some(&titles.into()));
}

#[test]
fn a_wrong_manifest_is_refused_with_its_key() {
    let folder = tempfile::tempdir().unwrap();
    let error = |manifest: &str| Source::open(&write(folder.path(), manifest)).unwrap_err().to_string();
    for outside in ["../contrast.pt", "/etc/passwd", "a/../../b", ".", "''", "[1]"] {
        let message = error(&format!("contrast_vectors: {outside}"));
        assert_contains(&message, &["persona.yaml: contrast_vectors", "in the manifest's folder"]);
    }
    assert_contains(&error("pca: 3"), &["pca: expected a list", "\"3\""]);
    assert_contains(&error("pca: [{file: x}]"), &["a layer from 0"]);
    assert_contains(&error("pca: [{layer: '2'}]"), &["a layer from 0"]);
    assert_contains(&error("pc_titles: [[]]"), &["pc_titles: expected texts"]);
    assert_contains(&error("pca: []\nblank_system_prompt: 1"), &["true or false"]);
    assert_contains(&error("pca: &a []\nb: *a"), &["an alias"]);
    assert_contains(&error("pca: []\npca: []"), &["\"pca\" twice"]);
    assert_contains(&error("pca: ["), &["YAML: expected a valid document"]);
    // The default name is not there.
    assert_contains(&error("pca: []"), &["contrast_vectors.pt: cannot open it"]);
    assert_contains(
        &error("contrast_vectors: persona.yaml"),
        &["persona.yaml: file format", "a manifest alone"],
    );
    assert_contains(&error("a: b"), &["file format"]);
    assert_contains(&refused(GOOD.into()), &["a manifest alone", "by its path"]);
}
