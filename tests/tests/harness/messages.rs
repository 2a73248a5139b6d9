//! `docs/messages.md`: every text that people read (refusals, conditions, Events, logs, errors), taken from
//! the sources, so that they can be read one after the other.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use syn::visit::{self, Visit};
use syn::{Attribute, Expr, ItemFn, ItemMod, Lit, LitStr, Macro};

use crate::sources::{is_stored, is_test, parse, workspace};

const INTRODUCTION: &str = "# Messages\n
Every text that people read, as it is in the sources; `{…}` stands for a value. Written by `make generate`,
compared by a test.\n";

/// A section: its title, what it says, where its texts are.
struct Section {
    title: &'static str,
    kind: Kind,
    sources: &'static [&'static str],
}

#[derive(Clone, Copy, Eq, PartialEq)]
enum Kind {
    /// Attributes `#[error("…")]`.
    Errors,
    /// Macros of `tracing`.
    Logs,
    /// Sentences in functions.
    Sentences,
    /// Words in `CamelCase`.
    Words,
}

const SECTIONS: [Section; 9] = [
    Section {
        title: "Refusals: rules of the spec",
        kind: Kind::Errors,
        sources: &["shared/model/src"],
    },
    Section {
        title: "Refusals: what takes a look-up",
        kind: Kind::Errors,
        sources: &["webhook/src"],
    },
    Section {
        title: "Conditions, skips and failures",
        kind: Kind::Sentences,
        sources: &[
            "controller/core/src/decide",
            "controller/core/src/failure.rs",
            "controller/core/src/observed.rs",
            "controller/core/src/clearing.rs",
        ],
    },
    Section {
        title: "Answers of wfe-controller why",
        kind: Kind::Sentences,
        sources: &["controller/core/src/why.rs"],
    },
    Section {
        title: "Events",
        kind: Kind::Sentences,
        sources: &["controller/src/reconcile/events.rs"],
    },
    Section {
        title: "Reasons of Events",
        kind: Kind::Words,
        sources: &[
            "controller/src/reconcile/events.rs",
            "controller/src/election.rs",
        ],
    },
    Section {
        title: "Log of wfe-controller",
        kind: Kind::Logs,
        sources: &["controller/src", "shared/peers/src", "shared/process/src"],
    },
    Section {
        title: "Log of wfe-webhook",
        kind: Kind::Logs,
        sources: &["webhook/src"],
    },
    Section {
        title: "Errors of the programs",
        kind: Kind::Errors,
        sources: &["controller/src", "shared/peers/src", "shared/process/src"],
    },
];

/// Collects the texts of one file.
struct Texts {
    kind: Kind,
    found: BTreeSet<String>,
}

impl Texts {
    fn add(&mut self, text: &str) {
        let one_line = text.split_whitespace().collect::<Vec<_>>().join(" ");
        // What is left without values must say something.
        let said = one_line.split(['{', '}']).step_by(2).collect::<String>();
        if said.chars().filter(|it| it.is_alphabetic()).count() > 4 {
            self.found.insert(one_line);
        }
    }
}

impl<'ast> Visit<'ast> for Texts {
    fn visit_item_mod(&mut self, item: &'ast ItemMod) {
        if !is_test(&item.attrs) {
            visit::visit_item_mod(self, item);
        }
    }

    fn visit_item_fn(&mut self, item: &'ast ItemFn) {
        if !is_test(&item.attrs) {
            visit::visit_item_fn(self, item);
        }
    }

    fn visit_attribute(&mut self, attribute: &'ast Attribute) {
        if self.kind == Kind::Errors && attribute.path().is_ident("error") {
            let first = attribute.parse_args_with(|input: syn::parse::ParseStream| {
                let text: LitStr = input.parse()?;
                // Values that follow.
                let _: proc_macro2::TokenStream = input.parse()?;
                Ok(text)
            });
            if let Ok(text) = first {
                self.add(&text.value());
            }
        }
    }

    fn visit_macro(&mut self, item: &'ast Macro) {
        let name = item.path.segments.last().map(|it| it.ident.to_string());
        let name = name.unwrap_or_default();
        let arguments = item.parse_body_with(|input: syn::parse::ParseStream| {
            let tokens: proc_macro2::TokenStream = input.parse()?;
            Ok(tokens.into_iter().collect::<Vec<_>>())
        });
        let texts = arguments
            .unwrap_or_default()
            .into_iter()
            .filter_map(|it| match it {
                proc_macro2::TokenTree::Literal(literal) => {
                    match syn::parse_str(&literal.to_string()) {
                        Ok(Lit::Str(text)) => Some(text.value()),
                        _ => None,
                    }
                }
                _ => None,
            });
        let levels = ["error", "warn", "info", "debug", "trace"];
        match self.kind {
            Kind::Logs if levels.contains(&name.as_str()) => {
                if let Some(text) = texts.last() {
                    self.add(&format!("{name}: {text}"));
                }
            }
            Kind::Sentences if name == "format" => {
                texts
                    .filter(|it| it.contains(' '))
                    .for_each(|it| self.add(&it));
            }
            _ => {}
        }
    }

    fn visit_expr(&mut self, expression: &'ast Expr) {
        if let (Kind::Sentences, Expr::Lit(literal)) = (self.kind, expression)
            && let Lit::Str(text) = &literal.lit
            && text.value().contains(' ')
        {
            self.add(&text.value());
        }
        if let (Kind::Words, Expr::Lit(literal)) = (self.kind, expression)
            && let Lit::Str(text) = &literal.lit
            && is_camel_case(&text.value())
        {
            self.found.insert(format!("`{}`", text.value()));
        }
        visit::visit_expr(self, expression);
    }
}

fn is_camel_case(text: &str) -> bool {
    let capitals = text.chars().filter(char::is_ascii_uppercase);
    text.chars().all(|it| it.is_ascii_alphanumeric())
        && text.starts_with(|it: char| it.is_ascii_uppercase())
        && capitals.count() > 1
}

fn sources(path: &Path, found: &mut Vec<PathBuf>) {
    if path.is_file() {
        let name = path
            .file_name()
            .and_then(|it| it.to_str())
            .unwrap_or_default();
        let test = ["tests.rs", "walk.rs"].contains(&name);
        if path.extension().is_some_and(|it| it == "rs") && !test {
            found.push(path.to_owned());
        }
        return;
    }
    let mut entries: Vec<_> = fs::read_dir(path)
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()))
        .map(|it| it.expect("an entry").path())
        .collect();
    entries.sort();
    for entry in &entries {
        sources(entry, found);
    }
}

fn document(workspace: &Path) -> String {
    let mut document = INTRODUCTION.to_owned();
    for Section {
        title,
        kind,
        sources: paths,
    } in &SECTIONS
    {
        let mut texts = Texts {
            kind: *kind,
            found: BTreeSet::new(),
        };
        let mut files = Vec::new();
        paths
            .iter()
            .for_each(|it| sources(&workspace.join(it), &mut files));
        for file in files {
            texts.visit_file(&parse(&file));
        }
        assert!(!texts.found.is_empty(), "{title}: no text was found");
        write!(document, "\n## {title}\n\n").expect("memory");
        for text in &texts.found {
            writeln!(document, "- {}", text.replace('<', "\\<")).expect("memory");
        }
    }
    document
}

/// Documentation: the list of messages is the one of the sources.
#[test]
fn messages_document_is_what_the_sources_say() {
    is_stored("docs/messages.md", &document(&workspace()));
}
