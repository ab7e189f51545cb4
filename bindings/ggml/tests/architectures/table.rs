//! The table of docs/architectures.md.

use std::fmt::Write;
use std::path::Path;

use crate::examine::{NEEDS_LOGITS, ONE_TOKEN_AT_A_TIME, Outcome};
use crate::forms::Form;

const BEGIN: &str = "<!-- The table is written by `AXISCAP_BLESS=1 cargo test --test architectures`. -->\n";

/// Compares the file with what was found, or writes it.
pub(crate) fn check(rows: &[(Form, Outcome)]) {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/architectures.md");
    let old = std::fs::read_to_string(&file).expect("docs/architectures.md can be read");
    let (text, _) = old.split_once(BEGIN).expect("docs/architectures.md has the mark of its table");
    let new = format!("{text}{BEGIN}{}", table(rows));
    if std::env::var_os("AXISCAP_BLESS").is_some() {
        std::fs::write(&file, new).expect("docs/architectures.md can be written");
    } else {
        assert!(old == new, "docs/architectures.md is stale; write it with AXISCAP_BLESS=1");
    }
}

fn table(rows: &[(Form, Outcome)]) -> String {
    let mut text = String::new();
    let (mut capped, mut refused) = (0, 0);
    for of_one in rows.chunk_by(|(a, _), (b, _)| a.architecture == b.architecture) {
        let (form, outcome) = &of_one[0];
        let name = form.architecture;
        match outcome {
            Outcome::Refused { reason, seen } => {
                refused += 1;
                let seen = if seen == "not built" { "" } else { &format!(" ({seen})") };
                writeln!(text, "| {name} | | refused: {reason}{seen} |").unwrap();
            }
            Outcome::Capped { names } => {
                capped += 1;
                let forms: Vec<_> = of_one.iter().map(|(form, _)| form.label).collect();
                let output: Vec<_> = names.iter().map(|name| format!("`{name}`")).collect();
                let mut notes = Vec::new();
                for (form, _) in of_one.iter().filter(|(form, _)| !form.refused.is_empty()) {
                    let blocks: Vec<_> = form.refused.iter().map(usize::to_string).collect();
                    notes.push(format!("{}: block {} refused", form.label, blocks.join(", ")));
                }
                if name == ONE_TOKEN_AT_A_TIME {
                    notes.push("one token at a time, since llama.cpp aborts on more".into());
                }
                if name == NEEDS_LOGITS {
                    notes.push("with logits for every token, since llama.cpp aborts otherwise".into());
                }
                let notes: String = notes.iter().map(|note| format!("; {note}")).collect();
                writeln!(text, "| {name} | {} | capped at {}{notes} |", forms.join(", "), output.join(", "))
                    .unwrap();
            }
        }
    }
    assert!(capped >= 120, "{capped} architectures are capped");
    format!(
        "\n{} names: {capped} capped, {refused} refused.\n\n\
         | architecture | forms tried | result |\n|---|---|---|\n{text}",
        capped + refused
    )
}
