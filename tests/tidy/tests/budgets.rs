//! Budgets and habits of every Rust file: a reason on top, sizes, where `unsafe` may stand.

use std::path::Path;

use syn::spanned::Spanned;
use syn::visit::Visit;
use tests_tidy::{is_generated, production, rust_files};

/// Production lines of a file; 400 is the aim.
const FILE_LINES: usize = 600;
/// Lines of a function; 60 is the aim.
const FUNCTION_LINES: usize = 100;
/// Modules that need `unsafe`, each with its reason in an `expect` attribute there.
const UNSAFE_FILES: &[&str] = &[];

#[test]
fn every_file_says_what_it_is_for() {
    let silent: Vec<_> = rust_files()
        .unwrap()
        .into_iter()
        .filter(|(_, text)| !is_generated(text) && !text.starts_with("//!"))
        .map(|(path, _)| path)
        .collect();
    assert!(silent.is_empty(), "files that do not open with //!: {silent:?}");
}

#[test]
fn files_stay_within_their_budget() {
    for (path, text) in rust_files().unwrap() {
        let lines = production(&text).lines().count();
        assert!(is_generated(&text) || lines <= FILE_LINES, "{}: {lines} lines", path.display());
    }
}

#[test]
fn functions_stay_within_their_budget() {
    for (path, text) in rust_files().unwrap() {
        if is_generated(&text) {
            continue;
        }
        let file = syn::parse_file(&text).unwrap_or_else(|err| panic!("{}: {err}", path.display()));
        Lengths { path: &path }.visit_file(&file);
    }
}

struct Lengths<'a> {
    path: &'a Path,
}

impl Lengths<'_> {
    fn check(&self, signature: &syn::Signature, block: &syn::Block) {
        let lines = block.span().end().line - signature.span().start().line + 1;
        let (file, name) = (self.path.display(), &signature.ident);
        assert!(lines <= FUNCTION_LINES, "{file}: fn {name} has {lines} lines");
    }
}

impl<'ast> Visit<'ast> for Lengths<'_> {
    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        self.check(&item.sig, &item.block);
        syn::visit::visit_item_fn(self, item);
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        self.check(&item.sig, &item.block);
        syn::visit::visit_impl_item_fn(self, item);
    }
}

#[test]
fn unsafe_stands_only_where_it_is_listed() {
    let mut found: Vec<String> = rust_files()
        .unwrap()
        .into_iter()
        .filter(|(path, text)| !is_generated(text) && !path.starts_with("tests/tidy"))
        .filter(|(_, text)| {
            text.contains("#[expect(unsafe_code") || text.contains("#![expect(unsafe_code")
        })
        .map(|(path, _)| path.to_string_lossy().into_owned())
        .collect();
    found.sort();
    assert_eq!(found, UNSAFE_FILES);
}
