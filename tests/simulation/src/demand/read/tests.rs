//! Small files of every format, and everything that can be wrong with them.

use std::time::Duration;

use guest_units::{Bytes, MilliCpu};
use proptest::prelude::*;

use super::*;
use crate::demand::trace::{Sample, TraceMemory};

const HEADER: &str =
    "Timestamp [ms];\tCPU cores;\tCPU usage [MHZ];\tCPU usage [%];\tMemory usage [KB]";

fn parse(text: &str) -> Result<Vec<Trace>, TraceProblem> {
    parse_traces(Path::new("folder/vm.csv"), text)
}

fn bitbrains(rows: &[(u64, &str, &str)]) -> String {
    let row =
        |(time, cpu, memory): &(u64, &str, &str)| format!("{time};\t1;\t9;\t{cpu};\t{memory}\n");
    format!("{HEADER}\n{}", rows.iter().map(row).collect::<String>())
}

fn nab(rows: &[(&str, &str)]) -> String {
    let row = |(time, value): &(&str, &str)| format!("2014-02-14 {time},{value}\n");
    format!("timestamp,value\n{}", rows.iter().map(row).collect::<String>())
}

fn planetlab(values: &[&str]) -> String {
    let line: Vec<_> = values.iter().copied().cycle().take(288).collect();
    line.join(",")
}

fn cpus(trace: &Trace) -> Vec<u32> {
    trace.samples().iter().map(|sample| sample.cpu.0).collect()
}

#[test]
fn bitbrains_has_its_own_memory() {
    let text = bitbrains(&[(1_376_314_846, "0.5", "1024.0"), (1_376_315_146, "25", "2097152.0")]);
    let [trace] = &parse(&text).unwrap()[..] else { panic!() };
    assert_eq!((trace.name(), trace.resolution()), ("vm", Duration::from_secs(300)));
    assert_eq!(
        (trace.memory(), trace.duration()),
        (TraceMemory::Recorded, Duration::from_secs(600))
    );
    assert_eq!(
        trace.samples(),
        [
            Sample { cpu: MilliCpu(20), memory: Bytes::from_mib(1) },
            Sample { cpu: MilliCpu(1000), memory: Bytes::from_gib(2) },
        ]
    );
    // The same in milliseconds, as the header says.
    let text = bitbrains(&[(1_376_314_846_000, "0.5", "1"), (1_376_315_146_000, "25", "2")]);
    assert_eq!(parse(&text).unwrap()[0].resolution(), Duration::from_secs(300));
}

#[test]
fn nab_is_percent_or_a_count() {
    let text = nab(&[("14:30:00", "6.456"), ("14:35:00", "100")]);
    let trace = &parse(&text).unwrap()[0];
    assert_eq!((cpus(trace), trace.resolution()), (vec![258, 4000], Duration::from_secs(300)));
    assert_eq!(trace.memory(), TraceMemory::Derived);
    let text = nab(&[("00:00:00", "1000"), ("00:30:00", "20000"), ("01:00:00", "10000")]);
    let trace = &parse(&text).unwrap()[0];
    assert_eq!(
        (cpus(trace), trace.resolution()),
        (vec![200, 4000, 2000], Duration::from_secs(1800))
    );
    // Of 1100 values the 1099th decides: one outlier is 100 percent like all others.
    let time = |n: u32| format!("2014-01-{:02} {:02}:{:02}:00", n / 48 + 1, n / 2 % 24, n % 2 * 30);
    let value = |n: u32| if n == 5 { 5000 } else { 10 };
    let rows: String = (0..1100).map(|n| format!("{},{}\n", time(n), value(n))).collect();
    let trace = &parse(&format!("timestamp,value\n{rows}")).unwrap()[0];
    assert!(cpus(trace).iter().all(|cpu| *cpu == 4000));
}

#[test]
fn planetlab_has_a_vm_a_line() {
    let text = format!("{}\n\n{}\r\n", planetlab(&["24", "100"]), planetlab(&["0"]));
    let traces = parse(&text).unwrap();
    let names: Vec<_> = traces.iter().map(Trace::name).collect();
    assert_eq!(names, ["vm:1", "vm:3"]);
    assert_eq!(&cpus(&traces[0])[..3], [960, 4000, 960]);
    assert_eq!(traces[1].duration(), Duration::from_secs(24 * 3600));
}

#[test]
fn formats_are_told_by_the_first_line() {
    for (text, format) in [
        (HEADER, Some(TraceFormat::Bitbrains)),
        ("timestamp,value", Some(TraceFormat::Nab)),
        ("\n Timestamp , Value\n", Some(TraceFormat::Nab)),
        ("1,2", Some(TraceFormat::Planetlab)),
        ("# Traces", None),
        ("a;b", None),
        ("", None),
    ] {
        assert_eq!(TraceFormat::detect(text), format, "{text:?}");
    }
    let text = format!("\u{feff}{}", nab(&[("14:30:00", "1"), ("14:35:00", "1")]));
    assert!(parse(&text).is_ok());
}

