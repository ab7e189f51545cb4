//! Models that are split over several files: `name-00002-of-00003.gguf`.
//!
//! llama.cpp loads such a model from its first file only, and makes up the names of the others. Here any of
//! the files will do, and each is checked before llama.cpp reads it. Names count from 1, the metadata
//! (`split.no`) from 0.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use crate::error::Error;
use crate::gguf::Gguf;
use crate::model::check_readable;

/// Returns the files of the model at a path: if its name is that of a file of a split model, all of them,
/// whether or not they exist, with the first one first; else the path itself.
#[must_use]
pub fn model_files(path: &Path) -> Vec<PathBuf> {
    match Name::of(path) {
        Some(name) => (0..name.place.count).map(|number| name.file(path, number)).collect(),
        None => vec![path.to_owned()],
    }
}

/// Returns the files to load a model from, the first one first. Of a split model they are all there, and each
/// is the one that its name says.
pub(crate) fn files(path: &Path) -> Result<Vec<PathBuf>, Error> {
    let Metadata::Part(place) = Metadata::read(path) else { return Ok(vec![path.to_owned()]) };
    if place.count < 2 {
        return Ok(vec![path.to_owned()]);
    }
    let named = Name::of(path).filter(|name| name.place == place);
    let Some(name) = named else { return Err(misnamed(path, place)) };
    let files: Vec<_> = (0..place.count).map(|number| name.file(path, number)).collect();
    let mut missing = Vec::new();
    for file in &files {
        match check_readable(file) {
            Err(Error::ModelFile { error, .. }) if error.kind() == ErrorKind::NotFound => {
                missing.push(file.clone());
            }
            checked => checked?,
        }
    }
    if !missing.is_empty() {
        return Err(Error::SplitMissing { path: path.to_owned(), count: place.count, missing });
    }
    for (number, file) in (0..).zip(&files) {
        match Metadata::read(file) {
            Metadata::Part(found) if found == (Place { number, ..place }) => {}
            Metadata::Part(found) => return Err(misnamed(file, found)),
            Metadata::Whole => {
                let (path, of) = (file.clone(), path.to_owned());
                return Err(Error::SplitStranger { path, of });
            }
            // llama.cpp says what is wrong with it.
            Metadata::Unreadable => {}
        }
    }
    Ok(files)
}

fn misnamed(path: &Path, place: Place) -> Error {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let prefix = match Name::of(path) {
        Some(name) => name.prefix,
        None => name.strip_suffix(".gguf").unwrap_or(&name).to_owned(),
    };
    let expected = file_name(&prefix, place);
    let (number, count) = (u32::from(place.number) + 1, place.count);
    Error::SplitName { path: path.to_owned(), number, count, expected }
}

/// Which file of how many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    /// From 0.
    number: u16,
    count: u16,
}

/// The name of a file of a split model.
#[derive(Debug, PartialEq, Eq)]
struct Name {
    prefix: String,
    place: Place,
}

impl Name {
    /// Takes a name apart, `None` if it is not of the form that llama.cpp makes (`llama_split_path`).
    fn of(path: &Path) -> Option<Self> {
        let name = path.file_name()?.to_str()?;
        let (rest, count) = name.strip_suffix(".gguf")?.rsplit_once("-of-")?;
        let (prefix, number) = rest.rsplit_once('-')?;
        let (number, count): (u16, u16) = (number.parse().ok()?, count.parse().ok()?);
        let place = Place { number: number.checked_sub(1)?, count };
        // Rules out other spellings of the numbers, such as `+0001`.
        (number <= count && file_name(prefix, place) == name)
            .then(|| Self { prefix: prefix.to_owned(), place })
    }

    /// Returns the file of this number in the folder of `path`.
    fn file(&self, path: &Path, number: u16) -> PathBuf {
        path.with_file_name(file_name(&self.prefix, Place { number, ..self.place }))
    }
}

fn file_name(prefix: &str, Place { number, count }: Place) -> String {
    format!("{prefix}-{:05}-of-{count:05}.gguf", u32::from(number) + 1)
}

/// What the metadata of a file says about its place in a split model.
enum Metadata {
    /// One file of a model, which may be the only one.
    Part(Place),
    /// Nothing that llama.cpp can read.
    Whole,
    /// The file is no GGUF.
    Unreadable,
}

impl Metadata {
    fn read(path: &Path) -> Self {
        // ggml's complaint is dropped: llama.cpp reads the file again and repeats it.
        let Ok(file) = Gguf::open(path) else { return Self::Unreadable };
        match [c"split.no", c"split.count"].map(|key| file.u16(key)) {
            [Some(number), Some(count)] => Self::Part(Place { number, count }),
            _ => Self::Whole,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_of_a_split_model_names_all_its_files() {
        let files = |path: &str| -> Vec<String> {
            let files = model_files(Path::new(path));
            files.iter().map(|file| file.to_str().unwrap().to_owned()).collect()
        };
        let all =
            ["m/a-of-b-00001-of-00003.gguf", "m/a-of-b-00002-of-00003.gguf", "m/a-of-b-00003-of-00003.gguf"];
        for path in all {
            assert_eq!(files(path), all);
        }
        assert_eq!(files("-00001-of-00001.gguf"), ["-00001-of-00001.gguf"]);
        for whole in [
            "model.gguf",
            "m-1-of-3.gguf",
            "m-00004-of-00003.gguf",
            "m-00000-of-00003.gguf",
            "m-00001-of-00003.bin",
            "m-+0001-of-00003.gguf",
            "m-00001-of-99999.gguf",
            "00001-of-00003.gguf",
            "/",
            "",
        ] {
            assert_eq!(files(whole), [whole], "{whole}");
        }
    }
}
