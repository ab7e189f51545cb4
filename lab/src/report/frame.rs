//! What all pages have: the frame, charts and tables.

use maud::{DOCTYPE, Markup, PreEscaped, html};

use crate::text::{clean, name};

const STYLE: &str = include_str!("style.css");
/// Written out, because XML wants these tags closed.
const META: &str =
    r#"<meta charset="utf-8" /><meta name="viewport" content="width=device-width, initial-scale=1" />"#;

/// Columns of a model's name, of a sentence, of a command, and of a name and a value in a table.
pub(super) const NAME: usize = 120;
pub(super) const SENTENCE: usize = 1000;
pub(super) const COMMAND: usize = 4000;
pub(super) const CELL: usize = 80;
pub(super) const VALUE: usize = 2000;

/// Returns a page.
pub(super) fn page(title: &str, body: &Markup) -> Markup {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                (PreEscaped(META))
                title { (title) }
                style { (PreEscaped(STYLE)) }
            }
            body { main { (body) } }
        }
    }
}

/// Returns charts under a heading, with how to read them.
pub(super) fn figure(heading: &str, charts: &[String], reading: &Markup) -> Markup {
    html! {
        section.chart {
            h3 { (heading) }
            div.reading { (reading) }
            @if charts.is_empty() {
                p.soft { "There is no chart, because nothing of this was measured." }
            } @else {
                div.scroll tabindex="0" role="group" aria-label=(heading) {
                    @for chart in charts { (PreEscaped(chart)) }
                }
            }
        }
    }
}

/// Returns sentences in a box, nothing without any.
pub(super) fn box_of<'a>(heading: &str, class: &str, sentences: impl Iterator<Item = &'a str>) -> Markup {
    let sentences: Vec<_> = sentences.collect();
    html! {
        @if !sentences.is_empty() {
            section class={ "box " (class) } aria-label=(heading) {
                h2 { (heading) }
                ul { @for sentence in sentences { li { bdi { (clean(sentence, SENTENCE)) } } } }
            }
        }
    }
}

/// Returns the command and further facts about how the page came about.
pub(super) fn origin<'a>(command: &str, facts: impl Iterator<Item = (&'a str, &'a str)>) -> Markup {
    let facts: Vec<_> = facts.collect();
    html! {
        h2 { "How it was made" }
        pre { code { (clean(command, COMMAND)) } }
        @if !facts.is_empty() {
            table.facts {
                tbody {
                    @for (fact, value) in facts {
                        tr {
                            th scope="row" { (name(fact, CELL)) }
                            td { bdi { (clean(value, VALUE)) } }
                        }
                    }
                }
            }
        }
    }
}

/// Returns the head of a table.
pub(super) fn head(headings: &[&str]) -> Markup {
    html! { thead { tr { @for heading in headings { th scope="col" { (heading) } } } } }
}

/// Lets a wide table move sideways on a narrow screen, also by keyboard.
pub(super) fn scroll(label: &str, table: &Markup) -> Markup {
    html! { div.scroll tabindex="0" role="group" aria-label={ "Table: " (label) } { (table) } }
}

#[cfg(test)]
pub(super) mod tests {
    use roxmltree::{Document, Node, ParsingOptions};

    /// Parses the page as XML. Checks what holds for every page.
    pub(in super::super) fn parse(page: &str) -> Document<'_> {
        let options = ParsingOptions { allow_dtd: true, ..ParsingOptions::default() };
        let document = Document::parse_with_options(page, options).unwrap();
        for word in page.split(|c: char| !c.is_alphanumeric()) {
            assert!(!matches!(word, "NaN" | "inf"), "a number is not written as one");
        }
        let outside = page
            .replace("xmlns=\"http://www.w3.org/2000/svg\"", "")
            .replace("href=\"https://arxiv.org/abs/2601.10387\"", "");
        for reference in ["http", "src=", "href=", "@import", "url(", "<script", "<link", "javascript:"] {
            assert!(!outside.contains(reference), "{reference}");
        }
        let tags = |tag| document.descendants().filter(move |node| node.has_tag_name(tag));
        for svg in document.descendants().filter(|node| node.tag_name().name() == "svg") {
            assert_eq!(svg.attribute("role"), Some("img"));
            assert!(svg.attribute("aria-label").is_some_and(|label| !label.is_empty()));
            assert!(svg.children().any(|child| child.tag_name().name() == "title"));
        }
        assert!(tags("th").all(|th| matches!(th.attribute("scope"), Some("row" | "col"))));
        assert_eq!(tags("h1").count(), 1);
        document
    }

    pub(in super::super) fn texts<'a>(document: &'a Document<'_>, tag: &str) -> Vec<String> {
        let text = |node: Node<'a, '_>| {
            node.descendants().filter_map(|n| n.text().filter(|_| n.is_text())).collect()
        };
        document.descendants().filter(|node| node.tag_name().name() == tag).map(text).collect()
    }
}
