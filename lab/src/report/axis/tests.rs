use super::super::frame::tests::{parse, texts};
use super::*;

fn block(block: usize) -> BlockRow {
    let x = block as f64;
    BlockRow {
        block,
        norm: 1.0 + 2.0 * x,
        auc: 0.6 + 0.012 * x,
        d_prime: 0.2 * x,
        cosine_next: Some(0.9),
        cosine_halves: Some(0.8 + 0.001 * x),
        cosine_first_component: Some(0.7),
        variance: vec![0.4, 0.2, 0.1, 0.05],
        peak: (17, -0.25),
        thoughts_cosine: Some(0.5),
    }
}

fn role(name: &str, projection: Option<f64>) -> RoleRow {
    RoleRow { name: name.into(), answers: 28, kept: 20, projection }
}

fn full() -> Report<'static> {
    Report {
        model: "SmolLM2 135M Instruct",
        architecture: "llama",
        command: "axiscap extract model.gguf --out axes.gguf --report report.html".into(),
        facts: vec![("seed", "1".into()), ("left out", "12 of 798".into())],
        held_out_on: "roles and questions",
        blocks: (0..30).map(block).collect(),
        roles: vec![role("ghost", Some(-80.5)), role("teacher", Some(12.25)), role("tree", None)],
        default_mean: 40.5,
        shown_block: 24,
        recommended: 21..=26,
        why_recommended: "They separate the groups best.".into(),
        massive: vec![(41, vec![(3, 812.5), (4, -900.0), (5, 1.0)])],
        massive_dropped: true,
        traits: vec![TraitRow { name: "warmth".into(), cosine: 0.4, auc: 0.9 }],
        warnings: vec!["Few answers were kept.".into()],
    }
}

#[test]
fn a_full_report_says_which_blocks_to_cap_and_why() {
    let page = full().to_html().unwrap();
    assert!(page.starts_with("<!DOCTYPE html><html lang=\"en\">"));
    let document = parse(&page);
    assert!(texts(&document, "h2").contains(&"Cap blocks 21 to 26".to_owned()));
    assert_eq!(texts(&document, "svg").len(), 6);
    let paragraphs = texts(&document, "p").join("\n");
    for words in
        ["They separate the groups best.", "--blocks 21-26", "Block 24 is the best", "roles and questions"]
    {
        assert!(paragraphs.contains(words), "{words}");
    }
    assert_eq!(texts(&document, "td").iter().filter(|cell| *cell == "yes").count(), 6);
    for cell in ["3 to 5", "-900.0", "12.25", "12 of 798", "0.900"] {
        assert!(texts(&document, "td").contains(&cell.into()), "{cell}");
    }
    let names: Vec<_> = texts(&document, "bdi");
    let place = |name: &str| names.iter().position(|found| found == name).unwrap();
    assert!(place("teacher") < place("ghost") && place("ghost") < place("tree"));
}

#[test]
fn one_block_and_one_role_are_enough() {
    let mut report = full();
    report.blocks = vec![BlockRow {
        cosine_next: None,
        cosine_halves: None,
        cosine_first_component: None,
        variance: vec![],
        thoughts_cosine: None,
        ..block(0)
    }];
    (report.roles, report.recommended, report.shown_block) = (vec![role("ghost", Some(1.0))], 0..=0, 0);
    (report.traits, report.massive, report.warnings, report.facts) = Default::default();
    let page = report.to_html().unwrap();
    let document = parse(&page);
    assert!(texts(&document, "h2").contains(&"Cap block 0".to_owned()));
    // Without cosines and components: AUC, d' and roles.
    assert_eq!(texts(&document, "svg").len(), 3);
    assert_eq!(page.matches("nothing of this was measured").count(), 2);
    assert!(!texts(&document, "th").iter().any(|heading| heading.contains("PC1")));
}

#[test]
fn numbers_that_are_not_finite_are_left_out() {
    for odd in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, f64::MAX, -1e300] {
        let mut report = full();
        for block in &mut report.blocks {
            (block.norm, block.auc, block.d_prime) = (odd, odd, odd);
            (block.cosine_next, block.cosine_halves) = (Some(odd), Some(odd));
            (block.cosine_first_component, block.thoughts_cosine) = (Some(odd), Some(odd));
            (block.variance, block.peak.1) = (vec![odd, odd], odd as f32);
        }
        report.roles.iter_mut().for_each(|role| role.projection = Some(odd));
        (report.default_mean, report.massive[0].1[0].1) = (odd, odd);
        (report.traits[0].cosine, report.traits[0].auc) = (odd, odd);
        let page = report.to_html().unwrap();
        assert_eq!(texts(&parse(&page), "svg").len(), 0, "{odd}");
        // One good value among them is drawn.
        (report.blocks[3].auc, report.roles[0].projection) = (0.5, Some(-2.0));
        let page = report.to_html().unwrap();
        assert_eq!(texts(&parse(&page), "svg").len(), 2, "{odd}");
    }
}

#[test]
fn hostile_text_is_escaped_and_bounded() {
    let long = "long ".repeat(2000);
    let flood = "\u{301}".repeat(10_000);
    let hostile = [
        "<script>alert(1)</script>",
        "\"><img onerror='x'>",
        "a&amp;b & c",
        "--></title></style><b>",
        "\u{202e}txet\u{2066}\u{200f}",
        "\0\u{1b}[31m\u{ffff}\r\n",
        "",
        &long,
        &flood,
    ];
    for text in hostile {
        let mut report = full();
        (report.model, report.architecture, report.held_out_on) = (text, text, text);
        report.command = text.into();
        report.facts = vec![(text, text.into())];
        report.roles = vec![role(text, Some(1.0)), role(text, None)];
        report.traits = vec![TraitRow { name: text.into(), cosine: 0.1, auc: 0.5 }];
        (report.why_recommended, report.warnings) = (text.into(), vec![text.into()]);
        let page = report.to_html().unwrap();
        parse(&page);
        assert!(!page.contains("<img") && !page.contains("</style><b>"), "{text}");
        assert!(!page.contains(['\u{202e}', '\u{2066}', '\u{200f}', '\u{1b}', '\0', '\u{ffff}']));
        assert!(page.len() < full().to_html().unwrap().len() + 30_000, "{}", page.len());
    }
    let page = Report { model: hostile[0], ..full() }.to_html().unwrap();
    assert!(page.contains("<bdi>&lt;script&gt;alert(1)&lt;/script&gt;</bdi>"));
}

#[test]
fn an_empty_range_recommends_nothing_and_hundreds_of_roles_become_several_plots() {
    let mut report = full();
    report.recommended = std::ops::RangeInclusive::new(1, 0);
    report.roles = (0..300).map(|i| role(&format!("role {i}"), Some(f64::from(i)))).collect();
    let page = report.to_html().unwrap();
    let document = parse(&page);
    assert!(texts(&document, "h2").contains(&"No blocks to cap".to_owned()));
    assert!(!page.contains("--blocks"));
    assert_eq!(texts(&document, "svg").len(), 5 + 8);
    (report.blocks, report.roles) = Default::default();
    let page = report.to_html().unwrap();
    assert!(texts(&parse(&page), "p").contains(&"There are no blocks.".to_owned()));
}