#[test]
fn four_missing_samples_hold_the_last_and_five_are_a_gap() {
    let at = |third| parse(&bitbrains(&[(1000, "1", "1"), (1300, "2", "1"), (third, "3", "1")]));
    for (third, found) in [
        (1600, vec![40, 80, 120]),
        (1585, vec![40, 80, 120]),
        (1615, vec![40, 80, 120]),
        (1900, vec![40, 80, 80, 120]),
        (2800, vec![40, 80, 80, 80, 80, 80, 120]),
    ] {
        assert_eq!(cpus(&at(third).unwrap()[0]), found, "{third}");
    }
    for (third, told) in [
        (1584, "from 1300 to 1584 is not a multiple of 300s"),
        (1616, "from 1300 to 1616 is not a multiple of 300s"),
        (1310, "from 1300 to 1310 is not a multiple of 300s"),
        (3100, "nothing between 1300 and 3100"),
        (u64::MAX >> 1, "is not a time"),
    ] {
        let problem = at(third).unwrap_err().to_string();
        let place = "folder/vm.csv:4: field `Timestamp [ms]`: ";
        assert!(problem.starts_with(place) && problem.contains(told), "{problem}");
    }
}

#[test]
fn what_is_wrong_is_told_with_its_place() {
    let good = ("14:30:00", "1");
    let values = |value| nab(&[good, ("14:35:00", value)]);
    let times = |time| nab(&[good, ("14:35:00", "1"), (time, "1")]);
    let short = planetlab(&["1"]);
    let line = short.as_str();
    let cases = [
        (String::new(), "folder/vm.csv: the file is empty"),
        (" \n\n".to_owned(), "folder/vm.csv: the file is empty"),
        (
            "what,ever\n1,2".to_owned(),
            "folder/vm.csv: not a known format: the first line begins with \"what,ever\"",
        ),
        (
            "timestamp,value\n".to_owned(),
            "folder/vm.csv: fewer than two rows: the resolution is not known",
        ),
        (nab(&[good]), "folder/vm.csv: fewer than two rows: the resolution is not known"),
        (values("x"), "folder/vm.csv:3: field `value`: \"x\" is not a number"),
        (values(""), "folder/vm.csv:3: field `value`: \"\" is not a number"),
        (values("-1"), "folder/vm.csv:3: field `value`: \"-1\" is negative"),
        (values("NaN"), "folder/vm.csv:3: field `value`: \"NaN\" is not finite"),
        (values("1e999"), "folder/vm.csv:3: field `value`: \"1e999\" is not finite"),
        (values("1e16"), "folder/vm.csv:3: field `value`: \"1e16\" is absurdly large"),
        (values("1,2"), "folder/vm.csv:3: 3 fields, not 2"),
        ("timestamp,value\n2014-02-14 14:30:00\n".to_owned(), "folder/vm.csv:2: 1 fields, not 2"),
        ("timestamp,cpu\n".to_owned(), "folder/vm.csv:1: the header has no column `value`"),
        (
            times("14:35:00"),
            "folder/vm.csv:4: field `timestamp`: 2014-02-14 14:35:00 is not after 2014-02-14 14:35:00, the time of the row before",
        ),
        (
            times("14:30:00"),
            "folder/vm.csv:4: field `timestamp`: 2014-02-14 14:30:00 is not after 2014-02-14 14:35:00, the time of the row before",
        ),
        (
            times("15:35:00"),
            "folder/vm.csv:4: field `timestamp`: nothing between 2014-02-14 14:35:00 and 2014-02-14 15:35:00, where one sample every 300s should be and at most 4 in a row may be missing",
        ),
        (
            times("14:38:00"),
            "folder/vm.csv:4: field `timestamp`: from 2014-02-14 14:35:00 to 2014-02-14 14:38:00 is not a multiple of 300s",
        ),
        (
            times("25:00:00"),
            "folder/vm.csv:4: field `timestamp`: \"2014-02-14 25:00:00\" is not a time",
        ),
        (
            bitbrains(&[(0, "1", "1"), (86_401, "1", "1")]),
            "folder/vm.csv:3: field `Timestamp [ms]`: a resolution of 86401s is not between a second and a day",
        ),
        (
            bitbrains(&[(0, "1001", "1")]),
            "folder/vm.csv:2: field `CPU usage [%]`: \"1001\" is absurdly large",
        ),
        (
            bitbrains(&[(0, "1", "1e12")]),
            "folder/vm.csv:2: field `Memory usage [KB]`: \"1e12\" is absurdly large",
        ),
        (
            bitbrains(&[(0, "1", "-1")]),
            "folder/vm.csv:2: field `Memory usage [KB]`: \"-1\" is negative",
        ),
        (
            HEADER.replace("Memory usage [KB]", "Disk"),
            "folder/vm.csv:1: the header has no column `Memory usage [KB]`",
        ),
        (
            format!("{HEADER}\n\n-1;1;1;1;1\n"),
            "folder/vm.csv:3: field `Timestamp [ms]`: \"-1\" is negative",
        ),
        (
            format!("{HEADER}\n1.5;1;1;1;1\n"),
            "folder/vm.csv:2: field `Timestamp [ms]`: \"1.5\" is not a time",
        ),
        (format!("{line}\n\r\n{line},1\n"), "folder/vm.csv:3: 289 fields, not 288"),
        (format!("{line}\n \n{}\n", &line[2..]), "folder/vm.csv:3: 287 fields, not 288"),
        (
            format!("{line}\n{}", planetlab(&["1", "1", "?"])),
            "folder/vm.csv:2: field `3`: \"?\" is not a number",
        ),
        (planetlab(&["1", "-0.5"]), "folder/vm.csv:1: field `2`: \"-0.5\" is negative"),
    ];
    for (text, told) in cases {
        assert_eq!(parse(&text).unwrap_err().to_string(), told, "{text:.100}");
    }
}

