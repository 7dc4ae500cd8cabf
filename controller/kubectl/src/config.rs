//! What the user wrote ([`Args`]) and what it means ([`Config`]).

use std::path::PathBuf;

/// Shows why a VM has its size, and the sizes of all VMs.
#[derive(Debug, clap::Parser)]
#[command(name = "kubectl-vm", bin_name = "kubectl vm", version)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: CommandArgs,
    /// Context of the kubeconfig to use.
    #[arg(long, global = true)]
    context: Option<String>,
    /// Kubeconfig to use.
    #[arg(long, global = true)]
    kubeconfig: Option<PathBuf>,
    /// The kubectl to run.
    #[arg(long, global = true, env = "KUBECTL_VM_KUBECTL", default_value = "kubectl")]
    kubectl: PathBuf,
    /// Namespace of the agents.
    #[arg(long, global = true, default_value = "kube-system")]
    agent_namespace: String,
}

#[derive(Debug, clap::Subcommand)]
enum CommandArgs {
    /// Why a VM has its size: its last decisions, the newest last.
    Why {
        /// Name of the VM.
        name: String,
        /// Namespace of the VM.
        #[arg(short, long)]
        namespace: Option<String>,
        /// JSON lines, as the agent has them.
        #[arg(long)]
        json: bool,
    },
    /// Live sizes of VMs.
    Top {
        /// Only this VM.
        name: Option<String>,
        /// Namespace of the VMs.
        #[arg(short, long, conflicts_with = "all_namespaces")]
        namespace: Option<String>,
        /// VMs of all namespaces.
        #[arg(short = 'A', long, conflicts_with = "name")]
        all_namespaces: bool,
        /// Show them once instead of every second.
        #[arg(long)]
        once: bool,
    },
}

/// What to do.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Config {
    pub(crate) command: Command,
    pub(crate) kubectl: PathBuf,
    /// Flags that every kubectl gets.
    pub(crate) global_flags: Vec<String>,
    pub(crate) agent_namespace: String,
}

/// One of the subcommands.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Command {
    Why { name: String, scope: Scope, json: bool },
    Top { name: Option<String>, scope: Scope, once: bool },
}

/// Where to look.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    /// The namespace of the context.
    Current,
    Namespace(String),
    All,
}

impl Scope {
    /// As flags of kubectl.
    pub(crate) fn flags(&self) -> Vec<&str> {
        match self {
            Self::Current => vec![],
            Self::Namespace(namespace) => vec!["--namespace", namespace],
            Self::All => vec!["--all-namespaces"],
        }
    }
}

impl From<Args> for Config {
    fn from(args: Args) -> Self {
        let Args { command, context, kubeconfig, kubectl, agent_namespace } = args;
        let command = match command {
            CommandArgs::Why { name, namespace, json } => {
                let scope = namespace.map_or(Scope::Current, Scope::Namespace);
                Command::Why { name, scope, json }
            }
            CommandArgs::Top { name, namespace, all_namespaces, once } => {
                let scope = match namespace {
                    _ if all_namespaces => Scope::All,
                    Some(namespace) => Scope::Namespace(namespace),
                    None => Scope::Current,
                };
                Command::Top { name, scope, once }
            }
        };
        let context = context.map(|context| format!("--context={context}"));
        let kubeconfig = kubeconfig.map(|path| format!("--kubeconfig={}", path.display()));
        let global_flags = context.into_iter().chain(kubeconfig).collect();
        Self { command, kubectl, global_flags, agent_namespace }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    fn config(line: &str) -> Option<Config> {
        let words = std::iter::once("kubectl-vm").chain(line.split_whitespace());
        Args::try_parse_from(words).ok().map(Config::from)
    }

    #[test]
    fn why_takes_a_name_and_a_namespace() {
        let config = config("why db -n prod --json --context c --kubeconfig /k").unwrap();
        let scope = Scope::Namespace("prod".into());
        assert_eq!(config.command, Command::Why { name: "db".into(), scope, json: true });
        assert_eq!(config.global_flags, ["--context=c", "--kubeconfig=/k"]);
    }

    #[test]
    fn top_looks_where_it_is_told() {
        let scope = |line: &str| match config(line).unwrap().command {
            Command::Top { scope, .. } => scope,
            Command::Why { .. } => unreachable!(),
        };
        assert_eq!(scope("top"), Scope::Current);
        assert_eq!(scope("top db -n a"), Scope::Namespace("a".into()));
        assert_eq!(scope("top -A --once"), Scope::All);
    }

    #[test]
    fn contradictions_are_refused() {
        for line in ["top -A -n a", "top db -A", "why", "what", ""] {
            assert!(config(line).is_none(), "{line}");
        }
    }
}
