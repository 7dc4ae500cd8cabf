//! The VM's disks: a writable layer over the image, and the disk that carries the configuration.
//!
//! The configuration disk is a plain tar archive: a few hundred bytes that any guest can unpack without a
//! file system driver. It holds what the workload is to run with:
//!
//! | file | content |
//! |---|---|
//! | `env.sh` | `export NAME='value'` lines |
//! | `command.sh`, `args.sh` | one line of quoted words; absent when the image's own count |
//! | `sysctl.conf` | lines for `sysctl -p` |
//! | `resolv.conf` | the pod's own, so that names mean the same in the guest |

use std::fs::{DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use host_protocol::RunnerSpec;

/// A core file in the working directory of the process that crashed, whatever the image says.
const SYSCTL: [&str; 2] = ["kernel.core_pattern=core", "kernel.core_uses_pid=1"];

/// What can go wrong.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DiskError {
    #[error("write the configuration disk {path}")]
    Write { path: PathBuf, source: io::Error },
    #[error("make the folder {path}")]
    Folder { path: PathBuf, source: io::Error },
}

/// Makes a folder that only this user can enter; one that exists stays as it is.
pub(crate) fn make_folder(path: &Path) -> Result<(), DiskError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|source| DiskError::Folder { path: path.to_owned(), source })
}

/// Arguments of `qemu-img` for a writable layer over an image that stays as it is.
pub(crate) fn overlay_arguments(image: &Path, overlay: &Path) -> Vec<String> {
    let name = |path: &Path| path.display().to_string();
    let words = ["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b"];
    words.into_iter().map(str::to_owned).chain([name(image), name(overlay)]).collect()
}

/// Writes the configuration disk. Its environment may hold secrets: nobody else may read it.
pub(crate) fn write_config(path: &Path, spec: &RunnerSpec, resolv: &str) -> Result<(), DiskError> {
    let write = || -> io::Result<()> {
        let archive = config_archive(spec, resolv)?;
        let mut file =
            OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(path)?;
        file.write_all(&archive)
    };
    write().map_err(|source| DiskError::Write { path: path.to_owned(), source })
}

/// The archive; its length is a multiple of a disk's sector.
fn config_archive(spec: &RunnerSpec, resolv: &str) -> io::Result<Vec<u8>> {
    let mut files = vec![("env.sh", environment(spec)), ("sysctl.conf", sysctl(spec))];
    for (name, words) in [("command.sh", &spec.command), ("args.sh", &spec.args)] {
        if !words.is_empty() {
            files.push((name, quoted_line(words)));
        }
    }
    files.push(("resolv.conf", resolv.to_owned()));
    let mut archive = tar::Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = tar::Header::new_ustar();
        header.set_mode(0o600);
        header.set_size(content.len() as u64);
        header.set_mtime(0);
        archive.append_data(&mut header, name, content.as_bytes())?;
    }
    archive.into_inner()
}

fn environment(spec: &RunnerSpec) -> String {
    spec.env.iter().map(|var| format!("export {}={}\n", var.name, quoted(&var.value))).collect()
}

fn sysctl(spec: &RunnerSpec) -> String {
    let own = SYSCTL.into_iter().chain(spec.sysctl.iter().map(String::as_str));
    own.map(|line| format!("{line}\n")).collect()
}

fn quoted_line(words: &[String]) -> String {
    let words: Vec<String> = words.iter().map(|word| quoted(word)).collect();
    words.join(" ") + "\n"
}

/// One word of a shell that means exactly `text`.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::io::Read;

    use host_protocol::EnvVar;

    use super::*;
    use crate::testing::spec;

    fn files(archive: &[u8]) -> BTreeMap<String, String> {
        let mut archive = tar::Archive::new(archive);
        let entries = archive.entries().unwrap().map(|entry| {
            let mut entry = entry.unwrap();
            let mut content = String::new();
            entry.read_to_string(&mut content).unwrap();
            (entry.path().unwrap().display().to_string(), content)
        });
        entries.collect()
    }

    #[test]
    fn a_vm_without_wishes() {
        let archive = config_archive(&spec(), "nameserver 10.96.0.10\n").unwrap();
        assert_eq!(archive.len() % 512, 0);
        let files = files(&archive);
        let names: Vec<_> = files.keys().map(String::as_str).collect();
        assert_eq!(names, ["env.sh", "resolv.conf", "sysctl.conf"]);
        assert_eq!(files["env.sh"], "");
        assert_eq!(files["sysctl.conf"], "kernel.core_pattern=core\nkernel.core_uses_pid=1\n");
        assert_eq!(files["resolv.conf"], "nameserver 10.96.0.10\n");
    }

    #[test]
    fn words_survive_a_shell() {
        let nasty = ["it's", "$(reboot)", "a b", "", "`x`", "line\nbreak", "\"\\", "ü*?"];
        let mut spec = spec();
        spec.command = vec!["/bin/sh".to_owned()];
        spec.args = nasty.iter().map(|word| (*word).to_owned()).collect();
        spec.sysctl = vec!["vm.swappiness=1".to_owned()];
        spec.env = nasty
            .iter()
            .enumerate()
            .map(|(i, value)| EnvVar { name: format!("V{i}"), value: (*value).to_owned() })
            .collect();
        let files = files(&config_archive(&spec, "").unwrap());
        assert_eq!(files["command.sh"], "'/bin/sh'\n");
        assert!(files["sysctl.conf"].ends_with("\nvm.swappiness=1\n"));

        let mut script = files["env.sh"].clone();
        script.push_str("set -- ");
        script.push_str(files["args.sh"].trim_end_matches('\n'));
        script.push_str("\nprintf '%s|' \"$@\"");
        for i in 0..nasty.len() {
            script.push_str(&format!(" \"$V{i}\""));
        }
        let output = std::process::Command::new("sh").args(["-c", &script]).output().unwrap();
        let expected = nasty.join("|") + "|";
        assert_eq!(String::from_utf8(output.stdout).unwrap(), expected.repeat(2));
    }

    #[test]
    fn others_cannot_read_the_configuration() {
        use std::os::unix::fs::PermissionsExt;
        let path = std::env::temp_dir().join(format!("runner-config-{}", std::process::id()));
        write_config(&path, &spec(), "").unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        std::fs::remove_file(&path).unwrap();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn the_overlay_names_its_image() {
        let words =
            overlay_arguments(Path::new("/vm/image/disk.qcow2"), Path::new("/disks/root.qcow2"));
        assert_eq!(
            words.join(" "),
            "create -q -f qcow2 -F qcow2 -b /vm/image/disk.qcow2 /disks/root.qcow2"
        );
    }
}
