//! Models that are split over several files, made from the real one.

mod support;

use std::fs;
use std::path::Path;

use support::{arg, axiscap, fail, folder, gguf::Source, json, program};

fn run(path: &Path) -> std::process::Output {
    let prompt =
        ["--raw", "--prompt", "The sea", "--temp", "0", "--max-tokens", "4", "--ctx", "64", "--json"];
    program(&[&["run", "--model", arg(path)], &prompt[..]].concat(), "")
}

#[test]
fn a_split_model_is_loaded_from_any_of_its_files() {
    let folder = folder();
    let args = ["--raw", "--prompt", "The sea", "--temp", "0", "--max-tokens", "4", "--ctx", "64", "--json"];
    let whole = json(axiscap("run", &args))["tokens"].clone();
    let source = Source::open();
    for (name, tensors) in [("m", &[90, 100][..]), ("first-is-metadata", &[0, 200]), ("two", &[1])] {
        let files = source.split(folder.path(), name, tensors);
        assert_eq!(files.len(), tensors.len() + 1);
        for file in &files {
            let report = json(run(file));
            assert_eq!(report["tokens"], whole, "{}", file.display());
            assert_eq!(report["model"]["path"], arg(file));
        }
        // A link beside the others is as good as the file.
        #[cfg(unix)]
        {
            let linked = folder.path().join("linked");
            fs::create_dir_all(&linked).unwrap();
            for file in &files {
                std::os::unix::fs::symlink(file, linked.join(file.file_name().unwrap())).unwrap();
            }
            assert_eq!(json(run(&linked.join(files[1].file_name().unwrap())))["tokens"], whole);
            fs::remove_dir_all(linked).unwrap();
        }
        files.iter().for_each(|file| fs::remove_file(file).unwrap());
    }
}

#[test]
fn a_comparison_that_loads_the_model_again_takes_any_file_too() {
    let folder = folder();
    let caps = folder.path().join("c.gguf");
    support::caps(&caps, &[(10, 1, axiscap::Bound::NONE, 1.0)]);
    let files = Source::open().split(folder.path(), "m", &[90]);
    let few = ["--pairs", "1", "--prompts", "1", "--prompt-tokens", "4", "--generate-tokens", "2", "--json"];
    let model = ["bench", "--model", arg(&files[1]), "--caps", arg(&caps), "--compare", "cb-eval"];
    assert_eq!(json(program(&[&model[..], &few].concat(), ""))["cb_eval"]["decode"]["pairs"], 1);
}

#[test]
fn missing_and_misnamed_files_are_named() {
    let folder = folder();
    let at = |name: &str| folder.path().join(name);
    let source = Source::open();
    let files = source.split(folder.path(), "m", &[90, 100]);
    let [one, two, three] = [0, 1, 2].map(|index| files[index].as_path());

    // Missing: one that is not given, several, and the one that is given.
    for (given, gone) in [(one, two), (two, one), (two, three), (three, one)] {
        fs::rename(gone, at("away")).unwrap();
        let gone_name = gone.file_name().unwrap().to_str().unwrap();
        fail(run(given), &["split into 3 files", "1 is missing", gone_name, "one folder"]);
        let errors = String::from_utf8(run(given).stderr).unwrap();
        assert!(!errors.contains("damaged") && errors.matches("missing").count() == 1, "{errors}");
        fail(run(gone), &[gone_name, "No such file"]);
        fs::rename(at("away"), gone).unwrap();
    }
    fs::rename(one, at("one")).unwrap();
    fs::rename(three, at("three")).unwrap();
    fail(run(two), &["some are missing", "m-00001-of-00003.gguf", "m-00003-of-00003.gguf"]);
    fs::rename(at("one"), one).unwrap();
    fs::rename(at("three"), three).unwrap();

    // Renamed, alone and within the pattern.
    for (file, number) in [(one, 1), (two, 2)] {
        fs::rename(file, at("renamed.gguf")).unwrap();
        let expected = format!("renamed-0000{number}-of-00003.gguf");
        fail(run(&at("renamed.gguf")), &[&format!("file {number} of 3"), "renamed.gguf", &expected]);
        fs::rename(at("renamed.gguf"), file).unwrap();
    }
    fs::rename(two, at("x")).unwrap();
    fs::rename(three, two).unwrap();
    fs::rename(at("x"), three).unwrap();
    for given in [one, two] {
        fail(run(given), &["m-00002-of-00003.gguf is file 3 of 3", "rename it to m-00003-of-00003.gguf"]);
    }
    fs::rename(two, at("x")).unwrap();
    fs::rename(three, two).unwrap();
    fs::rename(at("x"), three).unwrap();
    json(run(two));

    // A file of something else, a damaged one, and an empty one.
    let good = fs::read(three).unwrap();
    support::caps(three, &[(3, 1, axiscap::Bound::NONE, 1.0)]);
    fail(run(one), &["m-00003-of-00003.gguf has the name of a file of the split model", "right file"]);
    // ggml aborts the process when it reads a number of another type.
    source.with_metadata(three, |part| part.set("split.no", &2u32.into()));
    fail(run(one), &["m-00003-of-00003.gguf has the name of a file of the split model"]);
    fs::write(three, &good[..good.len() / 2]).unwrap();
    fail(run(two), &["m-00002-of-00003.gguf", "incomplete"]);
    fs::write(three, "").unwrap();
    fail(run(two), &["m-00003-of-00003.gguf", "empty"]);
}

#[test]
fn a_whole_model_may_be_named_like_a_file_of_a_split_one() {
    let folder = folder();
    let path = folder.path().join("whole-00002-of-00003.gguf");
    fs::hard_link(support::model(), &path)
        .or_else(|_| fs::copy(support::model(), &path).map(|_| ()))
        .unwrap();
    assert_eq!(json(run(&path))["tokens"].as_array().unwrap().len(), 4);
}
