//! `docs/metrics.md`: every metric with its type, labels and meaning, taken from the sources.

use std::collections::HashMap;
use std::fmt::Write;

use syn::visit::{self, Visit};
use syn::{Expr, ExprMethodCall, ItemMod, ItemStruct, Lit, Type};

use crate::sources::{is_stored, is_test, parse, workspace};

const INTRODUCTION: &str = "# Metrics\n
Every metric of `/metrics`, as it is in the sources. Written by `make generate`, compared by a test. Alerts:
[operations](operations.md#metrics-for-alerts).\n";

const PROGRAMS: [(&str, &str); 2] = [
    ("wfe-controller", "controller/src/metrics.rs"),
    ("wfe-webhook", "webhook/src/metrics.rs"),
];

#[derive(Default)]
struct Registered {
    /// Labels of each struct.
    labels: HashMap<String, Vec<String>>,
    /// Type of each field.
    types: HashMap<String, String>,
    prefix: String,
    metrics: Vec<Metric>,
}

struct Metric {
    name: String,
    help: String,
    /// Name of the field; empty for a metric that is computed at each scrape.
    field: String,
    labels: Vec<String>,
}

fn text(expression: &Expr) -> Option<String> {
    match expression {
        Expr::Lit(literal) => match &literal.lit {
            Lit::Str(text) => Some(text.value()),
            _ => None,
        },
        _ => None,
    }
}

/// The last path segment of a type, and those of its arguments.
fn words(of: &Type) -> Vec<String> {
    struct Words(Vec<String>);
    impl<'ast> Visit<'ast> for Words {
        fn visit_path_segment(&mut self, segment: &'ast syn::PathSegment) {
            self.0.push(segment.ident.to_string());
            visit::visit_path_segment(self, segment);
        }
    }
    let mut words = Words(Vec::new());
    words.visit_type(of);
    words.0
}

/// The first literal in an expression, such as the label in `&[("engine", value)]`.
fn first_text(expression: &Expr) -> Option<String> {
    struct First(Option<String>);
    impl<'ast> Visit<'ast> for First {
        fn visit_expr(&mut self, expression: &'ast Expr) {
            if self.0.is_none() {
                self.0 = text(expression);
                visit::visit_expr(self, expression);
            }
        }
    }
    let mut first = First(None);
    first.visit_expr(expression);
    first.0
}

impl<'ast> Visit<'ast> for Registered {
    fn visit_item_mod(&mut self, item: &'ast ItemMod) {
        if !is_test(&item.attrs) {
            visit::visit_item_mod(self, item);
        }
    }

    fn visit_item_struct(&mut self, item: &'ast ItemStruct) {
        let fields = item.fields.iter();
        let fields = fields.filter_map(|it| Some((it.ident.as_ref()?.to_string(), &it.ty)));
        if item.ident == "Metrics" {
            self.types
                .extend(fields.map(|(name, of)| (name, words(of).join(" "))));
        } else {
            let names = fields.map(|(name, _)| name).collect();
            self.labels.insert(item.ident.to_string(), names);
        }
    }

    fn visit_expr_method_call(&mut self, call: &'ast ExprMethodCall) {
        // The receiver first: calls are chained in the order of the text.
        visit::visit_expr_method_call(self, call);
        let arguments: Vec<_> = call.args.iter().collect();
        let texts: Vec<_> = arguments.iter().filter_map(|it| text(it)).collect();
        match (call.method.to_string().as_str(), texts.as_slice()) {
            ("sub_registry_with_prefix", [prefix]) => self.prefix = format!("{prefix}_"),
            ("register", [name, help]) => {
                let field = match arguments.last() {
                    Some(Expr::MethodCall(clone)) => match clone.receiver.as_ref() {
                        Expr::Field(field) => match &field.member {
                            syn::Member::Named(name) => name.to_string(),
                            syn::Member::Unnamed(_) => String::new(),
                        },
                        _ => String::new(),
                    },
                    _ => String::new(),
                };
                self.metrics.push(Metric {
                    name: format!("{}{name}", self.prefix),
                    help: help.clone(),
                    field,
                    labels: Vec::new(),
                });
            }
            ("encode_descriptor", [name, help]) => self.metrics.push(Metric {
                name: name.clone(),
                help: help.clone(),
                field: String::new(),
                labels: Vec::new(),
            }),
            ("encode_family", _) => {
                let label = arguments.first().and_then(|it| first_text(it));
                if let (Some(metric), Some(label)) = (self.metrics.last_mut(), label) {
                    metric.labels.push(label);
                }
            }
            _ => {}
        }
    }
}

impl Registered {
    fn row(&self, metric: &Metric) -> String {
        let of = self
            .types
            .get(&metric.field)
            .map_or("Gauge", String::as_str);
        let kind = ["Counter", "Histogram"]
            .into_iter()
            .find(|it| of.contains(it));
        let kind = kind.unwrap_or("Gauge").to_lowercase();
        let mut labels = metric.labels.clone();
        for word in of.split(' ') {
            labels.extend(self.labels.get(word).into_iter().flatten().cloned());
        }
        let labels: Vec<_> = labels.iter().map(|it| format!("`{it}`")).collect();
        let suffix = if kind == "counter" { "_total" } else { "" };
        let Metric { name, help, .. } = metric;
        format!(
            "| `{name}{suffix}` | {kind} | {} | {help} |",
            labels.join(", ")
        )
    }
}

fn document() -> String {
    let mut document = INTRODUCTION.to_owned();
    for (program, file) in PROGRAMS {
        let mut registered = Registered::default();
        registered.visit_file(&parse(&workspace().join(file)));
        assert!(registered.metrics.len() > 4, "{file}: too few metrics");
        write!(
            document,
            "\n## {program}\n\n| metric | type | labels | meaning |\n| --- | --- | --- | --- |\n"
        )
        .expect("memory");
        let mut rows: Vec<_> = registered
            .metrics
            .iter()
            .map(|it| registered.row(it))
            .collect();
        rows.sort();
        for row in rows {
            writeln!(document, "{row}").expect("memory");
        }
    }
    document
}

/// Documentation: the list of metrics is the one of the sources.
#[test]
fn metrics_document_is_what_the_sources_say() {
    is_stored("docs/metrics.md", &document());
}
