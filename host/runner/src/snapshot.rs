//! Text that a test compares with a committed file; `UPDATE_EXPECT=1` writes the files anew.

use std::path::Path;

/// Fails when `text` differs from `tests/snapshots/NAME`.
pub(crate) fn check(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/snapshots").join(name);
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        std::fs::write(&path, text).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(expected == text, "{} differs from:\n{text}", path.display());
}
