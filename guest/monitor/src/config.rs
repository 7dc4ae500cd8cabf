//! The command line. By hand: a parser crate would be a third of the binary.

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use guest_policy::postgres::Managed;
use guest_protocol::{KEEPER_PORT, SCALER_PORT};

/// What `--help` prints.
pub(crate) const HELP: &str = "\
vm-monitor: measures what the guest needs, asks for more, vetoes unsafe shrinking
  --listen ADDRESS         vsock:PORT (default vsock:10301) or unix:PATH
  --cgroup PATH            the workload's cgroup (default /sys/fs/cgroup/workload)
  --pgconnstr TEXT         connection to the local Postgres; without it no setting follows the size
  --leave-setting NAME     do not touch this setting (effective_cache_size, work_mem,
                           maintenance_work_mem, max_parallel_workers); may be repeated
  --root PATH              where proc and sys are (default /)

neonvmd (or vm-monitor neonvmd): onlines CPUs, limits the workload, powers off
  --listen ADDRESS         vsock:PORT (default vsock:25183) or unix:PATH
  --cgroup PATH            the workload's cgroup (default /sys/fs/cgroup/workload)
  --cpu-period-ms NUMBER   fixed period of the CPU quota, 1 to 1000 (default: by the quota)
  --poweroff-command TEXT  run when the power button is pressed (default /sbin/poweroff)
  --power-button on|off    listen for the power button (default on)
  --root PATH              where proc and sys are (default /)

RUST_LOG=error|warn|info|debug|trace sets what is logged (default info).
";

const DEFAULT_CGROUP: &str = "/sys/fs/cgroup/workload";

/// What the command line asks for.
#[derive(Debug)]
pub(crate) enum Wanted {
    Run(Config),
    Help,
}

/// What a process is to do.
#[derive(Debug)]
pub(crate) enum Config {
    Scaler(ScalerConfig),
    Keeper(KeeperConfig),
}

/// Where to listen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Listen {
    Vsock(u32),
    Unix(PathBuf),
}

/// Configuration of `vm-monitor`.
#[derive(Debug)]
pub(crate) struct ScalerConfig {
    pub(crate) listen: Listen,
    pub(crate) root: PathBuf,
    pub(crate) cgroup: PathBuf,
    pub(crate) postgres: Option<Box<tokio_postgres::Config>>,
    pub(crate) managed: Managed,
}

/// Configuration of `neonvmd`.
#[derive(Debug)]
pub(crate) struct KeeperConfig {
    pub(crate) listen: Listen,
    pub(crate) root: PathBuf,
    pub(crate) cgroup: PathBuf,
    /// Of the CPU quota; `None`: chosen by the quota.
    pub(crate) cpu_period: Option<Duration>,
    pub(crate) poweroff: Vec<String>,
    pub(crate) power_button: bool,
}

/// All that is wrong with a command line.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Problems(Vec<String>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|problem| writeln!(f, "{problem}"))
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    Scaler,
    Keeper,
}

/// Reads a command line, the program's name first.
pub(crate) fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Wanted, Problems> {
    let mut args = args.into_iter();
    let name = args.next().unwrap_or_default();
    let name = Path::new(&name).file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let mut args = args.map(|arg| arg.to_string_lossy().into_owned()).peekable();
    let named = args.next_if(|arg| role(arg).is_some());
    let role = named.as_deref().and_then(role).or_else(|| role(name)).unwrap_or(Role::Scaler);
    let mut parser = Parser::new(role);
    while let Some(flag) = args.next() {
        if matches!(flag.as_str(), "--help" | "-h") {
            return Ok(Wanted::Help);
        }
        let (flag, value) = match flag.split_once('=') {
            Some((flag, value)) => (flag.to_owned(), Some(value.to_owned())),
            None => (flag, args.next_if(|arg| !arg.starts_with("--"))),
        };
        parser.flag(&flag, value);
    }
    parser.finish().map(Wanted::Run)
}

fn role(name: &str) -> Option<Role> {
    match name {
        "vm-monitor" | "scaler" => Some(Role::Scaler),
        "neonvmd" | "keeper" => Some(Role::Keeper),
        _ => None,
    }
}

struct Parser {
    role: Role,
    listen: Listen,
    root: PathBuf,
    cgroup: PathBuf,
    postgres: Option<Box<tokio_postgres::Config>>,
    managed: Managed,
    cpu_period: Option<Duration>,
    poweroff: Vec<String>,
    power_button: bool,
    problems: Problems,
}

impl Parser {
    fn new(role: Role) -> Self {
        let port = if role == Role::Scaler { SCALER_PORT } else { KEEPER_PORT };
        Self {
            role,
            listen: Listen::Vsock(port),
            root: PathBuf::from("/"),
            cgroup: PathBuf::from(DEFAULT_CGROUP),
            postgres: None,
            managed: Managed::default(),
            cpu_period: None,
            poweroff: vec!["/sbin/poweroff".to_owned()],
            power_button: true,
            problems: Problems::default(),
        }
    }