/// A folder of this test alone, gone afterwards.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("traces-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.join(name);
        fs::write(&path, content).unwrap();
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _best_effort = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn a_folder_is_read_in_the_order_of_its_names() {
    let folder = Folder::new("order");
    folder.write("README.md", "# Traces");
    folder.write("LICENSE", "all yours");
    folder.write("b.csv", planetlab(&["1"]));
    folder.write("a.csv", nab(&[("14:30:00", "1"), ("14:35:00", "2")]));
    let one = folder.write("c.csv", bitbrains(&[(0, "1", "1"), (60, "1", "1")]));
    let traces = read_traces(&folder.0).unwrap();
    assert_eq!(traces.iter().map(Trace::name).collect::<Vec<_>>(), ["a", "b:1", "c"]);
    assert_eq!(read_traces(&one).unwrap().len(), 1);
}

#[test]
fn a_folder_with_anything_wrong_is_not_read() {
    let folder = Folder::new("wrong");
    let problem = || read_traces(&folder.0).unwrap_err().to_string();
    assert!(problem().ends_with(": no trace in this folder"), "{}", problem());
    folder.write("a.csv", planetlab(&["1"]));
    let unknown = folder.write("b.txt", "notes");
    assert!(problem().contains("b.txt: not a known format"), "{}", problem());
    folder.write("b.txt", [0xff, b'1']);
    assert!(problem().ends_with("b.txt: the file is not text"), "{}", problem());
    fs::remove_file(&unknown).unwrap();
    // Sparse: it takes no room.
    File::create(&unknown).unwrap().set_len(LARGEST + 1).unwrap();
    assert!(problem().ends_with("b.txt: the file has more than 67108864 bytes"), "{}", problem());
    fs::remove_file(&unknown).unwrap();
    fs::create_dir(folder.0.join("b")).unwrap();
    assert!(problem().starts_with("read "), "{}", problem());
    let missing = read_traces(&folder.0.join("none")).unwrap_err();
    assert!(matches!(missing, TraceProblem::Read { .. }), "{missing}");
}

proptest! {
    #[test]
    fn no_text_makes_a_reader_panic(
        header in prop::sample::select(vec![HEADER, "timestamp,value", "1,2", ""]),
        rows in prop::collection::vec("[-0-9.;,:eEna \t\r]{0,60}", 0..6),
    ) {
        let text = format!("{header}\n{}", rows.join("\n"));
        for trace in parse(&text).unwrap_or_default() {
            prop_assert!(!trace.samples().is_empty());
        }
    }

    #[test]
    fn good_rows_come_back(
        start in 0_u64..2_000_000_000,
        step in 1_u64..86_400,
        rows in prop::collection::vec((0.0..100.0_f64, 0_u64..1 << 30), 2..100),
    ) {
        let times = (0_u64..).map(|n| start + n * step);
        let line = |(time, (cpu, memory)): (u64, &(f64, u64))| format!("{time};1;1;{cpu};{memory}\n");
        let text: String = times.zip(&rows).map(line).collect();
        let traces = parse(&format!("{HEADER}\n{text}")).unwrap();
        prop_assert_eq!(traces[0].resolution(), Duration::from_secs(step));
        prop_assert_eq!(traces[0].samples().len(), rows.len());
        for (sample, (cpu, memory)) in traces[0].samples().iter().zip(&rows) {
            prop_assert!((f64::from(sample.cpu.0) - cpu * 40.0).abs() <= 0.5);
            prop_assert_eq!(sample.memory, Bytes::from_kib(*memory));
        }
    }
}
