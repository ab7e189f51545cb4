//! The header is what cbindgen makes of the sources. `AXISCAP_UPDATE_HEADER=1` writes it.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use cbindgen::{Builder, Config};

/// The sources with types and functions, in the order of the header.
const SOURCES: [&str; 16] = [
    "version.rs",
    "status.rs",
    "last_error.rs",
    "caps/open.rs",
    "caps/describe.rs",
    "caps/blocks.rs",
    "caps/cap.rs",
    "table/make.rs",
    "table/change.rs",
    "job/row_stat.rs",
    "job/call.rs",
    "job/run.rs",
    "gpu/device.rs",
    "gpu/device_table.rs",
    "gpu/launch.rs",
    "gpu/faults.rs",
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn generated() -> String {
    let config = Config::from_file(root().join("cbindgen.toml")).unwrap();
    let sources = SOURCES.iter().fold(Builder::new().with_config(config), |builder, source| {
        builder.with_src(root().join("src").join(source))
    });
    let mut header = Vec::new();
    sources.generate().unwrap().write(&mut header);
    String::from_utf8(header).unwrap()
}

#[test]
fn the_header_is_that_of_the_sources() {
    let path = root().join("include/axiscap.h");
    let header = generated();
    if std::env::var_os("AXISCAP_UPDATE_HEADER").is_some() {
        fs::write(&path, &header).unwrap();
    }
    let committed = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        committed == header,
        "include/axiscap.h is not what the sources give; run AXISCAP_UPDATE_HEADER=1 cargo test -p axiscap-c --test header"
    );
}

/// Every file whose functions or types C sees must be one that the header is made of.
#[test]
fn the_header_has_every_function() {
    let mut functions = BTreeSet::new();
    let mut folders: Vec<PathBuf> = vec![root().join("src")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let source = fs::read_to_string(&path).unwrap();
            for after in source.split("extern \"C\" fn ").skip(1) {
                functions.insert(after.split('(').next().unwrap().to_owned());
            }
        }
    }
    let header = generated();
    let missing: Vec<_> = functions
        .iter()
        .filter(|name| !header.contains(&format!(" {name}(")) && !header.contains(&format!("*{name}(")))
        .collect();
    assert!(functions.len() > 20 && missing.is_empty(), "{missing:?}");
}