    fn flag(&mut self, flag: &str, value: Option<String>) {
        let Some(value) = value.filter(|value| !value.is_empty()) else {
            return self.problem(flag, "needs a value, or is unknown");
        };
        match (flag, self.role) {
            ("--listen", _) => match listen(&value) {
                Ok(listen) => self.listen = listen,
                Err(why) => self.problem(flag, why),
            },
            ("--root", _) => self.root = PathBuf::from(value),
            ("--cgroup", _) => self.cgroup = PathBuf::from(value),
            ("--pgconnstr", Role::Scaler) => match value.parse() {
                Ok(config) => self.postgres = Some(Box::new(config)),
                Err(_) => self.problem(flag, "is no connection string"),
            },
            ("--leave-setting", Role::Scaler) => self.leave(flag, &value),
            ("--cpu-period-ms", Role::Keeper) => match value.parse() {
                Ok(millis @ 1..=1000) => self.cpu_period = Some(Duration::from_millis(millis)),
                _ => self.problem(flag, "must be a number from 1 to 1000"),
            },
            ("--poweroff-command", Role::Keeper) => {
                self.poweroff = value.split_whitespace().map(str::to_owned).collect();
            }
            ("--power-button", Role::Keeper) => match value.as_str() {
                "on" => self.power_button = true,
                "off" => self.power_button = false,
                _ => self.problem(flag, "must be on or off"),
            },
            _ => self.problem(flag, "is unknown"),
        }
    }

    fn leave(&mut self, flag: &str, name: &str) {
        match name {
            "effective_cache_size" => self.managed.effective_cache_size = false,
            "work_mem" => self.managed.work_mem = false,
            "maintenance_work_mem" => self.managed.maintenance_work_mem = false,
            "max_parallel_workers" => self.managed.parallel_workers = false,
            _ => self.problem(flag, "names a setting that is not managed"),
        }
    }

    fn problem(&mut self, flag: &str, why: &str) {
        self.problems.0.push(format!("{flag}: {why}"));
    }

    fn finish(mut self) -> Result<Config, Problems> {
        if self.poweroff.is_empty() {
            self.problem("--poweroff-command", "is empty");
        }
        if !self.problems.0.is_empty() {
            return Err(self.problems);
        }
        let Self { listen, root, cgroup, .. } = self;
        Ok(match self.role {
            Role::Scaler => {
                let Self { postgres, managed, .. } = self;
                Config::Scaler(ScalerConfig { listen, root, cgroup, postgres, managed })
            }
            Role::Keeper => {
                let Self { cpu_period, poweroff, power_button, .. } = self;
                let config =
                    KeeperConfig { listen, root, cgroup, cpu_period, poweroff, power_button };
                Config::Keeper(config)
            }
        })
    }
}

fn listen(text: &str) -> Result<Listen, &'static str> {
    match text.split_once(':') {
        Some(("vsock", port)) => match port.parse() {
            Ok(port) if port != u32::MAX => Ok(Listen::Vsock(port)),
            _ => Err("the vsock port must be a number"),
        },
        Some(("unix", path)) if !path.is_empty() => Ok(Listen::Unix(PathBuf::from(path))),
        _ => Err("must be vsock:PORT or unix:PATH"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Wanted, Problems> {
        parse(line.split(' ').map(OsString::from))
    }

    #[test]
    fn the_name_or_the_first_argument_says_the_role() {
        let keeper = |line| matches!(parsed(line), Ok(Wanted::Run(Config::Keeper(_))));
        assert!(keeper("/neonvm/bin/neonvmd"));
        assert!(keeper("vm-monitor neonvmd"));
        assert!(!keeper("/neonvm/bin/vm-monitor"));
        assert!(!keeper("neonvmd scaler"));
        assert!(matches!(parsed("anything --help"), Ok(Wanted::Help)));
    }

    #[test]
    fn everything_can_be_set() {
        let line = "vm-monitor --listen unix:/run/s --cgroup=/c --root /r --leave-setting work_mem";
        let mut args: Vec<_> = line.split(' ').map(OsString::from).collect();
        args.push("--pgconnstr".into());
        args.push("host=/var/run/postgresql user=postgres dbname=postgres".into());
        let Ok(Wanted::Run(Config::Scaler(config))) = parse(args) else { panic!("refused") };
        assert_eq!(config.listen, Listen::Unix("/run/s".into()));
        assert_eq!((config.cgroup, config.root), ("/c".into(), "/r".into()));
        assert!(config.postgres.is_some() && !config.managed.work_mem);
        let line = "neonvmd --listen vsock:7 --cpu-period-ms 50 --power-button off";
        let Ok(Wanted::Run(Config::Keeper(config))) = parsed(line) else { panic!("refused") };
        assert_eq!(config.listen, Listen::Vsock(7));
        assert_eq!(config.cpu_period, Some(Duration::from_millis(50)));
        assert_eq!(config.poweroff, ["/sbin/poweroff"]);
        assert!(!config.power_button);
    }

    #[test]
    fn all_problems_are_told_at_once() {
        let line = "vm-monitor --listen tcp:1 --cpu-period-ms 5 --leave-setting fsync --cgroup";
        let Err(Problems(problems)) = parsed(line) else { panic!("accepted") };
        assert_eq!(problems.len(), 4, "{problems:?}");
        assert!(parsed("neonvmd --cpu-period-ms 0").is_err());
        assert!(parsed("neonvmd stray").is_err());
    }
}
