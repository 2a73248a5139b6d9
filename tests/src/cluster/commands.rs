//! The subcommands, outside the namespaces.

use std::ffi::OsString;
use std::fs;
use std::os::unix::process::CommandExt;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::cluster::args::{Args, Command, Extent};
use crate::cluster::home::{Home, State};
use crate::cluster::{binaries, boot, images, packages, promtool, sandbox};

/// A boot takes 10 s on an idle machine with two cores.
const UP_DEADLINE: Duration = Duration::from_mins(3);
const DOWN_DEADLINE: Duration = Duration::from_secs(20);

/// Executes a subcommand; `run` and `shell` return the exit code of the command.
pub fn execute(args: Args) -> Result<ExitCode> {
    let home = Home::locate()?;
    let extent = args.extent();
    let cluster = Supervisor { home, extent };
    match args.command {
        Command::Up => cluster.up(),
        Command::Down => cluster.down(),
        Command::Shell => {
            let shell = std::env::var_os("SHELL").unwrap_or_else(|| "/bin/sh".into());
            eprintln!("opening a shell with kubectl inside the cluster; exit leaves it");
            cluster.run(vec![shell])
        }
        Command::Run { command } => cluster.run(command),
        Command::Build => {
            cluster.prepare()?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Images {
            registry,
            tag,
            profile,
            stand_ins,
        } => {
            let registry = images::registry(&registry, &binaries::build_crane(&cluster.home)?)?;
            for image in images::build_and_push(&registry, &tag, profile, stand_ins)? {
                println!("{image}");
            }
            Ok(ExitCode::SUCCESS)
        }
        Command::Tools { command } => cluster.run_with_tools(&command),
        Command::Serve => cluster.boot_and_wait(&[]),
        Command::Inside {
            supervisor,
            command,
        } => boot::inside(&cluster.home, supervisor, cluster.extent, &command),
    }
}

struct Supervisor {
    home: Home,
    extent: Extent,
}

impl Supervisor {
    fn prepare(&self) -> Result<()> {
        packages::install(&self.home, self.extent)?;
        binaries::build(&self.home, self.extent).map(drop)
    }

    fn up(&self) -> Result<ExitCode> {
        if let Some(state) = self.serving()? {
            eprintln!("the cluster is already running");
            self.print_usage(&state);
            return Ok(ExitCode::SUCCESS);
        }
        self.prepare()?;
        let mut child = sandbox::start_serving(&self.home, self.extent)?;
        let log = self.home.log().join("serve.log");
        let started = Instant::now();
        loop {
            if let Some(state) = State::read(&self.home.state())?.filter(|state| state.serves) {
                eprintln!(
                    "the cluster is ready after {:.1} s",
                    started.elapsed().as_secs_f32()
                );
                self.print_usage(&state);
                return Ok(ExitCode::SUCCESS);
            }
            if let Some(status) = child.try_wait()? {
                bail!(
                    "the cluster did not start ({status}): {}",
                    fs::read_to_string(&log).unwrap_or_default().trim()
                );
            }
            if started.elapsed() > UP_DEADLINE {
                child.kill()?;
                bail!(
                    "the cluster is not ready after {} s, see {}",
                    UP_DEADLINE.as_secs(),
                    self.home.log().display()
                );
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn print_usage(&self, state: &State) {
        let components = match state.extent {
            Extent::ApiServer => "an API server only",
            Extent::Node => "a node and a registry",
            Extent::Tekton => "a node, a registry and Tekton",
        };
        eprintln!("with {components}; logs in {}", self.home.log().display());
        eprintln!(
            "use it with `wfe-cluster shell` or `wfe-cluster run -- CMD`, end it with `wfe-cluster down`"
        );
    }

    fn down(&self) -> Result<ExitCode> {
        let started = Instant::now();
        let mut terminated = false;
        // The kernel releases the lock when the supervisor of the cluster ends.
        let _lock = loop {
            if let Some(lock) = self.home.lock()? {
                break lock;
            }
            ensure!(
                started.elapsed() < 2 * DOWN_DEADLINE,
                "the cluster did not end within {} s",
                2 * DOWN_DEADLINE.as_secs()
            );
            // Retries when the holder has not written its process id yet, or has ended already.
            if let Ok(holder) = self.home.holder() {
                if !terminated {
                    terminated = kill(Pid::from_raw(holder), Signal::SIGTERM).is_ok();
                } else if started.elapsed() > DOWN_DEADLINE {
                    let _ = kill(Pid::from_raw(holder), Signal::SIGKILL);
                }
            }
            std::thread::sleep(Duration::from_millis(50));
        };
        sandbox::clean_up(&self.home);
        eprintln!(
            "{}",
            if terminated {
                "the cluster has ended"
            } else {
                "no cluster was running"
            }
        );
        Ok(ExitCode::SUCCESS)
    }

    fn run(&self, command: Vec<OsString>) -> Result<ExitCode> {
        if let Some(state) = self.serving()? {
            ensure!(
                self.extent <= state.extent,
                "the running cluster lacks what this command needs: end it with `wfe-cluster down`"
            );
            return sandbox::attach(&state, &self.home.state(), &command);
        }
        self.prepare()?;
        self.boot_and_wait(&[vec!["--".into()], command].concat())
    }

    fn run_with_tools(&self, command: &[OsString]) -> Result<ExitCode> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let mut tools = binaries::build_tools(&self.home)?;
        tools.push(binaries::build_crane(&self.home)?);
        tools.push(promtool::extract(&self.home)?);
        let path = std::env::join_paths(tools.into_iter().chain(std::env::split_paths(&path)))?;
        let (program, arguments) = command.split_first().context("no command")?;
        let command = std::process::Command::new(program)
            .args(arguments)
            .env("PATH", path)
            .exec();
        Err(command).with_context(|| format!("start {}", program.display()))
    }

    /// Boots a cluster and waits until it ends.
    fn boot_and_wait(&self, arguments: &[OsString]) -> Result<ExitCode> {
        let Some(_lock) = self.home.lock()? else {
            bail!(
                "another cluster is running (process {}): wait for it, or end it with `wfe-cluster down`",
                self.home.holder()?
            );
        };
        sandbox::clean_up(&self.home);
        sandbox::enter(&self.home, self.extent, arguments)
    }

    /// State of the cluster that `up` started, if it is running.
    fn serving(&self) -> Result<Option<State>> {
        if let Some(_lock) = self.home.lock()? {
            // Removes the state file of a killed cluster: `up` waits for that of the new cluster.
            sandbox::clean_up(&self.home);
            return Ok(None);
        }
        Ok(State::read(&self.home.state())?.filter(|state| state.serves))
    }
}
