//! The arrow rule (vocabulary <- brain <- binary) and the brains' purity.

use std::collections::BTreeSet;
use std::fs;

use tests_tidy::{CRATES, Kind, kind, packages, root, rust_files, tree};

/// What a brain's whole dependency tree may hold besides crates of this workspace.
const BRAIN_ALLOWED: &[&str] = &[
    "serde",
    "serde_core",
    "serde_derive",
    "serde_json",
    "thiserror",
    "thiserror-impl",
    "itoa",
    "ryu",
    "zmij",
    "memchr",
    // The index of the ledger's names.
    "foldhash",
    "hashbrown",
    "proc-macro2",
    "quote",
    "syn",
    "unicode-ident",
];

/// What a brain may never reach, whatever it is derived from.
const BRAIN_BANNED: &[&str] = &[
    "tokio",
    "hyper",
    "tower",
    "rustls",
    "kube-client",
    "kube-runtime",
    "tracing",
    "rand",
    "axum",
    "rustix",
    "nix",
];

#[test]
fn every_member_has_a_kind_and_every_kind_a_member() {
    let members: BTreeSet<String> =
        packages().unwrap().into_iter().map(|package| package.name).collect();
    let listed: BTreeSet<String> = CRATES.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(members, listed);
}

#[test]
fn package_names_are_paths() {
    for package in packages().unwrap() {
        let folder = package.folder.strip_prefix(root().canonicalize().unwrap()).unwrap();
        let expected = folder.to_string_lossy().replace('/', "-");
        assert_eq!(package.name, expected, "package name of {}", folder.display());
    }
}

#[test]
fn arrows_point_from_binary_to_brain_to_vocabulary() {
    for package in packages().unwrap() {
        let own = kind(&package.name).unwrap();
        for dependency in &package.dependencies {
            let Some(other) = kind(dependency) else { continue };
            let allowed = match own {
                Kind::Vocabulary | Kind::Brain => other == Kind::Vocabulary,
                Kind::Binary => matches!(other, Kind::Vocabulary | Kind::Brain),
                Kind::Test => true,
            };
            assert!(allowed, "{} ({own:?}) may not use {dependency} ({other:?})", package.name);
        }
    }
}

#[test]
fn brains_are_pure() {
    for (name, _) in CRATES.iter().filter(|(_, kind)| *kind == Kind::Brain) {
        for dependency in tree(name).unwrap() {
            assert!(!BRAIN_BANNED.contains(&dependency.as_str()), "{name} reaches {dependency}");
            let allowed =
                kind(&dependency).is_some() || BRAIN_ALLOWED.contains(&dependency.as_str());
            assert!(allowed, "{name} reaches {dependency}");
        }
    }
}

/// QEMU's monitor is the runner's alone.
#[test]
fn only_the_runner_speaks_to_qemu() {
    let users: Vec<String> = packages()
        .unwrap()
        .into_iter()
        .filter(|package| package.dependencies.iter().any(|name| name == "controller-qmp"))
        .map(|package| package.name)
        .collect();
    assert_eq!(users, ["host-runner"]);
}

/// What runs in a guest is reached by vsock only.
#[test]
fn nothing_in_a_guest_serves_a_network() {
    let reached = tree("guest-monitor").unwrap();
    for server in ["hyper", "axum", "tonic"] {
        assert!(!reached.iter().any(|name| name == server), "guest-monitor reaches {server}");
    }
    for (path, text) in rust_files().unwrap() {
        for word in ["TcpListener", "TcpSocket", "UdpSocket"] {
            let serves = path.starts_with("guest") && text.contains(word);
            assert!(!serves, "{} uses {word}", path.display());
        }
    }
}

#[test]
fn brains_forbid_unsafe_code_clocks_and_files() {
    let packages = packages().unwrap();
    for (name, _) in CRATES.iter().filter(|(_, kind)| *kind == Kind::Brain) {
        let folder = &packages.iter().find(|package| package.name == *name).unwrap().folder;
        let library = fs::read_to_string(folder.join("src/lib.rs")).unwrap();
        assert!(library.contains("#![forbid(unsafe_code)]"), "{name} does not forbid unsafe code");
        let lints = fs::read_to_string(folder.join(".clippy.toml"))
            .unwrap_or_else(|err| panic!("{name} has no .clippy.toml of its own: {err}"));
        for banned in [
            "tokio::spawn",
            "std::env::set_var",
            "std::time::Instant::now",
            "std::time::SystemTime::now",
            "std::env::var",
            "std::fs::read",
            "std::fs::write",
            "std::fs::File::open",
            "allow-unwrap-in-tests = true",
        ] {
            assert!(lints.contains(banned), "{name}/.clippy.toml does not mention {banned}");
        }
    }
}
