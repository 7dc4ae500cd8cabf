//! Where this machine gets its Debian packages from, plus the backports of the same place: QEMU is newer there.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

/// The release that all trees are made of.
pub const RELEASE: &str = "bookworm";

/// The machine's own sources of the release, and one more stanza for its backports, in the form of a `.sources` file.
pub fn sources() -> Result<String> {
    let mut stanzas = Vec::new();
    let folder = Path::new("/etc/apt/sources.list.d");
    if let Ok(entries) = fs::read_dir(folder) {
        let mut paths: Vec<_> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
        paths.sort();
        for path in paths.iter().filter(|path| path.extension().is_some_and(|end| end == "sources"))
        {
            let text =
                fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
            stanzas.extend(stanzas_of_release(&text));
        }
    }
    if let Ok(text) = fs::read_to_string("/etc/apt/sources.list") {
        stanzas.extend(text.lines().filter_map(from_one_line));
    }
    with_backports(&stanzas).with_context(|| {
        format!("find Debian {RELEASE} among this machine's package sources in /etc/apt")
    })
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Stanza {
    uris: String,
    suites: Vec<String>,
    signed_by: Option<String>,
}

impl Stanza {
    fn text(&self) -> String {
        let signed = self.signed_by.iter().map(|key| format!("Signed-By: {key}\n"));
        format!(
            "Types: deb\nURIs: {}\nSuites: {}\nComponents: main\n{}",
            self.uris,
            self.suites.join(" "),
            signed.collect::<String>()
        )
    }
}

fn stanzas_of_release(text: &str) -> Vec<Stanza> {
    let uncommented: Vec<&str> =
        text.lines().filter(|line| !line.trim_start().starts_with('#')).collect();
    uncommented.split(|line| line.trim().is_empty()).filter_map(stanza).collect()
}

fn stanza(lines: &[&str]) -> Option<Stanza> {
    let field = |name: &str| {
        lines.iter().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.trim().eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
        })
    };
    let disabled = field("Enabled").is_some_and(|value| value == "no");
    let binary = field("Types").is_some_and(|types| types.split_whitespace().any(|t| t == "deb"));
    if disabled || !binary {
        return None;
    }
    let suites = of_release(field("Suites")?.split_whitespace());
    // A key that is written out in the file spans lines; machines that do so are left to their keyring.
    let signed_by = field("Signed-By").filter(|path| path.starts_with('/'));
    (!suites.is_empty()).then_some(Stanza { uris: field("URIs")?, suites, signed_by })
}

/// The old form: `deb [options] URI suite component...`.
fn from_one_line(line: &str) -> Option<Stanza> {
    let rest = line.trim().strip_prefix("deb ")?.trim_start();
    let (options, rest) = match rest.strip_prefix('[') {
        Some(rest) => rest.split_once(']')?,
        None => ("", rest),
    };
    let mut words = rest.split_whitespace();
    let uris = words.next()?.to_owned();
    let suites = of_release(words.next());
    let signed_by = options
        .split_whitespace()
        .find_map(|option| option.strip_prefix("signed-by=").map(str::to_owned));
    (!suites.is_empty()).then_some(Stanza { uris, suites, signed_by })
}

/// The release, its updates and its security fixes; backports are added once, by us.
fn of_release<'a>(suites: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    let wanted =
        [String::from(RELEASE), format!("{RELEASE}-updates"), format!("{RELEASE}-security")];
    suites
        .into_iter()
        .filter(|suite| wanted.iter().any(|w| w == suite))
        .map(str::to_owned)
        .collect()
}

fn with_backports(stanzas: &[Stanza]) -> Option<String> {
    let main = stanzas.iter().find(|stanza| stanza.suites.iter().any(|suite| suite == RELEASE))?;
    let backports = Stanza { suites: vec![format!("{RELEASE}-backports")], ..main.clone() };
    let all: Vec<String> = stanzas.iter().chain([&backports]).map(Stanza::text).collect();
    Some(all.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "Types: deb\n# an older place\nURIs: http://a.example/debian\nSuites: bookworm bookworm-updates\n\
        Components: main\nSigned-By: /k.gpg\n\nTypes: deb\nURIs: http://other.example\nSuites: nodistro\n\n\
        Types: deb-src\nURIs: http://a.example/debian\nSuites: bookworm\n\n\
        Types: deb\nURIs: http://s.example/security\nSuites: bookworm-security\nSigned-By: /k.gpg\n";

    #[test]
    fn foreign_and_source_stanzas_are_left_out_and_backports_added() {
        let stanzas = stanzas_of_release(FILE);
        assert_eq!(stanzas.len(), 2);
        let text = with_backports(&stanzas).unwrap();
        assert!(!text.contains("other") && !text.contains("deb-src"));
        let last = "Types: deb\nURIs: http://a.example/debian\nSuites: bookworm-backports\nComponents: main\nSigned-By: /k.gpg\n";
        assert!(text.ends_with(last), "{text}");
    }

    #[test]
    fn the_old_form_is_understood() {
        let found = from_one_line(
            "deb [arch=amd64 signed-by=/k.gpg] http://a.example/debian bookworm main",
        )
        .unwrap();
        assert_eq!(
            (found.uris.as_str(), found.signed_by.as_deref()),
            ("http://a.example/debian", Some("/k.gpg"))
        );
        assert_eq!(from_one_line("deb http://a.example/debian trixie main"), None);
        assert_eq!(from_one_line("# deb http://a.example/debian bookworm main"), None);
    }

    #[test]
    fn a_machine_without_the_release_has_no_sources() {
        assert_eq!(with_backports(&[]), None);
    }
}
