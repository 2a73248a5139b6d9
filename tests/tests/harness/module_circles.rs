//! No circle of modules in any crate: a child never imports its parent, and rules are never tied to
//! effects by a detour. Read from the sources, since the compiler allows circles.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use syn::visit::{self, Visit};
use syn::{Item, ItemMod, ItemUse, UseTree, Visibility};

use crate::sources::{is_test, parse, workspace};

const CRATES: [&str; 9] = [
    "shared/model",
    "shared/peers",
    "shared/process",
    "controller/core",
    "controller",
    "webhook",
    "tests",
    "tests/src/bin/bench",
    "tests/src/bin/demo",
];

type Module = Vec<String>;

/// Imports of one crate: from each module to the modules it names.
#[derive(Default)]
struct Imports {
    modules: BTreeSet<Module>,
    paths: BTreeMap<Module, BTreeSet<Module>>,
}

/// Collects the paths of one file that begin with `crate`, `self` or `super`.
struct Paths<'a> {
    module: &'a Module,
    found: BTreeSet<Module>,
}

impl Paths<'_> {
    /// The absolute path, where `segments` say where they begin.
    fn add(&mut self, segments: &[String]) {
        let mut base = match segments.first().map(String::as_str) {
            Some("crate") => Module::new(),
            Some("self" | "super") => self.module.clone(),
            _ => return,
        };
        for segment in segments {
            match segment.as_str() {
                "crate" | "self" => {}
                "super" => drop(base.pop()),
                name => base.push(name.to_owned()),
            }
        }
        self.found.insert(base);
    }

    fn add_tree(&mut self, before: &[String], tree: &UseTree) {
        let mut path = before.to_vec();
        match tree {
            UseTree::Path(inner) => {
                path.push(inner.ident.to_string());
                self.add_tree(&path, &inner.tree);
            }
            UseTree::Group(group) => group.items.iter().for_each(|it| self.add_tree(before, it)),
            UseTree::Name(name) => {
                path.push(name.ident.to_string());
                self.add(&path);
            }
            UseTree::Rename(name) => {
                path.push(name.ident.to_string());
                self.add(&path);
            }
            UseTree::Glob(_) => self.add(&path),
        }
    }
}

impl<'ast> Visit<'ast> for Paths<'_> {
    fn visit_item_use(&mut self, item: &'ast ItemUse) {
        self.add_tree(&[], &item.tree);
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let segments = path.segments.iter().map(|it| it.ident.to_string());
        self.add(&segments.collect::<Vec<_>>());
        visit::visit_path(self, path);
    }

    /// `pub(super)` imports nothing.
    fn visit_visibility(&mut self, _: &'ast Visibility) {}

    /// Tests may look at what they test.
    fn visit_item_mod(&mut self, item: &'ast ItemMod) {
        if !is_test(&item.attrs) {
            visit::visit_item_mod(self, item);
        }
    }
}

impl Imports {
    /// Reads a module and its children.
    fn read(&mut self, file: &Path, module: &Module) {
        let parsed = parse(file);
        let mut paths = Paths {
            module,
            found: BTreeSet::new(),
        };
        paths.visit_file(&parsed);
        self.modules.insert(module.clone());
        self.paths.insert(module.clone(), paths.found);
        let is_root = module.is_empty() || file.ends_with("mod.rs");
        let folder = file.parent().expect("a folder");
        let folder = if is_root {
            folder.to_owned()
        } else {
            folder.join(module.last().expect("a name"))
        };
        for item in &parsed.items {
            let Item::Mod(child) = item else { continue };
            if child.content.is_some() || is_test(&child.attrs) {
                continue;
            }
            let name = child.ident.to_string();
            let candidates = [format!("{name}.rs"), format!("{name}/mod.rs")];
            let found = candidates.iter().map(|it| folder.join(it));
            let found = found
                .into_iter()
                .find(|it| it.exists())
                .expect("the module's file");
            let mut path = module.clone();
            path.push(name);
            self.read(&found, &path);
        }
    }

    /// The module that a path leads to: the longest beginning that is one.
    fn module_of(&self, path: &Module) -> Module {
        let lengths = (0..=path.len()).rev();
        let beginnings = lengths
            .filter_map(|it| path.get(..it))
            .map(<[String]>::to_vec);
        let mut modules = beginnings.filter(|it| self.modules.contains(it));
        modules.next().unwrap_or_default()
    }

    /// Modules that import each other, by whatever detour.
    fn circle(&self) -> Option<Vec<String>> {
        let imports = |module: &Module| -> BTreeSet<Module> {
            let paths = self.paths.get(module).into_iter().flatten();
            let modules = paths.map(|it| self.module_of(it));
            modules.filter(|it| it != module).collect()
        };
        for start in &self.modules {
            let mut trails = vec![vec![start.clone()]];
            let mut seen = BTreeSet::new();
            while let Some(trail) = trails.pop() {
                for next in imports(trail.last().expect("a module")) {
                    if next == *start {
                        let names = trail.iter().chain([start]);
                        return Some(
                            names
                                .map(|it| format!("crate::{}", it.join("::")))
                                .collect(),
                        );
                    }
                    if seen.insert(next.clone()) {
                        trails.push([trail.clone(), vec![next]].concat());
                    }
                }
            }
        }
        None
    }
}

/// Structure: no module of a crate imports itself by a detour.
#[test]
fn modules_of_each_crate_have_no_circle() {
    let workspace = workspace();
    let mut circles = Vec::new();
    for name in CRATES {
        let roots = ["src/lib.rs", "lib.rs", "main.rs"];
        let candidates = roots.iter().map(|it| workspace.join(name).join(it));
        let root: PathBuf = candidates
            .into_iter()
            .find(|it| it.exists())
            .expect("a crate");
        let mut imports = Imports::default();
        imports.read(&root, &Module::new());
        assert!(imports.modules.len() > 2, "{name}: {:?}", imports.modules);
        circles.extend(
            imports
                .circle()
                .map(|it| format!("{name}: {}", it.join(" -> "))),
        );
    }
    assert!(circles.is_empty(), "{circles:#?}");
}

/// Structure: the check above would find a circle.
#[test]
fn module_circle_by_a_detour_is_found() {
    let module = |path: &str| -> Module { path.split("::").map(str::to_owned).collect() };
    let mut imports = Imports::default();
    for (from, to) in [("a", "b::Thing"), ("b", "c"), ("c", "a::other::Thing")] {
        imports.modules.insert(module(from));
        imports.paths.insert(module(from), [module(to)].into());
    }
    let circle = imports.circle().expect("a circle");
    assert_eq!(circle, ["crate::a", "crate::b", "crate::c", "crate::a"]);
    imports.paths.insert(module("c"), BTreeSet::new());
    assert_eq!(imports.circle(), None);
}
